"""Families on scikit-learn's 8x8 digits: four architectures on one small data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from .data import Dataset
from .nets import MLP, Net, StridedCNN
from .sequence_nets import Transformer
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
from .tables import digits


class DigitsMLP(SupervisedFamily):
    """Classify handwritten digits with an MLP.

    Data: scikit-learn's digits, 1,797 images of 8x8, ten classes; nothing to download.
    Model: 1 to 3 hidden layers of 16 to 64; 2,410 parameters by default.
    Drawn: width, depth, activation, norm, loss, batch size, gain, loss scale, label noise.
    Source: E. Alpaydin and C. Kaynak, 1998, UCI "Optical Recognition of Handwritten Digits".
    """

    name = "digits-mlp"
    dataset = "digits"
    architecture = "mlp"
    selection = "best"  # at a held-out length, twice the steps gained one setting nothing
    settings: ClassVar[Settings] = {
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (1, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on flat images."""
        widths = (64, *(config["width"],) * config["depth"], 10)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), digits()


class DigitsCNN(SupervisedFamily):
    """Classify handwritten digits with strided convolutions.

    Data: as digits-mlp.
    Model: 1 or 2 convolutions of 3x3, stride 2, 4 to 16 channels, and a linear layer.
    Drawn: channels, depth, activation, norm, loss, batch size, gain, loss scale, label noise.
    Never drawn, but built: norm "batch".
    Source: strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "digits-cnn"
    dataset = "digits"
    architecture = "cnn"
    selection = "best"  # at a held-out length, twice the steps gained one setting nothing
    settings: ClassVar[Settings] = {
        "width": (8, (4, 6, 8, 12)),
        "depth": (2, (1, 2, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }
    undrawn: ClassVar[Mapping[str, tuple[str, ...]]] = {"norm": ("batch",)}

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` whose channels double with each layer."""
        channels = tuple(config["width"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        return StridedCNN(1, 8, channels, 10, *shape), digits()


class DigitsViT(SupervisedFamily):
    """Classify handwritten digits with a vision transformer.

    Data: as digits-mlp.
    Model: 16 patches of 2x2, 1 or 2 blocks of width 16 to 32, 2 heads; compute bound.
    Drawn: width, depth, activation, loss, batch size, gain, loss scale, label noise.
    Source: Dosovitskiy et al., 2020, arXiv:2010.11929.
    """

    name = "digits-vit"
    dataset = "digits"
    architecture = "transformer"
    settings: ClassVar[Settings] = {
        "width": (16, (16, 16, 24, 32)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ("gelu", "relu", "silu")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (16, (16, 32)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Transformer` over patches."""
        net = Transformer(
            width=config["width"],
            blocks=config["depth"],
            heads=2,
            n_tokens=16,
            n_outputs=10,
            side=8,
            patch=2,
            activation=config["activation"],
            gain=config["init_gain"],
        )
        return net, digits()


class DigitsAutoencoder(SupervisedFamily):
    """Reproduce the digits through a bottleneck.

    Data: the images of digits-mlp, inputs and targets; label noise is noise on the train targets.
    Model: MLP 64 - width - code - width - 64.
    Drawn: width, code, activation, norm, loss, batch size, gain, loss scale, target noise.
    Source: the task of Hinton and Salakhutdinov, 2006, made small.
    """

    name = "digits-autoencoder"
    dataset = "digits"
    architecture = "autoencoder"
    settings: ClassVar[Settings] = {
        "width": (32, (16, 24, 32, 48, 64)),
        "code": (8, (2, 4, 8, 16)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` from images to images."""
        data = digits()
        pairs = {split: (x, x) for split, (x, _) in data.splits.items()}
        widths = (64, config["width"], config["code"], config["width"], 64)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, replace(data, splits=pairs, n_outputs=64, kind="values")
