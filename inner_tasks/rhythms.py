"""Families on series: how the water will stand, which rhythm is beaten."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .conv1d_nets import StridedConv1d
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import Net
from .sequence_nets import Recurrent
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

_ROWS: Final = 6_144
_SEEN, _AHEAD = 48, 8
_BEATS, _DRUMS, _RHYTHMS = 24, 3, 6


@cache
def tides(weather: float, seed: int) -> Dataset:
    """Heights of water over 48 hours at some place and the eight that follow: tides and weather."""
    rng = generator("tides", int(100 * weather), seed)
    n = n_drawn(_ROWS)
    hour = np.arange(_SEEN + _AHEAD)
    period = np.array([12.42, 12.0, 23.93, 25.82])
    size = rng.gamma(2.0, 0.5, (n, 4)) * np.array([1.0, 0.5, 0.3, 0.2])
    phase = rng.uniform(0.0, 2.0 * np.pi, (n, 4))
    height = np.zeros((n, len(hour)))
    for i in range(4):
        height += size[:, i : i + 1] * np.cos(2.0 * np.pi * hour / period[i] + phase[:, i : i + 1])
    height += 0.2 * np.square(height)  # shallow water
    wind = np.zeros(n)
    for t in hour:
        wind = 0.9 * wind + weather * rng.normal(size=n)
        height[:, t] += wind
    return in_order(height[:, :_SEEN], height[:, _SEEN:], _AHEAD, kind="values", per_column=False)


class TidesConv(SupervisedFamily):
    """Foretell eight hours of tides from 48, with strided one-dimensional convolutions.

    Data: 6,144 drawn places with four tidal waves, shallow water, and weather that stays a while.
    Model: 1 to 3 convolutions of kernel 4, stride 2, 6 to 16 channels at first, and a linear layer.
    Drawn: weather, data seed, channels, depth, activation, norm, loss, batch size, gain, scales,
    target noise.
    Source: tides as sums of waves after Thomson, 1881; strides in place of pooling after
    Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "tides-conv"
    dataset = "tides"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "weather": (0.1, (0.03, 0.1, 0.3)),
        "data_seed": (1, DATA_SEEDS),
        "width": (8, (6, 8, 12, 16)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` with eight outputs."""
        channels = tuple(config["width"] * 3**i // 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = StridedConv1d(_SEEN, channels, _AHEAD, *shape)
        return net, tides(config["weather"], config["data_seed"])


@cache
def rhythms(slips: float, seed: int) -> Dataset:
    """Beats of three drums over 24 steps, from some place on, with slips; the class is the rhythm.

    Inputs (N, steps, drums).
    """
    rng = generator("rhythms", int(100 * slips), seed)
    n = n_drawn(_ROWS)
    lengths = rng.permutation(np.array([4, 6, 8, 4, 6, 8]))
    patterns = [(rng.random((length, _DRUMS)) < 0.45) for length in lengths]
    label = rng.integers(_RHYTHMS, size=n)
    begin = rng.integers(24, size=n)
    beats = np.zeros((n, _BEATS, _DRUMS))
    for rhythm, pattern in enumerate(patterns):
        mine = np.flatnonzero(label == rhythm)
        step = (begin[mine, None] + np.arange(_BEATS)) % len(pattern)
        beats[mine] = pattern[step]
    slipped = rng.random(beats.shape) < slips
    loud = np.abs(beats - slipped) * rng.uniform(0.6, 1.4, beats.shape)
    return in_order(loud + 0.1 * rng.normal(size=beats.shape), label, _RHYTHMS)


class RhythmsRNN(SupervisedFamily):
    """Name the rhythm that three drums beat, with an RNN.

    Data: 6,144 pieces of 24 steps of one of six drawn rhythms, which begin anywhere; beats slip and
    are of unequal strength.
    Model: one recurrent layer of 16 to 48 with tanh, read out after the last step.
    Drawn: slips, data seed, width, norm, loss, batch size, gain, scales, label noise.
    Source: Elman, 1990, "Finding Structure in Time".
    """

    name = "rhythms-rnn"
    dataset = "rhythms"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "slips": (0.1, (0.05, 0.1, 0.2)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over steps."""
        net = Recurrent(
            n_inputs=_DRUMS,
            width=config["width"],
            n_outputs=_RHYTHMS,
            cell="rnn",
            last_only=True,
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, rhythms(config["slips"], config["data_seed"])
