"""Gradients of K runs as one recorded list of tensor operations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from .base import Batch, InnerTask, Params
from .nets import Weights

logger = logging.getLogger("lhopt")

#: Steps before a gradient is recorded: that costs as much as 20 to 150 steps.
PATIENCE: Final = 100


class Gradient:
    """Gradients and losses of K runs by `torch.func`; after `PATIENCE` calls, from a recording.

    `vmap(grad_and_value(loss))` goes through layers of Python and dispatch at every call, which
    take longer than the arithmetic of a small net. Recorded once, the very same operations are run
    by themselves: the numbers are the same to the bit. A loss is a pure function of its arguments
    (`check_inner_task`), so a recording stays right as long as the shapes do; it is made anew for
    another number of runs.

    Args:
        task: Whose loss.
    """

    def __init__(self, task: InnerTask) -> None:
        self._plain: Callable[..., Any] = vmap(grad_and_value(task.loss))
        self._name = task.name
        self._calls = 0
        self._recorded: Callable[..., Any] | None = None

    def __call__(self, params: Weights, batch: Batch) -> tuple[Params, Tensor]:
        """Parameters `(K, ...)` and a batch `(K, B, ...)` to gradients and losses `(K,)`."""
        found: tuple[Params, Tensor]
        if self._recorded is not None:
            found = self._recorded(params, batch)
            return found
        self._calls += 1
        if self._calls == PATIENCE:
            self._recorded = self._record(params, batch)
        found = self._plain(params, batch)
        return found

    def _record(self, params: Weights, batch: Batch) -> Callable[..., Any] | None:
        plain = self._plain
        try:
            with torch.no_grad():
                graph: Callable[..., Any] = make_fx(lambda p, b: plain(p, b))(dict(params), batch)
        except Exception as error:  # somebody's own task: slower then, and as right as before
            logger.info("the gradient of %s cannot be recorded: %s", self._name, error)
            return None
        return graph


def gradient(task: InnerTask, n_runs: int, device: torch.device) -> Gradient:
    """The gradient of so many runs there.

    A task keeps them as long as it lives, one for each number of runs, so runs that follow find
    them; copies and pickles of a task are without.
    """
    kept: dict[tuple[int, torch.device], Gradient] = vars(task).setdefault("_gradients", {})
    return kept.setdefault((n_runs, device), Gradient(task))
