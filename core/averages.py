"""Averages of a run's weights, and which of them a held-out loss says to keep.

How long the weights of a run should be averaged differs from task to task by more than any one
horizon gives: a net that goes on improving to its last step wants little, one that has begun to
learn its data by heart wants its younger self. Whoever has held-out data need not guess. Two
averages are kept beside the last weights, and at the end the loss is asked along the line from the
last weights to the short average and on to the long one.

Source: polynomially decaying averages: Shamir and Zhang, 2013, arXiv:1212.1824. Choosing the
horizon after the run, from few averages that were kept: Karras et al., 2024, arXiv:2312.02696.
Mixing weights by a held-out loss: Wortsman et al., 2022, arXiv:2203.05482, of several runs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from .types import FloatArray, IntArray

#: Horizons, as fractions of the steps so far. The short one is that of `SteerableAdamW`.
SHORT: Final = 0.1
LONG: Final = 0.5
#: A run's averages take in its weights at most so many times, evenly spread.
UPDATES: Final = 512


class Mix(NamedTuple):
    """A point on the line from the last weights to the short average and on to the long one.

    Attributes:
        last: Share of the last weights.
        short: Share of the short average.
        long: Share of the long one. The three are 1 together.
    """

    last: float
    short: float
    long: float


#: What is asked, the shortest first.
MIXES: Final[tuple[Mix, ...]] = (
    Mix(1.0, 0.0, 0.0),
    Mix(0.5, 0.5, 0.0),
    Mix(0.25, 0.75, 0.0),
    Mix(0.0, 1.0, 0.0),
    Mix(0.0, 0.75, 0.25),
    Mix(0.0, 0.5, 0.5),
    Mix(0.0, 0.25, 0.75),
    Mix(0.0, 0.0, 1.0),
)
#: Position of the short average: kept where no loss prefers another, if the optimizer's own
#: average is the short one. Of an optimizer without one the last weights are, position 0.
OWN: Final = MIXES.index(Mix(0.0, 1.0, 0.0))
LAST: Final = 0


def share(horizon: float, count: int) -> float:
    """Share of the newest weights in an average that has taken in `count` of them, from 1 on.

    With this, an average reaches back over `horizon` times what it has seen: at 1 it is the plain
    mean, at 0 the last weights.

    >>> share(1.0, 4), share(0.0, 4), share(0.5, 1)
    (0.25, 1.0, 1.0)
    """
    return 1.0 / (1.0 + horizon * (count - 1))


def stride(total_steps: int) -> int:
    """Steps between two updates of an average.

    >>> stride(300), stride(10_000)
    (1, 20)
    """
    return -(-total_steps // UPDATES)


def pick(losses: FloatArray, untold: int) -> IntArray:
    """Which of `MIXES` each run keeps: the one of the lowest loss.

    Args:
        losses: `(len(MIXES), K)` held-out losses, nan and infinite ones included.
        untold: Position that is kept where no loss is finite, or none is below its own: `OWN` or
            `LAST`.

    Returns:
        `(K,)` positions.
    """
    finite = np.where(np.isfinite(losses), losses, np.inf)
    lowest = finite.argmin(axis=0)
    better = finite.min(axis=0) < finite[untold]
    return np.asarray(np.where(better, lowest, untold))
