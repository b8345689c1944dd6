"""A family on drawn textures: random fields whose class is their spectrum."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .data import Dataset, generator
from .drawing import in_order, n_drawn
from .nets import Net, StridedCNN
from .supervised import ALL_ACTIVATIONS, CLASS_LOSSES, Config, Settings, SupervisedFamily

SIDE: Final = 12
_GRID = 24  # drawn on a torus of twice the side and cut, so that no image wraps round
_ROWS, _ORIENTATIONS = 6_144, 4
_FREQUENCIES = (0.14, 0.28)  # cycles per pixel
N_TEXTURES: Final = _ORIENTATIONS * len(_FREQUENCIES)


@cache
def textures(bandwidth: float, seed: int) -> Dataset:
    """White noise filtered to a class's orientation and frequency; eight classes.

    Args:
        bandwidth: Standard deviation of each spectrum in cycles per pixel; the wider, the more the
            classes overlap.
        seed: Draws the orientations' common turn and the images.
    """
    rng = generator("textures", seed)
    offset = rng.uniform(0.0, np.pi / _ORIENTATIONS)
    axis = np.fft.fftfreq(_GRID)
    plane = np.stack(np.meshgrid(axis, axis), -1)
    filters = []
    for k in range(N_TEXTURES):
        angle = offset + np.pi * (k % _ORIENTATIONS) / _ORIENTATIONS
        peak = _FREQUENCIES[k // _ORIENTATIONS] * np.array([np.cos(angle), np.sin(angle)])
        # A real field's spectrum has two peaks, at plus and minus its frequency.
        gaps = [np.square(plane - sign * peak).sum(-1) for sign in (1.0, -1.0)]
        response = sum(np.exp(-gap / (2.0 * bandwidth**2)) for gap in gaps)
        filters.append(response / np.sqrt(np.square(response).mean()))
    of = rng.integers(N_TEXTURES, size=n_drawn(_ROWS))
    white = np.fft.fft2(rng.normal(size=(len(of), _GRID, _GRID)))
    images = np.fft.ifft2(white * np.stack(filters)[of]).real[:, :SIDE, :SIDE]
    images = images + 0.3 * rng.normal(size=images.shape)
    return in_order(images.reshape(len(of), -1), of, N_TEXTURES, per_column=False)


class TextureCNN(SupervisedFamily):
    """Classify drawn textures with strided convolutions.

    Data: 6,144 grey images of 12x12, random fields of four orientations at two frequencies plus
    noise; a class has no typical pixel, only a typical spectrum.
    Model: 1 to 3 convolutions of 3x3, stride 2, 4 to 12 channels at first, and a linear layer.
    Drawn: bandwidth, data seed, channels, depth, activation, norm (none, layer or batch), loss,
    batch size, gain, scales, label noise.
    Source: fields by spectral synthesis; strides after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "texture-cnn"
    dataset = "textures"
    architecture = "cnn"
    settings: ClassVar[Settings] = {
        "bandwidth": (0.04, (0.02, 0.04, 0.06)),
        "data_seed": (1, (1, 2, 3, 4)),
        "width": (8, (4, 6, 8, 12)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", ("none", "layer", "batch")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` whose channels double with each layer."""
        channels = tuple(config["width"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        data = textures(config["bandwidth"], config["data_seed"])
        return StridedCNN(1, SIDE, channels, N_TEXTURES, *shape), data
