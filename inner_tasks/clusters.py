"""Classification of drawn clusters by a residual MLP, and of drawn outlines by deep sets."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .mixing_nets import DeepSets, ResidualMLP
from .nets import Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_CLUSTER_ROWS, N_CLASSES, _PER_CLASS = 8_192, 8, 6
_SET_ROWS, _POINTS = 6_144, 24
SHAPES = ("circle", "triangle", "square", "pentagon", "star", "cross", "two circles", "spiral")


@cache
def clusters(n_inputs: int, spread: float, seed: int) -> Dataset:
    """48 Gaussian clusters, six per class, each with its own covariance."""
    rng = generator("clusters", n_inputs, seed)
    n, n_clusters = n_drawn(_CLUSTER_ROWS), N_CLASSES * _PER_CLASS
    centres = rng.normal(size=(n_clusters, n_inputs))
    shapes = rng.normal(size=(n_clusters, n_inputs, n_inputs)) / np.sqrt(n_inputs)
    of = rng.integers(n_clusters, size=n)
    x = centres[of] + spread * np.einsum("nij,nj->ni", shapes[of], rng.normal(size=(n, n_inputs)))
    return in_order(x, of % N_CLASSES, N_CLASSES)


class ClustersResMLP(SupervisedFamily):
    """Classify points of many overlapping Gaussian clusters with a residual MLP.

    Data: 8,192 points of 8 to 32 dimensions from 48 clusters, six for each of eight classes; the
    wider the spread, the more the classes overlap.
    Model: 1 to 4 residual branches on a stream of 16 to 48.
    Drawn: dimensions, spread, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: data after Guyon, 2003, "Design of experiments of the NIPS 2003 variable selection
    benchmark"; net after He et al., 2016, arXiv:1603.05027.
    """

    name = "clusters-resmlp"
    dataset = "clusters"
    architecture = "residual-mlp"
    settings: ClassVar[Settings] = {
        "n_inputs": (16, (8, 16, 32)),
        "spread": (0.7, (0.5, 0.7, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (24, (16, 24, 32, 48)),
        "depth": (2, (1, 2, 3, 4)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (*BATCH_SIZES, 256)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `ResidualMLP` whose branches are as wide as the stream."""
        data = clusters(config["n_inputs"], config["spread"], config["data_seed"])
        width, shape = config["width"], (config["activation"], config["norm"], config["init_gain"])
        return ResidualMLP(data.n_inputs, width, config["depth"], width, N_CLASSES, *shape), data


def _corners(n: int, skip: int = 1) -> NDArray[np.float64]:
    """Corners of a regular polygon, every `skip`-th after the other."""
    angle = 2.0 * np.pi * skip * np.arange(n + 1) / n
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _outline(shape: str, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (..., 2) at positions 0 to 1 along a shape of radius 1."""
    if shape == "circle":
        return np.stack([np.cos(2 * np.pi * at), np.sin(2 * np.pi * at)], -1)
    if shape == "spiral":
        turn = 4.0 * np.pi * at
        return np.asarray(at[..., None] * np.stack([np.cos(turn), np.sin(turn)], -1))
    if shape == "two circles":
        angle, side = 4.0 * np.pi * at, np.where(at < 0.5, -0.5, 0.5)
        return np.stack([side + 0.5 * np.cos(angle), 0.5 * np.sin(angle)], -1)
    path = {
        "triangle": _corners(3),
        "square": _corners(4),
        "pentagon": _corners(5),
        "star": _corners(5, skip=2),
        "cross": np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
    }[shape]
    mile = np.linspace(0.0, 1.0, len(path))
    return np.stack([np.interp(at, mile, path[:, 0]), np.interp(at, mile, path[:, 1])], -1)


@cache
def _outlines(noise: float, seed: int) -> Dataset:
    rng = generator("outlines", seed)
    n = n_drawn(_SET_ROWS)
    shape = rng.integers(len(SHAPES), size=n)
    at = rng.random((n, _POINTS))
    points = np.stack([_outline(name, at) for name in SHAPES])[shape, np.arange(n)]
    angle = rng.uniform(0.0, 2.0 * np.pi, n)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    points = np.einsum("npi,nji->npj", points, turn.reshape(n, 2, 2))
    points = points * rng.uniform(0.7, 1.3, (n, 1, 1)) + 0.2 * rng.normal(size=(n, 1, 2))
    points = points + noise * rng.normal(size=points.shape)
    return in_order(points, shape, len(SHAPES), per_column=False)


class SetsNet(SupervisedFamily):
    """Say which outline 24 points were drawn from, with deep sets.

    Data: 6,144 sets of 24 points on one of eight outlines, turned, scaled, moved and blurred.
    Model: an MLP of each point of 2 to 3 layers, the mean, an MLP; width 12 to 32.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: Zaheer et al., 2017, arXiv:1703.06114.
    """

    name = "sets-net"
    dataset = "outlines"
    architecture = "deepsets"
    settings: ClassVar[Settings] = {
        "noise": (0.05, (0.02, 0.05, 0.1)),
        "data_seed": (1, DATA_SEEDS),
        "width": (24, (12, 16, 24, 32)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (16, (16, 16, 32)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `DeepSets` over points of the plane."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = DeepSets(2, config["width"], config["depth"], len(SHAPES), *shape)
        return net, _outlines(config["noise"], config["data_seed"])
