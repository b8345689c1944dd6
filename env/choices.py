"""What a vector environment is told to do, checked before any of its runs goes on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ..core.errors import ControlError
from ..core.types import IntArray


def checked(actions: IntArray, space: gym.Space[Any]) -> IntArray:
    """The actions as an array, if there is one for each run and every choice exists.

    Args:
        actions: Indices, `(runs, heads)`, or `(runs,)` where there is a single head.
        space: Of all runs, as `batch_space` makes it of choices that count from 0.

    Raises:
        ControlError: Another shape, no whole numbers, or an index without a choice.
    """
    assert isinstance(space, gym.spaces.Box | gym.spaces.MultiDiscrete)
    found = np.asarray(actions)
    last = space.high if isinstance(space, gym.spaces.Box) else space.nvec - 1
    if found.shape != last.shape or found.dtype.kind not in "iu":
        raise ControlError(
            f"Actions of shape {found.shape} and type {found.dtype} came; whole numbers of shape "
            f"{last.shape} are wanted, a row for each of {len(last)} runs."
        )
    outside = (found < 0) | (found > last)
    if outside.any():
        row, *head = (int(i) for i in np.argwhere(outside)[0])
        where = f"run {row}" + (f", head {head[0]}" if head else "")
        raise ControlError(
            f"Action {int(found[outside][0])} of {where}; its choices are 0 to "
            f"{int(last[outside][0])}."
        )
    return found
