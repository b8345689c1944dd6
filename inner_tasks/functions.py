"""Families that regress drawn functions: Friedman's, and random fields over the plane."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from ..core.errors import MissingExtraError
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
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

_FIELD_ROWS, _WAVES = 8_192, 48


@cache
def friedman(problem: int, rows: int, noise: float, seed: int) -> Dataset:
    """One of Friedman's problems; `noise` is a share of the target's standard deviation."""
    try:
        from sklearn import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "tasks") from error
    rng = generator("friedman", problem, rows, seed)
    state = int(rng.integers(2**31))
    x, y = getattr(datasets, f"make_friedman{problem}")(n_samples=n_drawn(rows), random_state=state)
    y = y + noise * y.std() * rng.normal(size=y.shape)
    return in_order(x, y[:, None], 1, kind="values")


class FriedmanMLP(SupervisedFamily):
    """Regress Friedman's functions from few noisy rows with an MLP, which can overfit them.

    Data: scikit-learn's make_friedman1, 2 or 3, 100 to 800 rows to train on; noise of 0.1 to 0.6
    of the target's deviation, in the held-out rows too.
    Model: 1 to 4 hidden layers of 16 to 64.
    Drawn: problem, rows, noise, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: Friedman, 1991, "Multivariate Adaptive Regression Splines".
    """

    name = "friedman-mlp"
    dataset = "friedman"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "problem": (1, (1, 2, 3)),
        "rows": (400, (100, 200, 400, 800)),
        "noise": (0.3, (0.1, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3, 4)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output."""
        data = friedman(config["problem"], config["rows"], config["noise"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], 1)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


@cache
def plane_field(features: int, roughness: float, seed: int) -> Dataset:
    """A sum of plane waves, and the point's Fourier features as inputs."""
    rng = generator("field", features, seed)
    points = rng.uniform(-1.0, 1.0, (n_drawn(_FIELD_ROWS), 2))
    frequency = 2.0 * np.pi * roughness * rng.normal(size=(2, _WAVES))
    # The amplitude of a wave falls with its frequency, which is what makes the field smooth.
    size = 1.0 / (1.0 + np.square(frequency).sum(0) / (2.0 * np.pi * roughness) ** 2)
    phase = rng.uniform(0.0, 2.0 * np.pi, _WAVES)
    y = (size * np.cos(points @ frequency + phase)).sum(1, keepdims=True)
    seen = points @ (np.pi * rng.normal(size=(2, features // 2)))
    x = np.concatenate([np.sin(seen), np.cos(seen)], 1)
    return in_order(x, y + 0.01 * y.std() * rng.normal(size=y.shape), 1, kind="values")


class CoordinateMLP(SupervisedFamily):
    """Fit a smooth random field over the plane from Fourier features, with a deep narrow MLP.

    Data: 8,192 points in a square and the field's value there, a sum of 48 plane waves; noise of
    1% of its deviation. Inputs are 8 to 32 sines and cosines of the coordinates.
    Model: 2 to 6 hidden layers of 12 to 32.
    Drawn: features, roughness, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: Tancik et al., 2020, arXiv:2006.10739.
    """

    name = "coordinate-mlp"
    dataset = "plane-field"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "features": (16, (8, 16, 32)),
        "roughness": (0.8, (0.5, 0.8, 1.2)),
        "data_seed": (1, DATA_SEEDS),
        "width": (24, (12, 16, 24, 32)),
        "depth": (4, (2, 3, 4, 5, 6)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (64, (*BATCH_SIZES, 256)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output."""
        data = plane_field(config["features"], config["roughness"], config["data_seed"])
        widths = (config["features"], *(config["width"],) * config["depth"], 1)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data
