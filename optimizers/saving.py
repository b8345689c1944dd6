"""Hooks on `state_dict` and `load_state_dict`, for optimizers that save others and not themselves.

torch runs them in `Optimizer.state_dict`, which `KFAC`, `Together` and `LocalSGD` do not come by.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch.optim import Optimizer

Saved = TypeVar("Saved", bound=Optimizer)
State = dict[str, Any]


def saving(method: Callable[[Saved], State]) -> Callable[[Saved], State]:
    """A `state_dict` that runs the hooks registered on the optimizer, as torch's does."""

    @wraps(method)
    def state_dict(self: Saved) -> State:
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = method(self)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    return state_dict


def loading(method: Callable[[Saved, State], None]) -> Callable[[Saved, State], None]:
    """A `load_state_dict` that runs the hooks registered on the optimizer, as torch's does."""

    @wraps(method)
    def load_state_dict(self: Saved, state_dict: State) -> None:
        state = state_dict.copy()  # hooks may change it
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state)
            state = state if changed is None else changed
        method(self, state)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    return load_state_dict
