"""Families whose target is an image or a signal: many values at once."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .glyphs import N_GLYPHS, SIDE, draw_glyphs
from .mixing_nets import ResidualMLP
from .nets import MLP, Net
from .signals import WAVES, waves
from .supervised import ALL_ACTIVATIONS, NORMS, VALUE_LOSSES, Config, Settings, SupervisedFamily

_ROWS = 6_144


@cache
def _halves(noise: float, seed: int) -> Dataset:
    """Upper halves of drawn glyphs, and their lower halves."""
    rng = generator("glyph halves", seed)
    glyph = rng.integers(N_GLYPHS, size=n_drawn(_ROWS))
    images = draw_glyphs(glyph, rng, noise)
    seen, hidden = np.split(images, [SIDE * SIDE // 2], 1)
    return in_order(seen, hidden, hidden.shape[1], kind="values", per_column=False)


class GlyphsInpaint(SupervisedFamily):
    """Draw the lower half of a glyph from its upper half with an MLP.

    Data: 6,144 images of 12x12 as in glyphs-mlp, cut in two; 72 pixels in, 72 pixels out.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales, target
    noise.
    Source: the completion of images by regression, as the faces of scikit-learn's examples.
    """

    name = "glyphs-inpaint"
    dataset = "glyph-halves"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "noise": (0.1, (0.05, 0.1, 0.2)),
        "data_seed": (1, (1, 2, 3, 4)),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with 72 outputs."""
        data = _halves(config["noise"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


@cache
def _noisy_waves(noise: float, seed: int) -> Dataset:
    """Noisy signals, and the same signals without the noise."""
    rng = generator("noisy waves", seed)
    clean = waves(rng.integers(len(WAVES), size=n_drawn(_ROWS)), rng)
    seen = clean + noise * rng.normal(size=clean.shape)
    return in_order(seen, clean, clean.shape[1], kind="values", per_column=False)


class SignalDenoise(SupervisedFamily):
    """Take the noise off waveforms with a residual MLP.

    Data: 6,144 signals of 48 samples as in signal-conv; 48 values in, 48 values out.
    Model: 1 to 3 residual branches on a stream of 24 to 64.
    Drawn: noise, data seed, width, depth, activation, norm, loss, batch size, gain, scales, target
    noise.
    Source: net after He et al., 2016, arXiv:1603.05027.
    """

    name = "signal-denoise"
    dataset = "noisy-waves"
    architecture = "residual-mlp"
    settings: ClassVar[Settings] = {
        "noise": (0.5, (0.25, 0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `ResidualMLP` with 48 outputs."""
        data = _noisy_waves(config["noise"], config["data_seed"])
        width, shape = config["width"], (config["activation"], config["norm"], config["init_gain"])
        sizes = (data.n_inputs, width, config["depth"], width, data.n_outputs)
        return ResidualMLP(*sizes, *shape), data
