"""A family on drawn tables as they lie in companies: numbers, rare categories, a tangled target."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigurationError
from .categories import zipf
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import MLP, Net
from .supervised import (
    ALL_ACTIVATIONS,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_ROWS, _LATENT, _TREES, _DEPTH = 12_288, 4, 24, 4
_NUMBERS: Final[tuple[int, ...]] = (4, 7, 10)
_LEVELS: Final[tuple[int, ...]] = (2, 3, 5, 8, 14, 24, 40)
_LARGEST_SHARE: Final = 0.95  # of all rows, that the largest class may take
_ATTEMPTS: Final = 50  # most tables are sound at once


@cache
def mixed_table(classes: int, sharpness: float, seed: int) -> Dataset:
    """Numbers, some of them skewed, and one-hot categories; a drawn forest tells the class.

    Now and then its classes are so far apart that one takes nearly all rows, and predicting that
    one is nearly all there is to learn: such a table is drawn again.

    Raises:
        ConfigurationError: None of 50 tables is sound.
    """
    for attempt in range(_ATTEMPTS):
        # the first is keyed as if there were no others, so that sound tables are what they were
        again = (attempt,) if attempt else ()
        columns, label = _table(generator("mixed table", classes, seed, *again), classes, sharpness)
        if np.bincount(label).max() <= _LARGEST_SHARE * len(label):
            return in_order(columns, label, classes)
    raise ConfigurationError(
        f"Of {_ATTEMPTS} tables of {classes} classes, sharpness {sharpness} and seed {seed} each "
        f"has one of more than {_LARGEST_SHARE:.0%} of the rows; lower the sharpness."
    )


def _table(
    rng: np.random.Generator, classes: int, sharpness: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Columns (N, d) and classes (N,)."""
    n = n_drawn(_ROWS)
    hidden = rng.normal(size=(n, _LATENT))
    numbers = _numbers(rng, hidden)
    levels = rng.choice(_LEVELS, 4, replace=False)
    hot = [np.eye(size)[_category(rng, hidden, size)] for size in levels]
    columns = np.concatenate([numbers, *hot], 1)
    score = _forest(rng, columns, classes)
    return columns, (sharpness * score + rng.gumbel(size=score.shape)).argmax(1)


def _numbers(rng: np.random.Generator, hidden: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlated columns; a third of them with a heavy tail."""
    count = int(rng.choice(_NUMBERS))
    out = hidden @ rng.normal(size=(_LATENT, count)) / 2 + 0.7 * rng.normal(
        size=(len(hidden), count)
    )
    skewed = rng.random(count) < 1 / 3
    return np.asarray(np.where(skewed, np.sign(out) * np.expm1(np.abs(out)), out))


def _category(
    rng: np.random.Generator, hidden: NDArray[np.float64], size: int
) -> NDArray[np.int64]:
    """A category whose levels are frequent and rare, and lean on what is hidden."""
    lean = hidden @ rng.normal(size=(_LATENT, size)) / 2
    noise = rng.gumbel(size=lean.shape)
    return np.asarray((lean + 1.5 * np.log(zipf(size, 1.0)) + noise).argmax(1))


def _forest(
    rng: np.random.Generator, columns: NDArray[np.float64], classes: int
) -> NDArray[np.float64]:
    """Scores of the classes: the sum of oblivious trees, each of four columns."""
    score = np.zeros((len(columns), classes))
    for _ in range(_TREES):
        picked = rng.choice(columns.shape[1], _DEPTH, replace=False)
        cuts = [np.quantile(columns[:, j], rng.uniform(0.15, 0.85)) for j in picked]
        leaf = sum(
            (columns[:, j] > cut).astype(np.int64) << i
            for i, (j, cut) in enumerate(zip(picked, cuts, strict=True))
        )
        score += rng.normal(size=(2**_DEPTH, classes))[leaf]
    return np.asarray(score / np.sqrt(_TREES))


class ForestMLP(SupervisedFamily):
    """Classify the rows of a drawn table of numbers and one-hot categories with an MLP.

    Data: 12,288 rows; 4 to 10 correlated numbers, some with heavy tails, and four categories of 2
    to 40 levels, frequent and rare, one-hot; every column standardised, so that a rare level is a
    large number. The class is what a forest of 24 drawn trees says, with noise; classes are of
    unequal size, the largest 95% of the rows at most.
    Model: 1 or 2 hidden layers of 24 to 96.
    Drawn: classes, sharpness, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: target after Grinsztajn et al., 2022, arXiv:2207.08815: what trees learn more easily
    than nets is what tables hold.
    """

    name = "forest-mlp"
    dataset = "mixed-table"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "classes": (3, (2, 3, 7)),
        "sharpness": (4.0, (2.0, 4.0, 8.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (48, (24, 32, 48, 64, 96)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on the drawn table."""
        data = mixed_table(config["classes"], config["sharpness"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data
