"""Averages of a job's weights, and the best of them in the parameters for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.averages import LONG, MIXES, SHORT, Mix, pick, share, stride
from ..core.errors import ConfigurationError, ResumeError
from .ranks import check_alone

_HALF = (torch.float16, torch.bfloat16)


class Averages:
    """Keeps averages of an optimizer's parameters while it trains; see `core.averages`.

    The short average is the optimizer's own where it keeps one, so that `SteerableAdamW` has one
    more copy of the weights with it, another optimizer two. Those of half precision are kept in
    float32: in bfloat16 an average stands still.

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
            taken = self._taken[p] = self._taken.get(p, 0) + 1
            if taken == 1:
                dtype = torch.float32 if p.dtype in _HALF else p.dtype
                self._kept[p] = [p.detach().to(dtype, copy=True) for _ in self._horizons]
                continue
            for horizon, kept in zip(self._horizons, self._kept[p], strict=True):
                kept.lerp_(p.detach().to(kept.dtype), share(horizon, taken))

    @contextmanager
    def best(self, loss: Callable[[], float]) -> Iterator[Mix]:
        """Put the mix of the lowest loss into the parameters, and what was there back afterwards.

        Args:
            loss: On held-out data, of the model as it is then; nan where there is none.

        Raises:
            ConfigurationError: A mix is in there already, or others have joined the training.
        """
        check_alone()
        if self.swapped:
            raise ConfigurationError(
                "best_weights() inside best_weights(): they are in the model already. Leave the "
                "outer `with` block first."
            )
        held = [(p, p.detach().clone()) for p in self._params()]
        self.swapped = True
        try:
            losses = []
            for mix in MIXES:
                self._put(mix, held)
                losses.append([loss()])
            best = MIXES[int(pick(np.array(losses))[0])]
            self._put(best, held)
            yield best
        finally:
            with torch.no_grad():
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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ResumeError: It is of other parameters, or of another kind of optimizer.
        """
        params, n = self._params(), len(self._horizons)
        sound = len(state["kept"]) == len(state["taken"]) == len(params) and all(
            len(kept) == (n if taken else 0) and all(k.shape == p.shape for k in kept)
            for p, kept, taken in zip(params, state["kept"], state["taken"], strict=True)
        )
        if not sound:
            raise ResumeError(
                "The checkpoint's averages are of other parameters than the optimizer has, or of "
                "an optimizer that does not average like it. Construct both as they were."
            )
        self._steps = int(state["steps"])
        self._kept, self._taken = {}, {}
        for p, kept, taken in zip(params, state["kept"], state["taken"], strict=True):
            if taken:
                self._taken[p] = int(taken)
                self._kept[p] = [k.detach().to(p.device, copy=True) for k in kept]

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _put(self, mix: Mix, held: list[tuple[Tensor, Tensor]]) -> None:
        for p, last in held:
            averages = self._kept.get(p, [])
            long = averages[-1] if averages else last
            short = self._own(p) if self._own else averages[0] if averages else None
            sources = (last, last if short is None else short, long)
            # what has no share is not asked: weights that are not finite spoil no other mix
            parts = [(s, w) for s, w in zip(mix, sources, strict=True) if s]
            mixed = parts[0][1] * parts[0][0]
            for part, weights in parts[1:]:
                mixed = mixed.to(long.dtype).add(weights, alpha=part)
            p.copy_(mixed)
