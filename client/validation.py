"""A held-out loss, its slope and curvature along the weights' size, measured by the Tuner."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from ..core.statistics import SLOPE_STEP, curvature, slope
from .ranks import check_alone

Validate = Callable[[], "Tensor | float"]


class Validation:
    """Calls a job's own validation, and puts the weights back to the bit.

    Every call of one decision begins from the same state of the random numbers of torch, NumPy and
    Python, and leaves it as it was: a data loader that shuffles gives each the same examples, and
    training goes on as if nobody had looked. A generator that a job made itself is not known here.

    Args:
        optimizer: Whose parameters are the weights; its averaged ones, where it has some, are those
            that the loss is of.
        validate: Returns the loss on held-out data of the model as it is then.
    """

    def __init__(self, optimizer: Any, validate: Validate) -> None:
        self._optimizer = optimizer
        self._validate = validate

    def loss(self) -> float:
        """The loss, of the averaged weights where there are some.

        Raises:
            Exception: Whatever `validate` raises; the weights are back by then.
        """
        averaged = getattr(self._optimizer, "averaged_weights", nullcontext)
        with self._unseen(), averaged():
            return self._once()

    def plain(self, validate: Validate | None = None) -> float:
        """The loss of the weights as they are, or another one.

        Raises:
            Exception: Whatever `validate` raises.
        """
        with torch.no_grad():
            return self._once(validate)

    def slope_and_curvature(self) -> tuple[float | None, float | None]:
        """The loss's slope and curvature along the size of the raw weights; None is no number.

        All parameters are scaled, as where policies train, whose runs decay all of them.

        Raises:
            ValueError: The loss does not see the weights.
            Exception: Whatever `validate` raises; the weights are back by then.
        """
        with self._unseen():
            shrunk, grown = (self._scaled(1.0 + by) for by in (-SLOPE_STEP, SLOPE_STEP))
            same = self._once()
        if shrunk == grown and np.isfinite(shrunk):
            raise ValueError(
                f"validate gave {shrunk} with weights {SLOPE_STEP:.0%} smaller and larger; it must "
                "evaluate the model whose parameters the optimizer has, no copy of it, and give a "
                "loss in float32"
            )
        a, b, c = (np.array([loss]) for loss in (shrunk, same, grown))
        found = (float(slope(a, c)[0]), float(curvature(a, b, c)[0]))
        sloped, curved = (value if np.isfinite(value) else None for value in found)
        return sloped, curved

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Without gradients; a backward pass that is yet to come sees unchanged weights.

        Raises:
            ConfigurationError: Others have joined the training since construction.
        """
        check_alone()
        with torch.no_grad(), ExitStack() as stack:
            # they are back to the bit before anybody looks, so the count of writes may be too
            for p in self._params():
                stack.enter_context(_unsafe_preserve_version_counter(p))
            yield

    def _scaled(self, factor: float) -> float:
        params = self._params()
        held = [p.detach().clone() for p in params]
        try:
            for p in params:
                p.mul_(factor)
            return self._once()
        finally:
            for p, before in zip(params, held, strict=True):
                p.copy_(before)

    def _once(self, validate: Validate | None = None) -> float:
        devices = sorted({p.device.index for p in self._params() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices), _random_kept(), _fresh_casts():
            value = (validate or self._validate)()
        return float(value.detach() if hasattr(value, "detach") else value)


@contextmanager
def _fresh_casts() -> Iterator[None]:
    """Let an autocast region that we were called in cast the weights anew, before and afterwards.

    It keeps its casts of parameters until it ends, and does not see that other values were written
    into them: this call would be of the weights of before, and the training's next of ours.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def _random_kept() -> Iterator[None]:
    """Leave the global random numbers of Python and NumPy as they were."""
    # as a dict: a job may have given NumPy a generator that the older tuple cannot hold
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
