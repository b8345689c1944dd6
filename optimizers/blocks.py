"""Where matrices lie in a block of parameters, and the memory that a step of a block works in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

#: The largest block, in entries, whose scratch memory is kept.
SCRATCH = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """A matrix inside a block: columns `start` to `stop`, seen as `(rows, columns)`."""

    start: int
    stop: int
    rows: int
    columns: int

    @property
    def wide(self) -> bool:
        """Whether it is at least as wide as high."""
        return self.rows <= self.columns

    def of(self, block: Tensor) -> Tensor:
        """The matrix of every run, `(K, rows, columns)`, in a block `(K, d)`: a view."""
        return block[:, self.start : self.stop].view(-1, self.rows, self.columns)

    def wide_way_round(self, block: Tensor) -> Tensor:
        """The same, transposed if it is higher than wide."""
        view = self.of(block)
        return view if self.wide else view.mT


def matrices(shapes: Sequence[tuple[int, ...]]) -> tuple[Matrix, ...]:
    """The matrices among tensors laid one after another; a convolution is out x (in h w).

    A tensor whose first dimension or rest is 1 is a vector in disguise, and left to Adam.
    """
    found, start = [], 0
    for shape in shapes:
        size = 1
        for n in shape:
            size *= n
        if len(shape) >= 2 and shape[0] > 1 and size // shape[0] > 1:
            found.append(Matrix(start, start + size, shape[0], size // shape[0]))
        start += size
    return tuple(found)


@lru_cache(maxsize=512)
def alike(inside: tuple[Matrix, ...]) -> tuple[tuple[Matrix, ...], ...]:
    """The matrices of a block by their shape, the wide way round."""
    groups: dict[tuple[int, int], list[Matrix]] = {}
    for m in inside:
        groups.setdefault((min(m.rows, m.columns), max(m.rows, m.columns)), []).append(m)
    return tuple(tuple(group) for group in groups.values())


@lru_cache(maxsize=512)
def outside(inside: tuple[Matrix, ...], stop: int) -> tuple[slice, ...]:
    """The columns of a block before, between and after its matrices, which are in order."""
    starts = [0, *(m.stop for m in inside)]
    stops = [*(m.start for m in inside), stop]
    return tuple(slice(a, b) for a, b in zip(starts, stops, strict=True) if a < b)


class Scratch:
    """Memory that outlives a step, for what `update_block` computes on the way.

    On a CPU a large block of new memory costs a page fault every 4 KiB, as much as a pass over it.
    Blocks beyond `SCRATCH` entries are new each time, so that little is held; on a device torch's
    allocator does the same by itself.
    """

    def __init__(self) -> None:
        self._held: dict[torch.dtype, list[Tensor]] = {}

    def take(self, n: int, like: Tensor) -> list[Tensor]:
        """`n` tensors of the shape, type and place of `like`, with anything in them."""
        size = like.numel()
        if like.device.type != "cpu" or size > SCRATCH:
            return [torch.empty_like(like) for _ in range(n)]
        held = self._held.get(like.dtype, [])
        if len(held) < n or len(held[0]) < size:
            held = [like.new_empty(size) for _ in range(n)]
            self._held[like.dtype] = held
        return [block[:size].view(like.shape) for block in held[:n]]
