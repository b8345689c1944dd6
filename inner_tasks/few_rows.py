"""Families with few rows, which a net can learn by heart: what a decay is for."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from ..core.errors import ConfigurationError
from .clusters import N_CLASSES, clusters
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .glyphs import GlyphsCNN
from .nets import MLP, Net
from .supervised import ALL_ACTIVATIONS, CLASS_LOSSES, NORMS, Config, Settings, SupervisedFamily

#: Rows to train on that families with few of them draw from.
FEW_ROWS: Final = (300, 600, 1200, 2400)
_SHELLS = 5
_MLP: Settings = {
    "rows": (1200, FEW_ROWS),
    "data_seed": (1, DATA_SEEDS),
    "width": (48, (24, 32, 48, 64, 96)),
    "depth": (2, (1, 2, 3)),
    "activation": ("relu", ALL_ACTIVATIONS),
    "norm": ("none", NORMS),
    "loss": ("cross-entropy", CLASS_LOSSES),
    "batch_size": (32, (16, 32, 64)),
}


def first(data: Dataset, rows: int) -> Dataset:
    """The same data with only so many rows to train on; held-out splits stay.

    Raises:
        ConfigurationError: There are fewer.
    """
    inputs, targets = data.splits["train"]
    if rows > len(inputs):
        raise ConfigurationError(f"rows is {rows}; there are {len(inputs)} to train on.")
    kept = {**data.splits, "train": (inputs[:rows], targets[:rows])}
    return Dataset(kept, data.n_outputs, data.kind)


class ClustersFew(SupervisedFamily):
    """Classify points of overlapping Gaussian clusters with an MLP that has seen few of them.

    Data: as clusters-resmlp, 300 to 2,400 rows to train on.
    Model: 1 to 3 hidden layers of 24 to 96.
    Drawn: dimensions, spread, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, label noise.
    Source: data after Guyon, 2003, "Design of experiments of the NIPS 2003 variable selection
    benchmark".
    """

    name = "clusters-few"
    dataset = "clusters"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "n_inputs": (16, (8, 16, 32)),
        "spread": (0.5, (0.3, 0.5, 0.7)),
        **_MLP,
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few rows."""
        data = clusters(config["n_inputs"], config["spread"], config["data_seed"])
        widths = (config["n_inputs"], *(config["width"],) * config["depth"], N_CLASSES)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, first(data, config["rows"])


class GlyphsFew(GlyphsCNN):
    """Classify drawn glyphs with strided convolutions that have seen few of them.

    Data: as glyphs-mlp, 300 to 2,400 images to train on.
    Model: 1 to 3 convolutions of 3x3, stride 2, 4 to 12 channels at first, and a linear layer.
    Drawn: noise, rows, data seed, channels, depth, activation, norm (none, layer or batch), loss,
    batch size, gain, scales, label noise.
    Source: strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "glyphs-few"
    settings: ClassVar[Settings] = {
        "noise": (0.15, (0.1, 0.15, 0.3)),
        "rows": (1200, FEW_ROWS),
        **{key: value for key, value in GlyphsCNN.settings.items() if key != "noise"},
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` on few images."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


@cache
def _shells(n_inputs: int, noise: float, seed: int) -> Dataset:
    """Points on five nested bent shells, hidden in more dimensions; the class is the shell."""
    rng = generator("shells", n_inputs, seed)
    n, bent = n_drawn(max(FEW_ROWS)), max(3, n_inputs // 4)
    shell = rng.integers(_SHELLS, size=n)
    way = rng.normal(size=(n, bent))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    radius = (1.0 + shell)[:, None] * (1.0 + 0.3 * np.sin(3.0 * way @ rng.normal(size=(bent, 1))))
    points = way * (radius + noise * rng.normal(size=(n, 1)))
    others = rng.normal(size=(n, n_inputs - bent)) * _SHELLS / 2.0
    turn = np.linalg.qr(rng.normal(size=(n_inputs, n_inputs)))[0]
    return in_order(np.concatenate([points, others], 1) @ turn, shell, _SHELLS)


class ShellsMLP(SupervisedFamily):
    """Tell which of five nested shells a point lies on, from few points, with an MLP.

    Data: 300 to 2,400 points on five bent shells in a hidden subspace of 8 to 20 dimensions; the
    other dimensions are noise.
    Model: 1 to 3 hidden layers of 24 to 96.
    Drawn: dimensions, noise, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, label noise.
    Source: nested spheres after Hastie et al., 2009, "The Elements of Statistical Learning",
    section 10.1.
    """

    name = "shells-mlp"
    dataset = "shells"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "n_inputs": (12, (8, 12, 20)),
        "noise": (0.2, (0.1, 0.2, 0.4)),
        **_MLP,
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few points."""
        data = _shells(config["n_inputs"], config["noise"], config["data_seed"])
        widths = (config["n_inputs"], *(config["width"],) * config["depth"], _SHELLS)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, first(data, config["rows"])
