"""The global point that workers leave and come back to, and DiLoCo's outer step on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigurationError

#: Makes the outer optimizer over the global parameters, which carry no worker dimension.
OuterFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> OuterFactory:
    """SGD with Nesterov momentum on the pseudo-gradient d = x_global - mean x_k.

    Momentum v = momentum v + d; step x_global = x_global - lr (d + momentum v). At lr 1 and
    momentum 0 the outer step is the plain average.

    Args:
        lr: Outer learning rate, at least 0.
        momentum: In [0, 1); 0 for none, which may then not be steered.

    Raises:
        ConfigurationError: A value is out of range.

    Source: Douillard et al., 2023, DiLoCo (arXiv:2311.08105), algorithm 1 and its defaults.
    """
    _check_rate(lr)
    _check_momentum(momentum)
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=momentum > 0)


class GlobalPoint:
    """Where all workers stood at the last synchronisation, and the optimizer that moves it.

    Values are float32 at least, so that small outer steps on float16 parameters are not lost.

    Args:
        make_outer: Makes the outer optimizer; `None` to move to the mean of the workers.

    Raises:
        ConfigurationError: It is `nesterov` itself, not called.
    """

    def __init__(self, make_outer: OuterFactory | None) -> None:
        given: object = make_outer
        if given is nesterov:
            raise ConfigurationError("outer is the function nesterov; call it: outer=nesterov().")
        self.tensors: list[Tensor] = []
        self._make_outer = make_outer
        self.outer: torch.optim.Optimizer | None = None

    def extend(self, values: Sequence[Tensor]) -> None:
        """Take in copies of parameters that are new."""
        new = [v.to(torch.promote_types(v.dtype, torch.float32), copy=True) for v in values]
        self.tensors += new
        if self._make_outer is None or not new:
            return
        if self.outer is None:
            self.outer = self._make_outer(new)
        else:
            self.outer.add_param_group({"params": new})

    def sizes(self) -> list[int]:
        """Number of values per parameter."""
        return [t.numel() for t in self.tensors]

    def left(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Where workers really started: the tensors as the parameters' own dtype rounds them."""
        pairs = zip(self.tensors, params, strict=True)
        return [t.to(p.dtype).to(t) for t, p in pairs]

    def move(self, left: Sequence[Tensor], mean: Tensor) -> None:
        """Go to the mean of the workers, (n,), or where the outer step leads from `left`."""
        for t, start, flat in zip(self.tensors, left, torch.split(mean, self.sizes()), strict=True):
            value = flat.view(t.shape).to(t)
            if self.outer is None:
                t.copy_(value)
            else:
                t.grad = start - value
        if self.outer is not None:
            self.outer.step()
            self.outer.zero_grad()

    def value(self, key: str) -> float | None:
        """A hyperparameter of the outer optimizer's first group; `None` where there is none."""
        value = None if self.outer is None else self.outer.param_groups[0].get(key)
        return None if value is None else float(value)

    def set_value(self, key: str, value: float) -> None:
        """Set "lr" or "momentum" in all groups of the outer optimizer.

        Raises:
            ConfigurationError: It is out of range, or there is none to set.
        """
        (_check_rate if key == "lr" else _check_momentum)(value)
        if self.outer is None or key not in self.outer.param_groups[0]:
            raise ConfigurationError(
                f"There is no outer {key!r} to set; make LocalSGD with outer=nesterov()."
            )
        for group in self.outer.param_groups:
            group[key] = value

    def settings(self) -> list[dict[str, Any]]:
        """Hyperparameters of the outer optimizer's groups, which all workers must have alike."""
        groups = [] if self.outer is None else self.outer.param_groups
        return [{k: v for k, v in group.items() if k != "params"} for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """Tensors, and the outer optimizer's state."""
        outer = None if self.outer is None else self.outer.state_dict()
        return {"tensors": list(self.tensors), "outer": outer}

    def check(self, state: dict[str, Any]) -> None:
        """See that `load_state_dict` can take a state.

        Raises:
            ConfigurationError: Shapes differ, only one of the two has an outer optimizer, or the
                groups of both differ.
        """
        saved, here = (
            [tuple(t.shape) for t in tensors] for tensors in (state["tensors"], self.tensors)
        )
        if saved != here:
            raise ConfigurationError(
                f"The saved state is of parameters of shapes {saved}; here they are {here}. Make "
                "LocalSGD with the model that it was saved with."
            )
        if (state["outer"] is None) != (self.outer is None):
            which = ("without", "with") if self.outer is not None else ("with", "without")
            raise ConfigurationError(
                f"The saved state is of a run {which[0]} an outer step, this one is {which[1]}. "
                "Make LocalSGD with the `outer` that it was saved with."
            )
        if self.outer is None:
            return
        then, now = (
            [len(group["params"]) for group in groups]
            for groups in (state["outer"]["param_groups"], self.outer.param_groups)
        )
        if then != now:
            raise ConfigurationError(
                f"The saved outer optimizer has groups of {then} parameters, this one of {now}. "
                "Add groups as they were added in the run that was saved."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()` that was checked."""
        for t, value in zip(self.tensors, state["tensors"], strict=True):
            t.copy_(value)
        if self.outer is not None:
            self.outer.load_state_dict(state["outer"])


def _check_rate(value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ConfigurationError(
            f"The outer learning rate is {value!r}; it must be a finite number of at least 0."
        )


def _check_momentum(value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigurationError(f"The outer momentum is {value!r}; it must lie in [0, 1).")
