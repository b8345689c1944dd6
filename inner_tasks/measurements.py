"""Families on drawn measurements: two pendulums, prices with heavy tails, spectra in few rows."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .few_rows import first
from .nets import MLP, Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)

_ROWS: Final = 8_192
_GRAVITY: Final = 9.81
_STEP: Final = 0.01  # seconds of the integrator
_COLUMNS: Final = 16
_BANDS, _COMPOUNDS = 96, 6
_SPECTRA: Final[tuple[int, ...]] = (250, 500, 1_000, 2_000)


def _swing(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time derivative of two pendulums of mass and length 1, one hung from the other.

    State (..., 4): both angles from straight down, both angular velocities.
    """
    a, b, va, vb = np.moveaxis(state, -1, 0)
    sine, cosine = np.sin(a - b), np.cos(a - b)
    # the two equations of motion, solved for the accelerations
    first_force = -(vb**2) * sine - 2.0 * _GRAVITY * np.sin(a)
    second_force = va**2 * sine - _GRAVITY * np.sin(b)
    below = 2.0 - cosine**2
    return np.stack(
        [
            va,
            vb,
            (first_force - cosine * second_force) / below,
            (2.0 * second_force - cosine * first_force) / below,
        ],
        -1,
    )


@cache
def pendulums(ahead: int, noise: float, seed: int) -> Dataset:
    """Angles (as sines and cosines) and velocities now; where both pendulums are a moment later."""
    rng = generator("pendulums", ahead, seed)
    n = n_drawn(_ROWS)
    start = np.concatenate([rng.uniform(-np.pi, np.pi, (n, 2)), rng.uniform(-4.0, 4.0, (n, 2))], 1)
    state = start
    for _ in range(ahead):  # Runge and Kutta's fourth order
        k1 = _swing(state)
        k2 = _swing(state + 0.5 * _STEP * k1)
        k3 = _swing(state + 0.5 * _STEP * k2)
        k4 = _swing(state + _STEP * k3)
        state = state + _STEP / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    def seen(s: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([np.sin(s[:, :2]), np.cos(s[:, :2]), s[:, 2:]], 1)

    x = seen(start)
    x = x + noise * x.std(0) * rng.normal(size=x.shape)
    return in_order(x, seen(state), 6, kind="values")


class PendulumMLP(SupervisedFamily):
    """Predict where a double pendulum will be in a fifth to half a second, with an MLP.

    Data: 8,192 states, seen with noise, and the integrated ones.
    Model: 1 to 3 hidden layers of 24 to 64.
    Drawn: time ahead, noise, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: Shinbrot et al., 1992, "Chaos in a double pendulum"; Lagrange's equations of motion.
    """

    name = "pendulum-mlp"
    dataset = "pendulums"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "ahead": (30, (20, 30, 50)),
        "noise": (0.02, (0.0, 0.02, 0.1)),
        "data_seed": (1, DATA_SEEDS),
        "width": (48, (24, 32, 48, 64)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` of six numbers to six."""
        data = pendulums(config["ahead"], config["noise"], config["data_seed"])
        widths = (6, *(config["width"],) * config["depth"], 6)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


@cache
def prices(tail: float, seed: int) -> Dataset:
    """Columns that depend on each other, some skewed or missing, and a price with outliers."""
    rng = generator("prices", int(10 * tail), seed)
    n, known = n_drawn(_ROWS), 12
    hidden = rng.normal(size=(n, 5))
    columns = hidden @ rng.normal(size=(5, known)) + 0.7 * rng.normal(size=(n, known))
    columns[:, ::3] = np.exp(0.8 * columns[:, ::3])  # a third of them are log-normal
    missing = rng.random((n, _COLUMNS - known)) < 0.2
    columns[:, : _COLUMNS - known][missing] = 0.0
    inner, outer = rng.normal(size=(5, 12)), rng.normal(size=12)
    price = np.maximum(hidden @ inner + rng.normal(size=12), 0.0) @ outer
    noise = rng.standard_t(tail, size=n) * 0.3 * price.std()
    x = np.concatenate([columns, missing.astype(float)], 1)
    return in_order(x, (price + noise)[:, None], 1, kind="values")


class PricesMLP(SupervisedFamily):
    """Predict a price with heavy tails from twelve columns, some skewed or missing, with an MLP.

    Data: 8,192 rows; the noise has Student's distribution of 2 to 10 degrees of freedom, a third
    of the columns is log-normal, and four have a fifth of their values missing, which four more
    columns say.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: degrees of freedom, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: heavy-tailed noise after Huber, 1964, "Robust Estimation of a Location Parameter".
    """

    name = "prices-mlp"
    dataset = "prices"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "tail": (3.0, (2.0, 3.0, 10.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 64)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("huber", ("huber", "huber", "squared-error")),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output."""
        data = prices(config["tail"], config["data_seed"])
        widths = (_COLUMNS, *(config["width"],) * config["depth"], 1)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


@cache
def spectra(noise: float, seed: int) -> Dataset:
    """Mixtures of six compounds' spectra over 96 bands; the class has the largest share."""
    rng = generator("spectra", int(100 * noise), seed)
    n = n_drawn(max(_SPECTRA))
    band = np.arange(_BANDS)
    centre = rng.uniform(0, _BANDS, (_COMPOUNDS, 5, 1))
    width, height = rng.uniform(2.0, 8.0, (_COMPOUNDS, 5, 1)), rng.random((_COMPOUNDS, 5, 1))
    pure = (height * np.exp(-0.5 * ((band - centre) / width) ** 2)).sum(1)
    share = rng.dirichlet(np.full(_COMPOUNDS, 0.7), n)
    # the lamp's brightness and a slope belong to the recording, not to what is in the sample
    lamp = rng.uniform(0.5, 1.5, (n, 1))
    slope = 0.5 * rng.normal(size=(n, 1)) * np.linspace(-1.0, 1.0, _BANDS)
    x = lamp * (share @ pure) + slope + noise * rng.normal(size=(n, _BANDS))
    return in_order(x, share.argmax(1), _COMPOUNDS)


class SpectraFew(SupervisedFamily):
    """Tell a mixture's main compound by its spectrum, from few recordings, with an MLP.

    Data: 250 to 2,000 spectra of 96 bands that overlap, with noise, brightness and slope.
    Model: none (linear) to 2 hidden layers of 24 to 64.
    Drawn: noise, rows, data seed, width, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: Beer's law, as in Swinehart, 1962, "The Beer-Lambert Law"; made here.
    """

    name = "spectra-few"
    dataset = "spectra"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "noise": (0.1, (0.05, 0.1, 0.2)),
        "rows": (500, _SPECTRA),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (24, 32, 48, 64)),
        "depth": (1, (0, 1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few rows."""
        data = spectra(config["noise"], config["data_seed"])
        widths = (_BANDS, *(config["width"],) * config["depth"], _COMPOUNDS)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, first(data, config["rows"])
