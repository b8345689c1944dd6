"""What a vector environment is told to do, checked before any of its runs goes on."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from ..core.errors import ControlError
from ..core.types import IntArray


def checked(actions: IntArray, space: spaces.MultiDiscrete | spaces.Discrete, n: int) -> IntArray:
    """The actions as an array, if there is one for each run and every choice exists.

    Args:
        actions: `(n, heads)` indices, or `(n,)` for a `Discrete` space.
        space: Of one run.
        n: Runs.

    Raises:
        ControlError: Another shape, no whole numbers, or an index without a choice.
    """
    found = np.asarray(actions)
    sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    shape = (n,) if isinstance(space, spaces.Discrete) else (n, len(sizes))
    if found.shape != shape or found.dtype.kind not in "iu":
        raise ControlError(
            f"Actions of shape {found.shape} and type {found.dtype} came; whole numbers of shape "
            f"{shape} are wanted, a row for each of {n} runs."
        )
    outside = (found < 0) | (found >= (sizes if found.ndim == 2 else sizes[0]))
    if outside.any():
        row, *head = (int(i) for i in np.argwhere(outside)[0])
        most = int(sizes[head[0] if head else 0]) - 1
        where = f"run {row}" + (f", head {head[0]}" if head else "")
        raise ControlError(
            f"Action {int(found[outside][0])} of {where}; its choices are 0 to {most}."
        )
    return found
