"""What LARS and LAMB share: values checked, parameters in lists for `torch._foreach`, and norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigurationError

Group = dict[str, Any]


def with_gradient(optimizer: torch.optim.Optimizer, group: Group) -> list[list[Tensor]]:
    """A group's parameters that have a gradient, in lists of one device and dtype each.

    Raises:
        ConfigurationError: A gradient is sparse.
    """
    lists: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in group["params"]:
        if p.grad is None or not p.numel():
            continue
        if p.grad.is_sparse:
            raise ConfigurationError(
                f"A gradient of shape {tuple(p.grad.shape)} is sparse; {type(optimizer).__name__} "
                "takes dense ones. Build the embedding with sparse=False."
            )
        lists.setdefault((p.device, p.dtype), []).append(p)
    return list(lists.values())


def gradients(params: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Their gradients, of the parameters' dtype or another; not to be written to."""
    return [p.grad.to(dtype or p.dtype) for p in params if p.grad is not None]


def norms(tensors: list[Tensor]) -> Tensor:
    """L2 norm of each tensor, `(n,)`, in float32 or wider; nothing waits for the device."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype))


def with_trust(ratio: Tensor, params: list[Tensor], *norms: Tensor, vectors: bool) -> Tensor:
    """The trust ratio where it applies, else 1; `(n,)`.

    It is 1 where one of `norms` is 0 and, unless `vectors`, for parameters of fewer than two
    dimensions.
    """
    for norm in norms:
        ratio = torch.where(norm > 0, ratio, 1.0)
    if vectors:
        return ratio
    one = ratio.new_ones(())  # filled on the device; a tensor of flags would be copied to it
    return torch.stack([r if p.dim() > 1 else one for r, p in zip(ratio, params, strict=True)])


def refuse_complex(optimizer: torch.optim.Optimizer) -> None:
    """Refuse the last group, and take it out again, if one of its parameters is complex.

    Raises:
        ConfigurationError: A parameter is complex.
    """
    for p in optimizer.param_groups[-1]["params"]:
        if p.is_complex():
            del optimizer.param_groups[-1]
            raise ConfigurationError(
                f"A parameter of shape {tuple(p.shape)} is complex; {type(optimizer).__name__} "
                "takes real ones. Pass torch.view_as_real of it."
            )


def number(value: Any) -> float:
    """A value, or a tensor of one, as a float; nan for what is neither, and for words and bools."""
    if isinstance(value, bool | str):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def check(group: Group, key: str, holds: Callable[[float], bool], allowed: str) -> None:
    """Refuse a group's value.

    Raises:
        ConfigurationError: `holds` is false of it, or it is no number.
    """
    if not holds(number(group[key])):
        raise ConfigurationError(f"{key} is {group[key]!r}; it must be {allowed}.")


def not_negative(value: float) -> bool:
    """Whether a value is finite and at least 0."""
    return 0.0 <= value < math.inf


def positive(value: float) -> bool:
    """Whether a value is finite and greater than 0."""
    return 0.0 < value < math.inf
