"""What optimizers hold of half-precision parameters: moments and averages, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from .numbers import HALF


def held_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a parameter's state, and of its step.

    In half precision a share of 1e-3 is lost against what it is added to: an average stands still,
    a second moment does not decay; and squares of small float16 gradients are 0.
    """
    return torch.float32 if dtype in HALF else dtype


def reload(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], keys: Sequence[str]
) -> None:
    """Take tensors of a state anew from what was loaded: torch made them the parameter's dtype.

    They are copies, so that none is a view that keeps a block of the saved state alive.

    Args:
        optimizer: Has just loaded `state_dict`.
        state_dict: As it was saved.
        keys: Of the tensors; those of a parameter that has none are left out.
    """
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for i, p in zip(ids, params, strict=True):
        saved = state_dict["state"].get(i, {})
        for key in keys:
            if key in saved:
                dtype = held_in(p.dtype)
                optimizer.state[p][key] = saved[key].to(p.device, dtype, copy=True)
