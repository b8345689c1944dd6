"""Families on drawn images of 12 x 12: how many spots, which way stripes run, where water runs."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .mixing_nets import Mixer
from .nets import Net, StridedCNN
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)

SIDE: Final = 12
_ROWS: Final = 6_144
_MOST_SPOTS: Final = 6


@cache
def spots(noise: float, seed: int) -> Dataset:
    """None to six round spots of several sizes and brightnesses; the class is their number."""
    rng = generator("spots", int(100 * noise), seed)
    n = n_drawn(_ROWS)
    count = rng.integers(_MOST_SPOTS + 1, size=n)
    y, x = np.mgrid[:SIDE, :SIDE]
    images = noise * rng.normal(size=(n, SIDE, SIDE))
    for spot in range(_MOST_SPOTS):
        centre = rng.uniform(1.0, SIDE - 2.0, (2, n, 1, 1))
        radius, light = rng.uniform(0.7, 1.3, (n, 1, 1)), rng.uniform(0.6, 1.4, (n, 1, 1))
        distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        there = (count > spot)[:, None, None]
        images = images + there * light * np.exp(-0.5 * distance / radius**2)
    return in_order(images.reshape(n, -1), count, _MOST_SPOTS + 1, per_column=False)


class SpotsCNN(SupervisedFamily):
    """Count the spots of an image with strided convolutions.

    Data: 6,144 images with none to six spots, which may touch, under noise.
    Model: 1 to 3 convolutions of 3x3, stride 2, 6 to 12 channels at first, and a linear layer.
    Drawn: noise, data seed, channels, depth, activation, norm (none or layer), loss, batch size,
    gain, scales, label noise.
    Source: counting after Segui et al., 2015, "Learning to count with deep object features",
    arXiv:1505.08082; strides after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "spots-cnn"
    dataset = "spots"
    architecture = "strided-cnn"
    settings: ClassVar[Settings] = {
        "noise": (0.15, (0.05, 0.15, 0.3)),
        "data_seed": (1, DATA_SEEDS),
        "channels": (8, (6, 8, 12)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` whose channels double from layer to layer."""
        channels = tuple(config["channels"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = StridedCNN(1, SIDE, channels, _MOST_SPOTS + 1, *shape)
        return net, spots(config["noise"], config["data_seed"])


@cache
def gratings(noise: float, seed: int) -> Dataset:
    """Stripes of any direction, width and phase; the target is twice the angle, on the circle."""
    rng = generator("gratings", int(100 * noise), seed)
    n = n_drawn(_ROWS)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2.0
    angle, phase = rng.uniform(0.0, np.pi, (n, 1, 1)), rng.uniform(0.0, 2.0 * np.pi, (n, 1, 1))
    waves = 2.0 * np.pi / rng.uniform(3.0, 6.0, (n, 1, 1))
    light = rng.uniform(0.5, 1.5, (n, 1, 1))
    images = light * np.sin(waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    images = images + noise * rng.normal(size=images.shape)
    twice = 2.0 * angle.reshape(n, 1)
    target = np.concatenate([np.cos(twice), np.sin(twice)], 1)
    return in_order(images.reshape(n, -1), target, 2, kind="values", per_column=False)


class GratingsMixer(SupervisedFamily):
    """Read off which way stripes run, with an MLP-Mixer.

    Data: 6,144 images of stripes under noise; the answer is the cosine and sine of twice the angle.
    Model: nine patches, 1 or 2 blocks, width 12 to 24.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales,
    target noise.
    Source: gratings after Campbell and Robson, 1968; net of Tolstikhin et al., 2021,
    arXiv:2105.01601.
    """

    name = "gratings-mixer"
    dataset = "gratings"
    architecture = "mixer"
    settings: ClassVar[Settings] = {
        "noise": (0.5, (0.2, 0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (16, (12, 16, 24)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, *BATCH_SIZES)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Mixer` with two outputs."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = Mixer(SIDE, 4, config["width"], config["depth"], 2, *shape)
        return net, gratings(config["noise"], config["data_seed"])


@cache
def ground(porous: float, seed: int) -> Dataset:
    """Porous ground; the target is how deep water gets, from above, as a share of the depth."""
    rng = generator("ground", int(100 * porous), seed)
    n = n_drawn(_ROWS)
    open_ = rng.random((n, SIDE, SIDE)) < porous + rng.uniform(-0.1, 0.1, (n, 1, 1))
    wet = np.zeros_like(open_)
    wet[:, 0] = open_[:, 0]
    while True:  # into every open neighbour, until nothing changes
        near = wet.copy()
        near[:, 1:] |= wet[:, :-1]
        near[:, :-1] |= wet[:, 1:]
        near[:, :, 1:] |= wet[:, :, :-1]
        near[:, :, :-1] |= wet[:, :, 1:]
        near &= open_
        if (near == wet).all():
            break
        wet = near
    depth = (wet.any(2) * np.arange(1, SIDE + 1)).max(1) / SIDE
    return in_order(
        open_.reshape(n, -1).astype(float), depth[:, None], 1, kind="values", per_column=False
    )


class GroundCNN(SupervisedFamily):
    """Tell how deep water gets into porous ground, with strided convolutions.

    Data: 6,144 pieces of ground, each cell open or not around the share at which water gets through
    (percolation): what one cell is may decide.
    Model: 1 to 3 convolutions of 3x3, stride 2, 6 to 12 channels at first, and a linear layer.
    Drawn: porosity, data seed, channels, depth, activation, norm (none or layer), loss, batch size,
    gain, scales, target noise.
    Source: Broadbent and Hammersley, 1957; strides after Springenberg et al., 2014,
    arXiv:1412.6806.
    """

    name = "ground-cnn"
    dataset = "ground"
    architecture = "strided-cnn"
    settings: ClassVar[Settings] = {
        "porous": (0.6, (0.5, 0.6, 0.7)),
        "data_seed": (1, DATA_SEEDS),
        "channels": (8, (6, 8, 12)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", ("none", "layer")),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, *BATCH_SIZES)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` with one output."""
        channels = tuple(config["channels"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        return StridedCNN(1, SIDE, channels, 1, *shape), ground(
            config["porous"], config["data_seed"]
        )
