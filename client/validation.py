"""A held-out loss and its slope along the weights' size, measured by the Tuner itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.statistics import SLOPE_STEP, slope

Validate = Callable[[], "Tensor | float"]


class Validation:
    """Calls a job's own validation, and puts the weights back to the bit.

    Args:
        optimizer: Whose parameters are the weights; its averaged ones, where it has some, are those
            that the loss is of.
        validate: Returns the loss on held-out data of the model as it is then.
        slope: Whether the slope is wanted, two calls more.
    """

    def __init__(self, optimizer: Any, validate: Validate, *, slope: bool) -> None:
        self._optimizer = optimizer
        self._validate = validate
        self._slope = slope

    def __call__(self) -> tuple[float, float | None]:
        """The loss, and its slope where it is wanted and is a number.

        Raises:
            Exception: Whatever `validate` raises; the weights are back by then.
        """
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        devices = sorted({p.device.index for p in params if p.device.type == "cuda"})
        # a data loader draws a seed, and training is to go on as if nobody had looked
        with torch.no_grad(), torch.random.fork_rng(devices):
            averaged = getattr(self._optimizer, "averaged_weights", nullcontext)
            with averaged():
                loss = self._once()
            if not self._slope:
                return loss, None
            found = slope(*(np.array([self._scaled(params, by)]) for by in (-1.0, 1.0)))
        return loss, float(found[0]) if np.isfinite(found[0]) else None

    def _scaled(self, params: list[Tensor], sign: float) -> float:
        """The loss of the raw weights, which weight decay acts on, times 1 +- `SLOPE_STEP`."""
        held = [p.detach().clone() for p in params]
        try:
            torch._foreach_mul_([p.detach() for p in params], 1.0 + sign * SLOPE_STEP)
            return self._once()
        finally:
            torch._foreach_copy_([p.detach() for p in params], held)

    def _once(self) -> float:
        value = self._validate()
        return float(value.detach() if hasattr(value, "detach") else value)
