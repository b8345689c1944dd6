"""Regression on inputs whose directions differ a hundredfold in size."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from .base import Split
from .data import Dataset, dataset, generator, standardise
from .nets import MLP, Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    NORMS,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)

_DIM, _UNITS = 32, 8
_ROWS: dict[Split, int] = {"train": 4096, "inner_valid": 256, "outer_valid": 1024, "test": 1024}
_NOISE = 0.05  # of the standard deviation of the target without it


@cache
def ill_conditioned(condition: int, seed: int) -> Dataset:
    """Rotated normal inputs with variances i**-power, and a target that needs every direction.

    Args:
        condition: Ratio of the largest to the smallest eigenvalue of the inputs' covariance.
        seed: Of rotation, target and rows.
    """
    rng = generator("ill-conditioned", condition, seed)
    n = sum(_ROWS.values())
    z = rng.normal(size=(n, _DIM))
    variances = np.arange(1, _DIM + 1) ** (-np.log(condition) / np.log(_DIM))
    variances /= variances.mean()
    rotation, _ = np.linalg.qr(rng.normal(size=(_DIM, _DIM)))
    x = (z * np.sqrt(variances)) @ rotation
    # Of z, not of x: the directions that are small in x matter as much as the large ones.
    hidden = np.tanh(z @ rng.normal(size=(_DIM, _UNITS)) / np.sqrt(_DIM))
    y = hidden @ rng.normal(size=(_UNITS, 1))
    y = y / y.std() + _NOISE * rng.normal(size=y.shape)
    cuts = np.cumsum(list(_ROWS.values()))[:-1]
    inputs = dict(zip(_ROWS, np.split(x, cuts), strict=True))
    targets = standardise(dict(zip(_ROWS, np.split(y, cuts), strict=True)))
    return dataset(inputs, targets, 1, "values")


class IllConditionedRegression(SupervisedFamily):
    """Regress a smooth function of inputs with an ill-conditioned covariance.

    Data: 6,400 normal inputs of 32, variances falling as a power law by the drawn condition number
    (10,000 by default) under a random rotation; the target is a tanh network of the whitened
    inputs plus 5% noise, so that the small directions matter. 4,096 rows train.
    Model: MLP of 1 to 3 hidden layers of 32 to 64; 6,337 parameters by default.
    Drawn: condition, data seed, width, depth, activation, norm, loss, batch size, gain, loss scale,
    target noise.
    Source: first-order methods slow down with the condition number of the inputs' covariance, as
    in LeCun et al., 1991, "Eigenvalues of Covariance Matrices".
    """

    name = "ill-conditioned-regression"
    dataset = "ill-conditioned"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "condition": (10_000, (100, 1_000, 10_000, 100_000)),
        "data_seed": (1, tuple(range(1, 65))),
        "width": (64, (32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output."""
        data = ill_conditioned(config["condition"], config["data_seed"])
        widths = (_DIM, *(config["width"],) * config["depth"], 1)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data
