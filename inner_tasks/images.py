"""Families on MNIST, Fashion-MNIST and CIFAR-10, from files under `LHOPT_DATA`."""

from __future__ import annotations

from typing import ClassVar

from .data import Dataset
from .nets import MLP, Net, StridedCNN
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)
from .tables import CIFAR, FASHION, MNIST, cifar, grey_images

# `pool` 2 averages 28x28 to 14x14: a quarter of the first layer's cost.
_MLP: Settings = {
    "width": (32, (16, 24, 32, 48)),
    "depth": (1, (1, 2, 3)),
    "pool": (2, (1, 2, 2, 2)),
    "activation": ("relu", ALL_ACTIVATIONS),
    "norm": ("none", NORMS),
    "loss": ("cross-entropy", CLASS_LOSSES),
    "batch_size": (32, BATCH_SIZES),
}
_CNN: Settings = {
    "width": (8, (4, 6, 8)),
    "depth": (2, (2, 2, 3)),
    "pool": (2, (1, 2, 2, 2)),
    "activation": ("relu", ALL_ACTIVATIONS),
    "norm": ("none", NORMS),
    "loss": ("cross-entropy", CLASS_LOSSES),
    "batch_size": (32, (16, 32, 64)),
}


def _mlp(config: Config, data: Dataset) -> MLP:
    widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
    return MLP(widths, config["activation"], config["norm"], config["init_gain"])


def _cnn(config: Config, in_channels: int, side: int) -> StridedCNN:
    channels = tuple(config["width"] * min(2**i, 2) for i in range(config["depth"]))
    shape = (config["activation"], config["norm"], config["init_gain"])
    return StridedCNN(in_channels, side, channels, 10, *shape)


class MnistMLP(SupervisedFamily):
    """Classify MNIST with an MLP.

    Data: 30,000 of the training images of MNIST, 14x14 (pooled) or 28x28; official test split.
    Model: 1 to 3 hidden layers of 16 to 48.
    Drawn: width, depth, pooling, activation, norm, loss, batch size, gain, scale, label noise.
    Source: LeCun et al., 1998.
    """

    name = "mnist-mlp"
    dataset = "mnist"
    architecture = "mlp"
    data_files = (MNIST,)
    settings: ClassVar[Settings] = _MLP

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on flat images."""
        data = grey_images(MNIST, config["pool"])
        return _mlp(config, data), data


class MnistCNN(SupervisedFamily):
    """Classify MNIST with strided convolutions.

    Data: as mnist-mlp.
    Model: 2 or 3 convolutions of 3x3, stride 2, 4 to 16 channels, and a linear layer.
    Drawn: channels, depth, pooling, activation, norm, loss, batch size, gain, scale, label noise.
    Source: LeCun et al., 1998.
    """

    name = "mnist-cnn"
    dataset = "mnist"
    architecture = "cnn"
    data_files = (MNIST,)
    settings: ClassVar[Settings] = _CNN

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` on one channel."""
        return _cnn(config, 1, 28 // config["pool"]), grey_images(MNIST, config["pool"])


class FashionMLP(SupervisedFamily):
    """Classify Fashion-MNIST with an MLP.

    Data: 30,000 of the training images of Fashion-MNIST, 14x14 (pooled) or 28x28.
    Model, drawn: as mnist-mlp.
    Source: Xiao et al., 2017, arXiv:1708.07747.
    """

    name = "fashion-mlp"
    dataset = "fashion-mnist"
    architecture = "mlp"
    data_files = (FASHION,)
    settings: ClassVar[Settings] = _MLP

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on flat images."""
        data = grey_images(FASHION, config["pool"])
        return _mlp(config, data), data


class FashionCNN(SupervisedFamily):
    """Classify Fashion-MNIST with strided convolutions.

    Data: as fashion-mlp.
    Model, drawn: as mnist-cnn.
    Source: Xiao et al., 2017, arXiv:1708.07747.
    """

    name = "fashion-cnn"
    dataset = "fashion-mnist"
    architecture = "cnn"
    data_files = (FASHION,)
    settings: ClassVar[Settings] = _CNN

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` on one channel."""
        return _cnn(config, 1, 28 // config["pool"]), grey_images(FASHION, config["pool"])


class CifarCNN(SupervisedFamily):
    """Classify CIFAR-10 with strided convolutions.

    Data: a JPEG copy of CIFAR-10, 25,000 training images, averaged to 16x16 in colour. Published
    accuracies are a guide only.
    Model: 2 or 3 convolutions of 3x3, stride 2, 6 to 24 channels, and a linear layer.
    Drawn: channels, depth, activation, norm, loss, batch size, gain, loss scale, label noise.
    Source: Krizhevsky, 2009.
    """

    name = "cifar-cnn"
    dataset = "cifar10"
    architecture = "cnn"
    data_files = CIFAR
    settings: ClassVar[Settings] = {
        "width": (8, (6, 8, 12)),
        "depth": (2, (2, 2, 3)),
        "pool": (2, (2,)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` on three channels."""
        return _cnn(config, 3, 32 // config["pool"]), cifar(config["pool"])
