"""Families of other modules that see few of their rows, over and over.

A run of 2,000 steps at batch 64 passes 100 times over 1,200 rows: what pays at first, large steps
and little decay, is what loses at the end.
"""

from __future__ import annotations

from typing import ClassVar

from .data import Dataset
from .few_rows import first
from .functions import CoordinateMLP
from .mixed_tables import ForestMLP
from .nets import Net
from .signals import ChaosMLP, SignalConv
from .stdlib_text import DocsMLP
from .supervised import Config, Settings
from .textures import TextureCNN

_ROWS = (400, 800, 1600, 3200)


class ForestFew(ForestMLP):
    """Classify the rows of a drawn table of numbers and one-hot categories, having seen few.

    Data: as forest-mlp, 400 to 3,200 rows to train on.
    Model: 1 to 3 hidden layers of 32 to 128.
    Drawn: classes, sharpness, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, label noise.
    Source: as forest-mlp.
    """

    name = "forest-few"
    settings: ClassVar[Settings] = {
        **ForestMLP.settings,
        "rows": (1600, _ROWS),
        "width": (64, (32, 64, 96, 128)),
        "depth": (2, (1, 2, 3)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few rows."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


class SignalFew(SignalConv):
    """Classify noisy waveforms with strided one-dimensional convolutions that have seen few.

    Data: as signal-conv, 400 to 3,200 signals to train on.
    Model: 2 to 4 convolutions of kernel 4, stride 2, 6 to 16 channels at first, and a linear layer.
    Drawn: noise, rows, data seed, channels, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "signal-few"
    settings: ClassVar[Settings] = {**SignalConv.settings, "rows": (1600, _ROWS)}

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` on few signals."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


class TextureFew(TextureCNN):
    """Classify drawn textures with strided convolutions that have seen few.

    Data: as texture-cnn, 400 to 3,200 images to train on.
    Model: 1 to 3 convolutions of 3x3, stride 2, 4 to 12 channels at first, and a linear layer.
    Drawn: bandwidth, rows, data seed, channels, depth, activation, norm (none, layer or batch),
    loss, batch size, gain, scales, label noise.
    Source: as texture-cnn.
    """

    name = "texture-few"
    settings: ClassVar[Settings] = {**TextureCNN.settings, "rows": (1600, _ROWS)}

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` on few images."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


class DocsFew(DocsMLP):
    """Predict the next character of a short text from the last eight, with an MLP.

    Data: as docs-mlp, 1,600 to 12,800 places to train on.
    Model: embeddings side by side, 1 or 2 hidden layers of 24 to 64.
    Drawn: rows, embedding, width, depth, activation, norm, batch size, gain, scales, label noise.
    Source: as docs-mlp.
    """

    name = "docs-few"
    settings: ClassVar[Settings] = {
        **DocsMLP.settings,
        "rows": (6400, tuple(4 * rows for rows in _ROWS)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TokenMLP` on few places."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


class CoordinateFew(CoordinateMLP):
    """Fit a smooth random field over the plane from few noisy points, with a deep narrow MLP.

    Data: as coordinate-mlp, 400 to 3,200 points to train on.
    Model: 2 to 6 hidden layers of 12 to 32.
    Drawn: features, roughness, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, target noise.
    Source: as coordinate-mlp.
    """

    name = "coordinate-few"
    settings: ClassVar[Settings] = {**CoordinateMLP.settings, "rows": (1600, _ROWS)}

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output, on few points."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


class ChaosFew(ChaosMLP):
    """Predict a chaotic series some steps ahead from its last 16 values, having seen few windows.

    Data: as chaos-mlp, 400 to 3,200 windows to train on, noise of up to a fifth on what is seen.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: system, steps ahead, noise, rows, data seed, width, depth, activation, norm, loss, batch
    size, gain, scales, target noise.
    Source: as chaos-mlp.
    """

    name = "chaos-few"
    settings: ClassVar[Settings] = {
        **ChaosMLP.settings,
        "noise": (0.1, (0.05, 0.1, 0.2)),
        "rows": (1600, _ROWS),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with one output, on few windows."""
        net, data = super().make(config)
        return net, first(data, config["rows"])
