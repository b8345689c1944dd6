"""Families on images of drawn pattern-producing networks: each data seed is another network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from .crossing import Crossing, Module
from .data import Dataset
from .drawing import in_order, n_drawn
from .mixing_nets import Mixer
from .nets import Net, StridedCNN
from .supervised import ALL_ACTIVATIONS, CLASS_LOSSES, Config, Settings, SupervisedFamily
from .worlds import WORLDS, binned, drawn_world, largest, uneven

_ROWS: Final = 4_096
EXPLAINED: Final = (0.2, 0.9)
_SIDES: Final[tuple[int, ...]] = (8, 12)
_FEW_IMAGES: Final[tuple[int, ...]] = (150, 300, 600, 1200)
Pixels = NDArray[np.float64]  # in single precision processors would round apart
Random = np.random.Generator

_FUNCTIONS: Final[tuple[Callable[[Pixels], Pixels], ...]] = (
    np.tanh,
    lambda x: np.sin(2.0 * x),
    lambda x: np.exp(-np.square(x)),
    np.abs,
    np.sign,
    lambda x: np.maximum(x, 0.0),
)


def _latents(program: Random, rng: Random, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What an image is drawn of, (n, latents), and its class, which a drawn rule reads off it."""
    latents, rule = int(program.integers(2, 7)), int(program.integers(3))
    shares = uneven(program, int(program.integers(2, 9)))
    classes, width = len(shares), 8
    centres = program.normal(size=(classes, latents)) * program.uniform(1.0, 2.0)
    first, bias = program.normal(size=(latents, width)), program.normal(size=width)
    last = program.normal(size=(width, classes))
    spread = program.uniform(0.3, 0.8)
    if rule == 0:  # each class has a place of its own
        label = rng.choice(classes, n, p=shares)
        return centres[label] + spread * rng.normal(size=(n, latents)), label
    hidden = rng.normal(size=(n, latents))
    scores = np.tanh(hidden @ first + bias) @ last
    if rule == 1:  # intervals of a drawn function
        return hidden, binned(scores[:, 0], shares)
    return hidden, largest((scores - scores.mean(0)) / scores.std(0))


class _Network:
    """A drawn network of places and latents to brightness."""

    def __init__(self, program: Random, latents: int, planes: int) -> None:
        units, depth = int(program.integers(8, 15)), int(program.integers(1, 4))
        self.places = program.normal(size=(3, units)) * program.uniform(0.7, 2.0)
        self.latents = program.normal(size=(latents, units)) * program.uniform(0.4, 0.8)
        self.biases = program.normal(size=(depth, units))
        self.layers = program.normal(size=(depth - 1, units, units)) * 1.5 / np.sqrt(units)
        palette = program.permutation(len(_FUNCTIONS))[: int(program.integers(2, 5))]
        self.functions = program.choice(palette, size=(depth, units))
        self.read = program.normal(size=(units, planes)) * 2.0 / np.sqrt(units)

    def __call__(self, places: Pixels, latents: NDArray[np.float64]) -> Pixels:
        """Brightness (N, planes, P) at places (N, P, 3) of images with these latents (N, d)."""
        x = places @ self.places
        x += (latents @ self.latents)[:, None]
        for i in range(len(self.functions)):
            if i:
                x = x @ self.layers[i - 1]
            x += self.biases[i]
            for unit, function in enumerate(self.functions[i]):
                x[..., unit] = _FUNCTIONS[function](x[..., unit])
        return np.asarray(np.tanh(x @ self.read.astype(np.float32)).transpose(0, 2, 1))


def _places(program: Random, rng: Random, n: int, side: int) -> Pixels:
    """Across, down and from the middle, (n, side * side, 3), each image moved, turned and sized."""
    down, across = np.mgrid[:side, :side].reshape(2, -1) * 2.0 / (side - 1.0) - 1.0
    moved = program.uniform(0.0, 0.3) * rng.normal(size=(2, n, 1))
    angle = program.choice((0.0, 0.0, 0.2, 0.5)) * rng.normal(size=(n, 1))
    size = np.exp(program.uniform(0.0, 0.2) * rng.normal(size=(n, 1)))
    x = size * (np.cos(angle) * across - np.sin(angle) * down) + moved[0]
    y = size * (np.sin(angle) * across + np.cos(angle) * down) + moved[1]
    return np.stack([x, y, np.sqrt(x**2 + y**2)], -1)


def _spoiled(program: Random, rng: Random, images: Pixels, side: int) -> Pixels:
    """Images (n, planes, P) of unequal contrast, a part of some covered, under noise."""
    n, most = len(images), program.uniform(0.0, 0.6)
    light = np.exp(program.uniform(0.0, 0.4) * rng.normal(size=(n, 1, 1)))
    shade = program.uniform(0.0, 0.3) * rng.normal(size=(n, 1, 1))
    begin = rng.integers(side, size=(2, n, 1))
    end = begin + rng.integers(1, 1 + side // 2, size=(2, n, 1))
    place = np.mgrid[:side, :side].reshape(2, 1, -1)
    covered = ((begin <= place) & (place < end)).all(0) & (rng.random((n, 1)) < most)
    spoiled = np.where(covered[:, None], 0.0, light * images + shade)
    noise = program.uniform(0.05, 0.4) * rng.normal(size=images.shape)
    return np.asarray(spoiled + noise)


def _images(
    planes: int, side: int, program: Random, rng: Random, n: int
) -> tuple[Pixels, NDArray[np.int64]]:
    """Images, (n, planes * side * side), and their classes."""
    latents, label = _latents(program, rng, n)
    network = _Network(program, latents.shape[1], planes)
    places = _places(program, rng, n, side)
    parts = range(0, n, 256)  # all at once are too large for a cache
    images = np.concatenate([network(places[i : i + 256], latents[i : i + 256]) for i in parts])
    return _spoiled(program, rng, images, side).reshape(n, -1), label


@cache
def dreams(planes: int, side: int, seed: int) -> Dataset:
    """Images that a drawn network paints, and classes of what they are painted from."""
    draw = partial(_images, planes, side)
    images, label = drawn_world(f"dreams {planes} {side}", seed, n_drawn(_ROWS), draw, EXPLAINED)
    return in_order(images, label, int(label.max()) + 1, per_column=False)


def _cnn(n_inputs: int, n_outputs: int, config: Config) -> Net:
    channels = tuple(config["width"] * 2**i for i in range(config["depth"]))
    shape = (config["activation"], config["norm"], config["init_gain"])
    return StridedCNN(config["planes"], config["side"], channels, n_outputs, *shape)


def _mixer(n_inputs: int, n_outputs: int, config: Config) -> Net:
    shape = (config["activation"], config["norm"], config["init_gain"])
    patch = config["side"] // config["grid"]
    return Mixer(config["side"], patch, config["width"], config["depth"], n_outputs, *shape)


#: Springenberg et al., 2014, arXiv:1412.6806.
_CNN: Final = Module(
    "cnn",
    {
        "width": (8, (4, 6, 8, 12)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", ("none", "layer", "batch")),
    },
    _cnn,
)
#: Tolstikhin et al., 2021, arXiv:2105.01601.
_MIXER: Final = Module(
    "mixer",
    {
        "grid": (4, (2, 4)),
        "width": (16, (12, 16, 24)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer", "layer")),
    },
    _mixer,
)


class DreamsCNN(SupervisedFamily):
    """Classify images that a drawn network paints, with strided convolutions.

    Data: 4,096 images of 8x8 or 12x12, one or two planes. Each data seed is another program: a
    drawn network of place and 2 to 6 latents (tanh, sine, bump, absolute value, sign, rectifier)
    paints an image, which is moved, turned, sized, of unequal contrast, covered in part and noisy,
    each as much as the program says. The class, one of 2 to 8, is the cluster that the latents are
    of, an interval of a drawn function of them, or which of several is the largest.
    Model: 1 to 3 convolutions of 3x3, stride 2, 4 to 12 channels at first, and a linear layer.
    Drawn: planes, side, data seed, channels, depth, activation, norm (none, layer or batch), loss,
    batch size, gain, scales, label noise.
    Source: Stanley, 2007, "Compositional pattern producing networks: A novel abstraction of
    development"; strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "dreams-cnn"
    dataset = "dreams"
    architecture = "cnn"
    settings: ClassVar[Settings] = {
        "planes": (1, (1, 1, 2)),
        "side": (12, _SIDES),
        "data_seed": (1, WORLDS),
        **_CNN.settings,
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` whose channels double with each layer."""
        data = dreams(config["planes"], config["side"], config["data_seed"])
        return _cnn(data.n_inputs, data.n_outputs, config), data


class DreamsMixer(Crossing):
    """Classify images that a drawn network paints, with an MLP-Mixer.

    Data: as dreams-cnn, one plane, 400 to 3,200 images to train on.
    Model: 4 or 16 patches, 1 or 2 blocks, width 12 to 24.
    Drawn: side, data seed, rows, patches, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as dreams-cnn; net of Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    name = "dreams-mixer"
    parent = DreamsCNN
    data = ("side", "data_seed")
    module = _MIXER
    rows = (400, 800, 1600, 3200)


class DreamsFew(Crossing):
    """Classify images that a drawn network paints, having seen few, with strided convolutions.

    Data: as dreams-cnn, 150 to 1,200 images to train on.
    Model: 1 to 3 convolutions of 3x3, stride 2, 4 to 12 channels at first, and a linear layer.
    Drawn: planes, side, data seed, rows, channels, depth, activation, norm (none, layer or batch),
    loss, batch size, gain, scales, label noise.
    Source: as dreams-cnn.
    """

    name = "dreams-few"
    parent = DreamsCNN
    data = ("planes", "side", "data_seed")
    module = _CNN
    rows = _FEW_IMAGES
