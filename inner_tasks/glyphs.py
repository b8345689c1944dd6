"""Families on drawn glyphs: an MLP, strided convolutions and a mixer on one set of images."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from .data import Dataset, generator
from .drawing import in_order, n_drawn
from .mixing_nets import Mixer
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

SIDE: Final = 12
_ROWS = 6_144
_SEEDS = tuple(range(1, 5))  # each set takes a second to draw and 4 MB to keep
_RING = [
    (float(np.cos(t)), float(np.sin(t))) for t in np.linspace(0.0, 2.0 * np.pi, 9, endpoint=True)
]
# Pen strokes through points of [-1, 1] x [-1, 1]; y points down.
_STROKES: tuple[tuple[list[tuple[float, float]], ...], ...] = (
    ([(0, -1), (0, 1)],),  # bar
    ([(0, -1), (0, 1)], [(-1, 0), (1, 0)]),  # plus
    ([(-1, -1), (1, 1)], [(-1, 1), (1, -1)]),  # cross
    ([(-1, -1), (-1, 1), (1, 1)],),  # angle
    ([(-1, -1), (1, -1)], [(0, -1), (0, 1)]),  # T
    ([(-1, -1), (1, -1), (-1, 1), (1, 1)],),  # zigzag
    ([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)],),  # square
    ([(0, -1), (1, 1), (-1, 1), (0, -1)],),  # triangle
    (_RING,),  # ring
    (_RING[:5],),  # arc
)
N_GLYPHS: Final = len(_STROKES)


def _segments() -> NDArray[np.float64]:
    """(glyphs, segments, 2 ends, 2); short glyphs repeat their first segment."""
    glyphs = []
    for strokes in _STROKES:
        lines = [pair for stroke in strokes for pair in pairwise(stroke)]
        glyphs.append([*lines, *[lines[0]] * (len(_RING) - 1 - len(lines))])
    return np.array(glyphs, dtype=np.float64)


def draw_glyphs(
    glyph: NDArray[np.int64], rng: np.random.Generator, noise: float
) -> NDArray[np.float32]:
    """Images (N, SIDE * SIDE) of these glyphs, each with a pose, a pen and noise of its own.

    A pixel's ink falls off with its distance to the nearest stroke.

    Args:
        glyph: (N,) numbers below `N_GLYPHS`.
        rng: Draws turn (sd 0.25 rad), size (0.5 to 0.8 of half the image), shift and thickness.
        noise: Standard deviation of each pixel; ink is 0 to 1.
    """
    n = len(glyph)
    angle, size = rng.normal(0.0, 0.25, n), rng.uniform(0.5, 0.8, (2, n))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    pose = turn.reshape(n, 2, 2) * size.T[:, None, :]
    ends = np.einsum("nij,nsej->nsei", pose, _segments()[glyph])
    ends = ends + rng.uniform(-0.25, 0.25, (n, 1, 1, 2))
    line = (np.arange(SIDE) + 0.5) * 2.0 / SIDE - 1.0
    pixels = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    nearest = np.full((n, SIDE * SIDE), np.inf)
    for start, end in ends.transpose(1, 2, 0, 3):
        along = end - start
        from_start = pixels - start[:, None]
        share = (from_start * along[:, None]).sum(-1) / np.square(along).sum(-1, keepdims=True)
        gap = from_start - share.clip(0.0, 1.0)[..., None] * along[:, None]
        nearest = np.minimum(nearest, np.sqrt(np.square(gap).sum(-1)))
    pen = rng.uniform(0.08, 0.22, (n, 1))
    ink = 1.0 / (1.0 + np.exp((nearest - pen) / 0.05).clip(max=1e6))
    return (ink + noise * rng.normal(size=ink.shape)).astype(np.float32)


@cache
def glyphs(noise: float, seed: int) -> Dataset:
    """8,448 drawn images, flattened to 144; ten classes."""
    rng = generator("glyphs", seed)
    glyph = rng.integers(N_GLYPHS, size=n_drawn(_ROWS))
    return in_order(draw_glyphs(glyph, rng, noise), glyph, N_GLYPHS, per_column=False)


_DATA: Settings = {"noise": (0.3, (0.15, 0.3, 0.5)), "data_seed": (1, _SEEDS)}


class GlyphsMLP(SupervisedFamily):
    """Classify drawn glyphs with an MLP.

    Data: 6,144 grey images of 12x12, ten glyphs of pen strokes (bar, plus, ring, ...), each turned,
    scaled, moved, drawn with a pen of another thickness, and noisy.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: the renderer is this module's own.
    """

    name = "glyphs-mlp"
    dataset = "glyphs"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        **_DATA,
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (*BATCH_SIZES, 256)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on flat images."""
        data = glyphs(config["noise"], config["data_seed"])
        widths = (SIDE**2, *(config["width"],) * config["depth"], N_GLYPHS)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


class GlyphsCNN(SupervisedFamily):
    """Classify drawn glyphs with strided convolutions.

    Data: as glyphs-mlp.
    Model: 1 to 3 convolutions of 3x3, stride 2, 4 to 16 channels at first, and a linear layer.
    Drawn: noise, data seed, channels, depth, activation, norm (none, layer or batch), loss, batch
    size, gain, scales, label noise.
    Source: strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "glyphs-cnn"
    dataset = "glyphs"
    architecture = "cnn"
    settings: ClassVar[Settings] = {
        **_DATA,
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
        data = glyphs(config["noise"], config["data_seed"])
        return StridedCNN(1, SIDE, channels, N_GLYPHS, *shape), data


class GlyphsMixer(SupervisedFamily):
    """Classify drawn glyphs with an MLP-Mixer.

    Data: as glyphs-mlp.
    Model: 16 patches of 3x3, 1 or 2 blocks of width 12 to 24; no attention.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    name = "glyphs-mixer"
    dataset = "glyphs"
    architecture = "mixer"
    settings: ClassVar[Settings] = {
        **_DATA,
        "width": (16, (12, 16, 24)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ("gelu", "relu", "silu")),
        "norm": ("layer", ("none", "layer", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (16, (16, 32)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Mixer` over patches."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = Mixer(SIDE, 3, config["width"], config["depth"], N_GLYPHS, *shape)
        return net, glyphs(config["noise"], config["data_seed"])
