"""Data whose generator is drawn: another program for each seed, and which programs are sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigurationError
from .data import generator

#: Seeds of programs. Many, so that two tasks of a family seldom have one program.
WORLDS: Final[tuple[int, ...]] = tuple(range(1, 1025))
#: Rows to train on where a program's rows are scarce.
SCARCE_ROWS: Final[tuple[int, ...]] = (100, 200, 400, 800, 1200)

_TRIAL, _HIDDEN, _RIDGE = 3_000, 200, 200.0
_LEAST_SHARE = 0.02  # of a class among the rows of the trial
_LEAST_DISTINCT = 0.9  # of them: strings repeat themselves, but a split must not be another's copy
_ATTEMPTS = 200  # of the 116 programs that trainings and defaults draw none took more than 8

#: Draws a program by the first generator and so many rows of it by the second: (inputs, targets).
Draw = Callable[[np.random.Generator, np.random.Generator, int], tuple[NDArray[Any], NDArray[Any]]]


def drawn_world(
    name: str,
    seed: int,
    rows: int,
    draw: Draw,
    bounds: tuple[float, float],
    clues: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of the seed's first program whose targets can be told from the inputs, and not wholly.

    A program whose targets are noise, or which a regression tells almost wholly, teaches a policy
    little. Each is tried on 3,000 rows that are drawn for that alone.

    Args:
        name: Seeds the programs, with `seed`.
        seed: One of `WORLDS`.
        rows: How many.
        draw: Draws a program and its rows.
        bounds: Share of the targets' variance that a ridge regression explains, at least and at
            most.
        clues: Of inputs (N, ...), what the regression reads, (N, d).

    Raises:
        ConfigurationError: None of 200 programs is sound.
    """
    for attempt in range(_ATTEMPTS):
        # a word, for numpy takes a seed that ends in 0 for the one without it
        trial = generator(name, seed, attempt, "trial")
        inputs, targets = draw(generator(name, seed, attempt), trial, _TRIAL)
        if (
            _all_frequent(targets)
            and _distinct(inputs) >= _LEAST_DISTINCT
            and bounds[0] <= explained(clues(inputs), targets) <= bounds[1]
        ):
            return draw(
                generator(name, seed, attempt), generator(name, seed, attempt, "rows"), rows
            )
    raise ConfigurationError(
        f"{name!r}, seed {seed}: of {_ATTEMPTS} programs none has classes of {_LEAST_SHARE:.0%} or "
        f"more, {_LEAST_DISTINCT:.0%} distinct rows and a share explained within {bounds}; widen "
        "the bounds or draw other programs."
    )


def explained(clues: NDArray[Any], targets: NDArray[Any]) -> float:
    """Share of the targets' variance that a ridge regression explains on rows that it did not fit.

    It sees the clues and 200 random rectified sums of them (Rahimi and Recht, 2008), and fits the
    first two thirds of the rows.

    Args:
        clues: (N, d).
        targets: (N,) classes, which count as one-hot, or (N, d) values.
    """
    scale = clues.std(0)
    x = ((clues - clues.mean(0)) / np.where(scale > 1e-9, scale, 1.0)).clip(-5.0, 5.0)
    rng = generator("explained")
    ways = rng.normal(size=(x.shape[1], _HIDDEN)) / np.sqrt(x.shape[1])
    hidden = np.maximum(x @ ways + 0.5 * rng.normal(size=_HIDDEN), 0.0)
    seen = np.concatenate([x, hidden, np.ones((len(x), 1))], 1)
    whole = np.issubdtype(targets.dtype, np.integer)
    wanted = np.eye(int(targets.max()) + 1)[targets] if whole else targets
    cut = 2 * len(x) // 3
    mean = wanted[:cut].mean(0)
    square = seen[:cut].T @ seen[:cut] + _RIDGE * np.eye(seen.shape[1])
    weights = np.linalg.solve(square, seen[:cut].T @ (wanted[:cut] - mean))
    left = wanted[cut:] - mean
    return float(1.0 - np.square(left - seen[cut:] @ weights).sum() / np.square(left).sum())


def _all_frequent(targets: NDArray[Any]) -> bool:
    if not np.issubdtype(targets.dtype, np.integer):
        return True
    shares = np.bincount(targets) / len(targets)
    return len(shares) > 1 and bool(shares.min() >= _LEAST_SHARE)


def _distinct(inputs: NDArray[Any]) -> float:
    return len({row.tobytes() for row in inputs + 0}) / len(inputs)  # -0.0 is 0.0


def uneven(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """So many shares that sum to 1, none below two fifths of an even one."""
    return np.asarray(0.6 * rng.dirichlet(np.full(n, 1.5)) + 0.4 / n)


def binned(values: NDArray[Any], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which of the intervals that hold such shares of all values each value lies in."""
    cuts = np.quantile(values, shares.cumsum()[:-1])
    return np.asarray(np.searchsorted(cuts, values, side="right"))


def largest(scores: NDArray[np.float64], least: float = 0.04) -> NDArray[np.int64]:
    """The column of the largest score, among those that are so in this share of rows at least.

    Columns that are so in fewer rows stand back, the rarest first; two stay at any rate.
    """
    while True:
        label = scores.argmax(1)
        shares = np.bincount(label, minlength=scores.shape[1]) / len(label)
        if shares.min() >= least or len(shares) == 2:
            return np.asarray(label)
        scores = np.delete(scores, shares.argmin(), 1)
