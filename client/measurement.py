"""Measuring one optimizer step, on the device, without waiting for it.

The only module of the SDK that imports torch; it is imported when a `Tuner` is given an optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.adapters import Adapter, Group
from ..core.moments import tensor_moments
from ..core.sampling import stride
from ..core.statistics import measure
from ..core.types import FloatArray


def entries(tensor: Tensor, max_entries: int) -> Tensor:
    """Every so many-th entry, `(1, d)`; a view where that is possible."""
    step = stride(tensor.numel(), max_entries)
    flat = tensor.reshape(1, -1)
    return flat if step == 1 else flat[:, ::step]


def sample(tensor: Tensor, max_entries: int, *, copy: bool = False) -> Tensor:
    """Every so many-th entry, `(1, d)`, float32 or wider."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return entries(tensor, max_entries).to(dtype, copy=copy)


def measurable(optimizer: Any, *, closure: bool) -> Iterator[tuple[Group, Tensor]]:
    """Parameters that the next step will move (with a closure: may move), with their group."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            moves = param.requires_grad if closure else param.grad is not None
            if moves and param.numel() and not param.is_complex():
                yield group, param


def gradient(param: Tensor, scale: Any, max_entries: int) -> Tensor:
    """Sampled gradient before any clipping by the optimizer, without the AMP scale."""
    held = param.grad
    assert held is not None
    # a copy: the optimizer may clip in place
    seen = sparse_entries(held, max_entries) if held.is_sparse else held
    grad = sample(seen, max_entries, copy=True)
    return grad if scale is None else grad / scale.to(grad.device)


def sparse_entries(tensor: Tensor, max_entries: int) -> Tensor:
    """As `entries` of the dense tensor, which may not fit into memory."""
    step, n_sparse = stride(tensor.numel(), max_entries), tensor.sparse_dim()
    indices, values = tensor._indices(), tensor._values()
    row = torch.zeros_like(indices[0])
    for index, size in zip(indices, tensor.shape[:n_sparse], strict=True):
        row = row * size + index
    width = tensor.shape[n_sparse:].numel()
    flat = (row[:, None] * width + torch.arange(width, device=row.device)).flatten()
    count = -(-tensor.numel() // step)
    # what falls between the samples goes to a place of its own: to leave it out would be to wait
    place = torch.where(flat % step == 0, flat // step, count)
    return values.new_zeros(count + 1).index_add_(0, place, values.flatten())[:count]


@dataclass
class Before:
    """What one parameter looked like before a step."""

    group: Group
    param: Tensor
    value: Tensor
    gradient: Tensor | None
    lr: Any


@dataclass
class Measured:
    """Moments of one step, still on their devices."""

    numel: list[int]
    moments: list[Tensor]  # one (10,) tensor per parameter
    lr: list[Any]
    clipped: Any
    found_inf: Any

    def resolve(self) -> FloatArray | None:
        """Statistics of the step, `(1, statistics)`; `None` if AMP skipped the step."""
        if self.found_inf is not None and float(self.found_inf) != 0.0:
            return None
        by_device: dict[torch.device, list[int]] = {}
        for i, row in enumerate(self.moments):
            by_device.setdefault(row.device, []).append(i)
        table = np.empty((1, len(self.moments), 1 + len(self.moments[0])))
        table[0, :, 0] = self.numel
        for rows in by_device.values():
            stacked = torch.stack([self.moments[i].to(torch.float64) for i in rows])
            table[0, rows, 1:] = stacked.cpu().numpy()
        lr = np.array([[float(value) for value in self.lr]])
        clipped = None if self.clipped is None else np.array([float(self.clipped)])
        return measure(table, lr, clipped)


@torch.no_grad()
def before_step(
    optimizer: Any, adapter: Adapter, max_entries: int, *, closure: bool
) -> list[Before]:
    """Sample parameters and gradients; with a closure the gradient is not there yet."""
    scale = getattr(optimizer, "grad_scale", None)
    rate = adapter.slots["learning_rate"]
    out = []
    for group, param in measurable(optimizer, closure=closure):
        lr = rate.raw(group)
        if not isinstance(lr, Tensor) and lr == 0.0:
            continue  # nothing moves, and u = step / lr does not exist
        grad = None if closure else gradient(param, scale, max_entries)
        value = sample(param, max_entries, copy=True)
        out.append(Before(group, param, value, grad, lr.clone() if isinstance(lr, Tensor) else lr))
    return out


@torch.no_grad()
def after_step(
    optimizer: Any, adapter: Adapter, rows: list[Before], max_entries: int
) -> Measured | None:
    """Moments of the step that just ended."""
    numel, moments, used = [], [], []
    for row in rows:

        def take(tensor: Tensor, dtype: torch.dtype = row.value.dtype) -> Tensor:
            seen = entries(tensor, max_entries)
            return seen if seen.dtype in (dtype, torch.bool) else seen.to(dtype)

        grad = row.gradient
        if grad is None:
            if row.param.grad is None:
                continue
            grad = gradient(row.param, None, max_entries)
        used.append(row.lr)
        grad = grad.to(row.value.dtype)
        lr = row.lr
        divisor = lr.to(row.value.device).clamp(min=1e-30) if isinstance(lr, Tensor) else lr
        update = (row.value - take(row.param)) / divisor
        momentum, adam_like = adapter.reader(optimizer, row.group, row.param, take)
        parts = tensor_moments(
            grad, grad if momentum is None else momentum, update, row.value, adam_like
        )
        numel.append(row.value.shape[1])
        moments.append(torch.cat(parts))
    if not moments:
        return None
    found_inf = getattr(optimizer, "found_inf", None)
    clipped = getattr(optimizer, adapter.clipped, None)
    return Measured(
        numel,
        moments,
        used,
        clipped.detach().clone() if isinstance(clipped, Tensor) else clipped,
        None if found_inf is None else found_inf.detach().clone(),
    )


@torch.no_grad()
def log_displacement(
    params: list[Tensor], start: list[Tensor], max_entries: int
) -> FloatArray | None:
    """`(1,)` log of |p_end - p_start| / |p_start| over all sampled entries together."""
    if not params:
        return None
    moved, norm = 0.0, 0.0
    sums = [
        torch.stack([(sample(p, max_entries) - s).square().sum(), s.square().sum()])
        for p, s in zip(params, start, strict=True)
    ]
    for pair in torch.stack([s.to("cpu", torch.float64) for s in sums]).tolist():
        moved, norm = moved + pair[0], norm + pair[1]
    return np.array([0.5 * np.log(np.fmax(moved, 1e-60)) - 0.5 * np.log(np.fmax(norm, 1e-60))])
