"""Families on small images: how long the way through a maze is, which way a stroke goes."""

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
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_MAZE, _SIDE = 8, 12
_ROWS: Final = 6_144
_LENGTHS, _WAYS, _MOST_STROKES = 3, 8, 3


@cache
def _mazes(walls: float, seed: int) -> Dataset:
    """Fields with walls; the class says how long the way from the top to the bottom row is.

    There is none, a short one, or a long one as often as a short one.
    """
    rng = generator("mazes", int(100 * walls), seed)
    n = n_drawn(_ROWS)
    free = rng.random((n, _MAZE, _MAZE)) >= walls
    far = _MAZE * _MAZE
    steps = np.full((n, _MAZE + 2, _MAZE + 2), far)
    inside = steps[:, 1:-1, 1:-1]
    inside[:, 0] = np.where(free[:, 0], 0, far)
    while True:
        near = np.minimum.reduce(
            [steps[:, :-2, 1:-1], steps[:, 2:, 1:-1], steps[:, 1:-1, :-2], steps[:, 1:-1, 2:]]
        )
        shorter = np.where(free, np.minimum(inside, near + 1), far)
        if (shorter == inside).all():
            break
        inside[:] = shorter
    way = inside[:, -1].min(1)
    # what lies between two lengths is decided by chance, so that the classes are as frequent
    there = way < far
    label = np.zeros(n, np.int64)
    rank = (way[there] + 0.999 * rng.random(there.sum())).argsort().argsort()
    label[there] = 1 + rank * (_LENGTHS - 1) // max(1, there.sum())
    return in_order(free.reshape(n, -1).astype(float), label, _LENGTHS, per_column=False)


class MazesCNN(SupervisedFamily):
    """Say how long the way through a maze is, with strided convolutions.

    Data: 6,144 fields of 8x8 with walls at random; no way from top to bottom, a short one or a long
    one, between which chance decides where they tie.
    Model: 1 to 3 convolutions of 3x3, stride 2, 6 to 12 channels at first, and a linear layer.
    Drawn: share of walls, data seed, channels, depth, activation, norm (none or layer), loss, batch
    size, gain, scales, label noise.
    Source: Lee, 1961, "An Algorithm for Path Connections and Its Applications"; strides after
    Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "mazes-cnn"
    dataset = "mazes"
    architecture = "strided-cnn"
    settings: ClassVar[Settings] = {
        "walls": (0.35, (0.3, 0.35, 0.4)),
        "data_seed": (1, DATA_SEEDS),
        "channels": (8, (6, 8, 12)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` on one channel."""
        channels = tuple(config["channels"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = StridedCNN(1, _MAZE, channels, _LENGTHS, *shape)
        return net, _mazes(config["walls"], config["data_seed"])


@cache
def _strokes(noise: float, seed: int) -> Dataset:
    """One to three strokes that fade towards their end; the class is where the longest one goes."""
    rng = generator("strokes", int(100 * noise), seed)
    n = n_drawn(_ROWS)
    y, x = np.mgrid[:_SIDE, :_SIDE]
    count = rng.integers(1, _MOST_STROKES + 1, size=n)
    images = noise * rng.normal(size=(n, _SIDE, _SIDE))
    way = rng.uniform(0.0, 2.0 * np.pi, (n, _MOST_STROKES))
    length = rng.uniform(2.0, 4.0, (n, _MOST_STROKES))
    length[:, 0] += 3.0
    for stroke in range(_MOST_STROKES):
        angle, size = way[:, stroke, None, None], length[:, stroke, None, None]
        middle = rng.uniform(3.5, _SIDE - 4.5, (2, n, 1, 1))
        along = (x - middle[0]) * np.cos(angle) + (y - middle[1]) * np.sin(angle)
        across = (y - middle[1]) * np.cos(angle) - (x - middle[0]) * np.sin(angle)
        light = np.clip(0.75 - along / size, 0.0, None) * (np.abs(along) <= size / 2.0)
        there = (count > stroke)[:, None, None]
        images = images + there * light * np.exp(-(across**2))
    label = np.floor(way[:, 0] / (2.0 * np.pi) * _WAYS).astype(np.int64)
    return in_order(images.reshape(n, -1), label, _WAYS, per_column=False)


class StrokesMixer(SupervisedFamily):
    """Say where the longest stroke of an image goes, with an MLP-Mixer.

    Data: 6,144 images of one to three strokes, brighter where they begin, under noise; eight
    directions.
    Model: nine patches, 1 or 2 blocks, width 12 to 24.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    name = "strokes-mixer"
    dataset = "strokes"
    architecture = "mixer"
    settings: ClassVar[Settings] = {
        "noise": (0.2, (0.1, 0.2, 0.4)),
        "data_seed": (1, DATA_SEEDS),
        "width": (16, (12, 16, 24)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Mixer` with eight outputs."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = Mixer(_SIDE, 4, config["width"], config["depth"], _WAYS, *shape)
        return net, _strokes(config["noise"], config["data_seed"])
