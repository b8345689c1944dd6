"""Data sets that are drawn: rows are independent, so the splits take them in order."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..core.types import IntArray
from .base import Split
from .data import Dataset, dataset, standardise

#: Rows held out of every drawn data set: `inner_valid`, `outer_valid`, `test`.
N_HELD_OUT: Final[tuple[int, int, int]] = (256, 1024, 1024)
#: Seeds that a family draws its data from.
DATA_SEEDS: Final[tuple[int, ...]] = tuple(range(1, 17))


def n_drawn(n_train: int) -> int:
    """Rows to draw so that `n_train` are left to train on."""
    return n_train + sum(N_HELD_OUT)


def distinct_cells(log_chance: NDArray[np.float64], n: int, rng: np.random.Generator) -> IntArray:
    """So many different cells of a table, likelier where the chance is larger.

    Args:
        log_chance: Of each cell, any shape; -inf for never.
        n: How many; no more than the table has.
        rng: Draws them.

    Returns:
        (n, dimensions) indices, in random order.
    """
    # the largest of perturbed logs: sampling without replacement, so no cell is in two splits
    score = (log_chance + rng.gumbel(size=log_chance.shape)).ravel()
    cells = np.argpartition(-score, n)[:n]
    return np.stack(np.unravel_index(rng.permutation(cells), log_chance.shape), 1)


def in_order(
    x: NDArray[Any],
    y: NDArray[Any],
    n_outputs: int,
    *,
    kind: str = "classes",
    per_column: bool = True,
) -> Dataset:
    """Rows in order: 256 `inner_valid`, 1,024 `outer_valid`, 1,024 `test`, the rest `train`.

    Args:
        x: Inputs, (N, ...); standardised by `train` unless they are integers.
        y: Targets, (N, ...) classes or (N, d) values; values are standardised.
        n_outputs: Classes, size of the vocabulary, or d.
        kind: "classes" or "values".
        per_column: False standardises all inputs by one mean and variance, as for images.
    """
    names: tuple[Split, ...] = ("inner_valid", "outer_valid", "test", "train")
    cuts = np.cumsum(N_HELD_OUT)
    inputs = dict(zip(names, np.split(x, cuts), strict=True))
    targets = dict(zip(names, np.split(y, cuts), strict=True))
    if not np.issubdtype(x.dtype, np.integer):
        inputs = {**standardise(inputs, per_column=per_column)}
    if kind == "values":
        targets = {**standardise(targets)}
    return dataset(inputs, targets, n_outputs, kind)
