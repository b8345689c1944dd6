"""Families on drawn signals: classes of waveforms, and the next value of a chaotic series."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from .conv1d_nets import StridedConv1d
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
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

_ROWS, _LENGTH = 6_144, 48
WAVES: Final = (
    "sine", "square", "sawtooth", "triangle", "rising chirp", "falling chirp", "pulse train",
    "modulated sine",
)  # fmt: skip
_SERIES, _WINDOW = 512, 16


def waves(kind: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Waveforms (N, 48) of these kinds, 2 to 5 periods long, with a phase and size of their own."""
    n = len(kind)
    time = np.linspace(0.0, 1.0, _LENGTH, endpoint=False)
    periods, start = rng.uniform(2.0, 5.0, (n, 1)), rng.random((n, 1))
    cycle = periods * time + start
    sine, part = np.sin(2.0 * np.pi * cycle), cycle % 1.0
    made = {
        "sine": sine,
        "square": np.sign(sine),
        "sawtooth": 2.0 * part - 1.0,
        "triangle": 4.0 * np.abs(part - 0.5) - 1.0,
        "rising chirp": np.sin(2.0 * np.pi * (periods * time * (0.5 + time) + start)),
        "falling chirp": np.sin(2.0 * np.pi * (periods * time * (1.5 - time) + start)),
        "pulse train": np.where(part < 0.2, 1.0, -0.25),
        "modulated sine": sine * (1.0 + np.sin(2.0 * np.pi * (3.0 * cycle + start))),
    }
    chosen = np.stack([made[name] for name in WAVES])[kind, np.arange(n)]
    return np.asarray(chosen * rng.uniform(0.6, 1.4, (n, 1)))


@cache
def waveforms(noise: float, seed: int) -> Dataset:
    """Noisy signals of 48 samples, eight classes."""
    rng = generator("waveforms", seed)
    kind = rng.integers(len(WAVES), size=n_drawn(_ROWS))
    x = waves(kind, rng)
    x = x + noise * rng.normal(size=x.shape)
    return in_order(x, kind, len(WAVES), per_column=False)


class SignalConv(SupervisedFamily):
    """Classify noisy waveforms with strided one-dimensional convolutions.

    Data: 6,144 signals of 48 samples, eight kinds (sine, square, chirps, ...) of random frequency,
    phase and size.
    Model: 2 to 4 convolutions of kernel 4, stride 2, 6 to 16 channels at first, and a linear layer.
    Drawn: noise, data seed, channels, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "signal-conv"
    dataset = "waveforms"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "noise": (0.3, (0.15, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "width": (8, (6, 8, 12, 16)),
        "depth": (3, (2, 3, 4)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` whose channels grow by half with each layer."""
        channels = tuple(config["width"] * 3**i // 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = StridedConv1d(_LENGTH, channels, len(WAVES), *shape)
        return net, waveforms(config["noise"], config["data_seed"])


# Both by products and sums alone: they are the same to the last digit on every machine, where a
# power from a library is not, and chaos makes a last digit the whole value.
def mackey_glass(starts: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(S, n) values, 3 time units apart, of x' = 0.2 x(t-17) / (1 + x(t-17)**10) - 0.1 x.

    Euler steps of 1/4 from constant histories; the first 50 values are dropped.

    Args:
        starts: (S,) values of the histories, around 1.
        n: Values to keep.
    """
    step, delay, every = 0.25, 68, 12
    x = np.empty((delay + 1 + (50 + n) * every, len(starts)))
    x[: delay + 1] = starts
    for t in range(delay, len(x) - 1):
        old = x[t - delay]
        square = old * old
        fourth = square * square
        x[t + 1] = x[t] + step * (0.2 * old / (1.0 + fourth * fourth * square) - 0.1 * x[t])
    return x[delay + 1 + 50 * every :: every].T


def lorenz(starts: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(S, n) first coordinates, 0.1 time units apart, of Lorenz's system (10, 28, 8/3).

    Euler steps of 1/400, which is a system of its own with the same look; the first 50 values are
    dropped.

    Args:
        starts: (S,) values near 1 of all three coordinates.
        n: Values to keep.
    """
    step, every = 0.0025, 40
    x, y, z = starts.copy(), starts + 1.0, starts + 20.0
    kept = []
    for t in range((50 + n) * every):
        if t >= 50 * every and t % every == 0:
            kept.append(x)
        x, y, z = (
            x + step * 10.0 * (y - x),
            y + step * (x * (28.0 - z) - y),
            z + step * (x * y - 8.0 / 3.0 * z),
        )
    return np.stack(kept, 1)


@cache
def series(system: str, ahead: int, noise: float, seed: int) -> Dataset:
    """Windows that do not overlap, of 512 series; only those at the three seams meet two splits."""
    rng = generator("chaos", system, seed)
    span = _WINDOW + ahead
    each = -(-n_drawn(_ROWS) // _SERIES)
    solve = mackey_glass if system == "mackey-glass" else lorenz
    values = solve(rng.uniform(0.5, 1.5, _SERIES), each * span)
    rows = values.reshape(_SERIES * each, span)
    x = rows[:, :_WINDOW] + noise * values.std() * rng.normal(size=(len(rows), _WINDOW))
    return in_order(x, rows[:, -1:], 1, kind="values", per_column=False)


class ChaosMLP(SupervisedFamily):
    """Predict a chaotic series some steps ahead from its last 16 values, with an MLP.

    Data: 6,400 windows of the Mackey-Glass or the Lorenz system, noise on what is seen.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: system, steps ahead, noise, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, target noise.
    Source: Mackey and Glass, 1977; Lorenz, 1963.
    """

    name = "chaos-mlp"
    dataset = "chaos"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "system": ("mackey-glass", ("mackey-glass", "lorenz")),
        "ahead": (6, (2, 4, 6)),
        "noise": (0.02, (0.01, 0.02, 0.05)),
        "data_seed": (1, DATA_SEEDS[:4]),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output."""
        data = series(config["system"], config["ahead"], config["noise"], config["data_seed"])
        widths = (_WINDOW, *(config["width"],) * config["depth"], 1)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data
