"""Arithmetic that is written once for Python floats and for `(K, 1)` tensors.

One run on a CPU has floats: a dozen multiplications of `(1, 1)` tensors cost as much as a small
model's gradient. Many runs, or one on a device that no step may wait for, have tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Number = Tensor | float
#: Types with too few digits, or too little range, for sums of squares.
HALF = (torch.float16, torch.bfloat16)


def root(x: Number) -> Number:
    """Square root; of a negative float, nan."""
    if isinstance(x, Tensor):
        return x.sqrt()
    return math.sqrt(x) if x >= 0.0 else math.nan


def at_least(x: Number, least: float) -> Number:
    """The larger one; nan stays nan."""
    if isinstance(x, Tensor):
        return x.clamp_min(least)
    return least if x < least else x


def larger(a: Number, b: Number) -> Number:
    """The larger one, nan if either is."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return a if a >= b or a != a else b


def where(condition: Tensor | bool, a: Number, b: Number) -> Number:
    """`a` where `condition` holds, else `b`."""
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


def placed(x: Number, device: torch.device) -> Number:
    """The same for a block on `device`: a float on a CPU, `(1, 1)` in float64 elsewhere."""
    if device.type == "cpu":
        return float(x)
    return torch.as_tensor(x, dtype=torch.float64, device=device).reshape(1, 1)


def cast(x: Number, dtype: torch.dtype) -> Number:
    """A tensor in another dtype; a float as it is."""
    return x.to(dtype) if isinstance(x, Tensor) else x


def flat(x: Number, dtype: torch.dtype) -> Number:
    """A `(1, 1)` tensor without dimensions, in another dtype; a float as it is."""
    return x.to(dtype).view(()) if isinstance(x, Tensor) else x
