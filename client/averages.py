"""Averages of a job's weights, and the best of them in the parameters for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.averages import LAST, LONG, MIXES, OWN, SHORT, Mix, pick, share, stride
from ..core.errors import ConfigurationError, ResumeError
from .ranks import check_alone

_HALF = (torch.float16, torch.bfloat16)


class Averages:
    """Keeps averages of an optimizer's parameters while it trains; see `core.averages`.

    The short average is the optimizer's own where it keeps one, so that `SteerableAdamW` has one
    more copy of the weights with it, another optimizer two. Those of parameters in half precision
    are float32: in bfloat16 an average stands still. What takes no gradient is not kept.

    Args:
        optimizer: Whose parameters; it may take in more of them later.
        total_steps: Optimizer steps of the run.

    Raises:
        ConfigurationError: The optimizer trains other weights than those that are meant to be used.

    Attributes:
        swapped: Whether a mix is in the parameters now.
    """

    def __init__(self, optimizer: Any, total_steps: int) -> None:
        if callable(getattr(optimizer, "train", None)) and callable(
            getattr(optimizer, "eval", None)
        ):
            raise ConfigurationError(
                f"averages=True with {type(optimizer).__name__}, which keeps an average of its own "
                "and puts it into the model with optimizer.eval(); leave averages out."
            )
        own = bool(getattr(getattr(optimizer, "rule", None), "average", 0.0))
        self._optimizer = optimizer
        self._own: Callable[[Tensor], Tensor | None] | None = optimizer.average if own else None
        self._horizons = (LONG,) if own else (SHORT, LONG)
        self._stride = stride(total_steps)
        self._steps = 0
        self._kept: dict[Tensor, list[Tensor]] = {}  # by parameter, in the order of the horizons
        self._taken: dict[Tensor, int] = {}
        self.swapped = False

    @torch.no_grad()
    def after_step(self) -> None:
        """Count a step, and take the weights in where it is time."""
        self._steps += 1
        if self._steps % self._stride:
            return
        for p in self._params():
            if not p.requires_grad:
                continue
            taken = self._taken[p] = self._taken.get(p, 0) + 1
            if taken == 1:
                dtype = torch.float32 if p.dtype in _HALF else p.dtype
                self._kept[p] = [p.detach().to(dtype, copy=True) for _ in self._horizons]
                continue
            for horizon, kept in zip(self._horizons, self._kept[p], strict=True):
                kept.lerp_(p.detach().to(kept.dtype), share(horizon, taken))

    @contextmanager
    def best(
        self,
        loss: Callable[[], float],
        warn: Callable[[str], None],
        model: torch.nn.Module | None = None,
    ) -> Iterator[Mix]:
        """Put the mix of the lowest loss into the parameters, and what was there back afterwards.

        Args:
            loss: On held-out data, of the model as it is then; it may raise.
            warn: Called with what is wrong with the losses.
            model: Whose buffers are put back afterwards, too.

        Raises:
            ConfigurationError: Other weights are in there already, or others have joined the
                training; inside: a step.
        """
        check_alone()
        if self.swapped:
            raise ConfigurationError(
                "best_weights() inside best_weights(): they are in the model already. Leave the "
                "outer `with` block first."
            )
        with ExitStack() as stack:
            swapping = getattr(self._optimizer, "swapping", None)
            if swapping is not None:
                stack.enter_context(swapping())
            handle = self._optimizer.register_step_pre_hook(_refuse)
            stack.callback(handle.remove)
            held = [(p, p.detach().clone()) for p in self._params()]
            buffers = [] if model is None else [(b, b.detach().clone()) for b in model.buffers()]
            self.swapped = True
            stack.callback(self._back, held + buffers)
            best = self._choose(loss, warn, held)
            self._put(best, held)
            yield best

    def _choose(
        self,
        loss: Callable[[], float],
        warn: Callable[[str], None],
        held: list[tuple[Tensor, Tensor]],
    ) -> Mix:
        found, own = np.full((len(MIXES), 1), np.nan), self._own is not None
        failed = ""
        for i, mix in enumerate(MIXES):
            self._put(mix, held)
            try:
                found[i] = loss()
            except Exception as error:  # a model that was trained must be saved nevertheless
                failed = failed or f": {type(error).__name__}: {error}"
        if not np.isfinite(found).any():
            used = "the optimizer's own average is used" if own else "the last weights are used"
            warn(f"validate gave no finite loss of any of the averages, {used}{failed}")
        elif failed:
            warn(f"validate failed for some of the averages, which are left out{failed}")
        elif np.isfinite(found).all() and len(set(found[:, 0])) == 1 and self._differ(held):
            warn(
                f"validate gave {found[0, 0]} for each of the averages; it must evaluate the model "
                "whose parameters the optimizer has, no copy of it, and in float32"
            )
        return MIXES[int(pick(found, OWN if own else LAST)[0])]

    def _differ(self, held: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the last weights and the long average, which is in the parameters, do."""
        return any(not torch.equal(p.detach(), last) for p, last in held)

    @torch.no_grad()
    def _back(self, held: list[tuple[Tensor, Tensor]]) -> None:
        for p, last in held:
            p.copy_(last)
        self.swapped = False

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain values and tensors."""
        params = self._params()
        return {
            "steps": self._steps,
            "taken": [self._taken.get(p, 0) for p in params],
            "kept": [self._kept.get(p, []) for p in params],
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that cannot be loaded.

        Raises:
            ResumeError: It is of other parameters, or of another kind of optimizer.
        """
        params, n = self._params(), len(self._horizons)
        sound = len(state["kept"]) == len(state["taken"]) == len(params) and all(
            # 2 of half precision were kept beside the optimizer's own while that stood still
            len(kept) in ((n, 2 if p.dtype in _HALF else n) if taken else (0,))
            and all(k.shape == p.shape for k in kept)
            for p, kept, taken in zip(params, state["kept"], state["taken"], strict=True)
        )
        if not sound:
            raise ResumeError(
                "The checkpoint's averages are of other parameters than the optimizer has, or of "
                "an optimizer that does not average like it. Construct both as they were."
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ResumeError: As `check`.
        """
        self.check(state)
        self._steps = int(state["steps"])
        self._kept, self._taken = {}, {}
        for p, kept, taken in zip(self._params(), state["kept"], state["taken"], strict=True):
            if taken:
                self._taken[p] = int(taken)
                kept = kept[-len(self._horizons) :]
                self._kept[p] = [k.detach().to(p.device, copy=True) for k in kept]

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _put(self, mix: Mix, held: list[tuple[Tensor, Tensor]]) -> None:
        for p, last in held:
            kept = self._kept.get(p, [])
            long = kept[-1] if kept else last
            short = kept[0] if len(kept) > 1 else self._own(p) if self._own else None
            sources = (last, last if short is None else short, long)
            # what has no share is not asked: weights that are not finite spoil no other mix
            parts = [(s, w) for s, w in zip(mix, sources, strict=True) if s]
            mixed = parts[0][1] * parts[0][0]
            for part, weights in parts[1:]:
                mixed = mixed.to(long.dtype).add(weights, alpha=part)
            p.copy_(mixed)


def _refuse(optimizer: Any, args: Any, kwargs: Any) -> None:
    raise ConfigurationError(
        "step() inside best_weights(): it would be undone when the last weights come back. Leave "
        "the `with` block first."
    )
