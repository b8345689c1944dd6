"""Families on the sky: where a planet stands, what kind a light curve is of."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .conv1d_nets import StridedConv1d
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .few_rows import FEW_ROWS, first
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
_NIGHTS, _KINDS = 64, 6


@cache
def _orbits(eccentric: float, seed: int) -> Dataset:
    """Elements of an orbit and a time; the target is where in its plane the planet stands then."""
    rng = generator("orbits", int(100 * eccentric), seed)
    n = n_drawn(_ROWS)
    eccentricity = eccentric * np.sqrt(rng.random(n))
    axis, turned = rng.uniform(0.5, 1.5, n), rng.uniform(-np.pi, np.pi, n)
    begun, time = rng.uniform(-np.pi, np.pi, n), rng.uniform(0.0, 2.0, n)
    mean = begun + time * axis**-1.5
    anomaly = mean + eccentricity * np.sin(mean)
    for _ in range(40):  # Kepler's equation, by Newton's method
        error = anomaly - eccentricity * np.sin(anomaly) - mean
        anomaly = anomaly - error / (1.0 - eccentricity * np.cos(anomaly))
    along = axis * (np.cos(anomaly) - eccentricity)
    across = axis * np.sqrt(1.0 - eccentricity**2) * np.sin(anomaly)
    place = [
        along * np.cos(turned) - across * np.sin(turned),
        along * np.sin(turned) + across * np.cos(turned),
    ]
    seen = [axis, eccentricity, time]
    for angle in (turned, begun):
        seen += [np.cos(angle), np.sin(angle)]
    return in_order(np.stack(seen, 1), np.stack(place, 1), 2, kind="values")


class OrbitsMLP(SupervisedFamily):
    """Say where a planet stands from the elements of its orbit, with an MLP.

    Data: 8,192 drawn orbits and times, seven numbers each, to two coordinates; no noise but a drawn
    one.
    Model: 1 to 3 hidden layers of 24 to 64.
    Drawn: largest eccentricity, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: Kepler, 1609, "Astronomia nova".
    """

    name = "orbits-mlp"
    dataset = "orbits"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "eccentric": (0.6, (0.3, 0.6, 0.9)),
        "data_seed": (1, DATA_SEEDS),
        "width": (48, (24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` of seven numbers."""
        widths = (7, *(config["width"],) * config["depth"], 2)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, _orbits(config["eccentric"], config["data_seed"])


@cache
def _stars(noise: float, seed: int) -> Dataset:
    """Brightness of stars over 64 nights; the class is why it changes, if it does.

    Nothing, an eclipse now and then, slow fading after quick rises, a wave, two waves that beat, a
    single flare.
    """
    rng = generator("stars", int(100 * noise), seed)
    n = n_drawn(max(FEW_ROWS))
    night = np.arange(_NIGHTS)[None, :]
    kind = rng.integers(_KINDS, size=n)
    period, phase = rng.uniform(6.0, 24.0, (n, 1)), rng.random((n, 1))
    cycle = (night / period + phase) % 1.0
    other = np.sin(2.0 * np.pi * (night / (period * rng.uniform(0.7, 0.9, (n, 1))) + phase))
    flare = rng.uniform(0.0, _NIGHTS - 8.0, (n, 1))
    after = np.clip(night - flare, 0.0, None)
    curves = [
        np.zeros((n, _NIGHTS)),
        -1.5 * (cycle < rng.uniform(0.1, 0.25, (n, 1))),
        1.0 - 2.0 * cycle,
        np.sin(2.0 * np.pi * cycle),
        0.6 * (np.sin(2.0 * np.pi * cycle) + other),
        3.0 * (night >= flare) * np.exp(-after / rng.uniform(2.0, 8.0, (n, 1))),
    ]
    light = np.stack(curves)[kind, np.arange(n)] * rng.uniform(0.6, 1.4, (n, 1))
    return in_order(light + noise * rng.normal(size=light.shape), kind, _KINDS, per_column=False)


class StarsFew(SupervisedFamily):
    """Tell why a star's brightness changes, with one-dimensional convolutions that saw few stars.

    Data: 300 to 2,400 drawn light curves of 64 nights to train on, of six kinds, under noise.
    Model: 1 to 3 convolutions of kernel 4, stride 2, 6 to 16 channels at first, and a linear layer.
    Drawn: noise, rows, data seed, channels, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: light curves by kind after Debosscher et al., 2007, arXiv:0711.0703; strides in place of
    pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "stars-few"
    dataset = "stars"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "noise": (0.7, (0.4, 0.7, 1.0)),
        "rows": (1200, FEW_ROWS),
        "data_seed": (1, DATA_SEEDS),
        "width": (8, (6, 8, 12, 16)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` on few curves."""
        channels = tuple(config["width"] * 3**i // 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = StridedConv1d(_NIGHTS, channels, _KINDS, *shape)
        return net, first(_stars(config["noise"], config["data_seed"]), config["rows"])
