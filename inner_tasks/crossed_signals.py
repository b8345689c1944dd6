"""Other nets on signals, images and what moves, most of which see few rows.

A policy that was trained on these has met that data.
"""

from __future__ import annotations

from .crossing import GATED, MAXOUT, PIECES, PLAIN, RESIDUAL, SINES, TIED, Crossing
from .glyphs import GlyphsMLP
from .logic import AutomatonGated
from .many_outputs import GlyphsInpaint, SignalDenoise
from .measurements import PendulumMLP, SpectraFew
from .scenes import GratingsMixer, SpotsCNN
from .signals import ChaosMLP, SignalConv
from .textures import TextureCNN


class ChaosGated(Crossing):
    """Predict a chaotic series with a gated MLP.

    Data: as chaos-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: system, steps ahead, noise, data seed, rows, width, depth, norm, loss, batch size, gain,
    scales, target noise.
    Source: as chaos-mlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "chaos-gated"
    parent = ChaosMLP
    data = ("system", "ahead", "noise", "data_seed")
    module = GATED


class ChaosSine(Crossing):
    """Predict a chaotic series with a net of sines.

    Data: as chaos-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 hidden layers of 16 to 48 whose activation is a sine.
    Drawn: system, steps ahead, noise, data seed, rows, width, depth, frequency, loss, batch size,
    gain, scales, target noise.
    Source: as chaos-mlp; net of Sitzmann et al., 2020, arXiv:2006.09661.
    """

    name = "chaos-sine"
    parent = ChaosMLP
    data = ("system", "ahead", "noise", "data_seed")
    module = SINES


class GlyphsTied(Crossing):
    """Classify drawn glyphs with a branch that is gone through again.

    Data: as glyphs-mlp, 400 to 4,800 rows to train on.
    Model: a residual branch of width 24 to 64, 2 to 5 times with the same weights.
    Drawn: noise, data seed, rows, width, times, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as glyphs-mlp; net after Dehghani et al., 2019, arXiv:1807.03819,
    without attention.
    """

    name = "glyphs-tied"
    parent = GlyphsMLP
    data = ("noise", "data_seed")
    module = TIED


class GlyphsMaxout(Crossing):
    """Classify drawn glyphs with a maxout MLP.

    Data: as glyphs-mlp, 400 to 4,800 rows to train on.
    Model: 1 or 2 hidden layers of 12 to 48 units, each the largest of 2 or 3.
    Drawn: noise, data seed, rows, width, depth, pieces, loss, batch size, gain, scales, label
    noise.
    Source: as glyphs-mlp; net of Goodfellow et al., 2013, arXiv:1302.4389.
    """

    name = "glyphs-maxout"
    parent = GlyphsMLP
    data = ("noise", "data_seed")
    module = MAXOUT


class SignalDense(Crossing):
    """Classify noisy waveforms with a plain MLP.

    Data: as signal-conv, 400 to 4,800 rows to train on.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: noise, data seed, rows, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as signal-conv.
    """

    name = "signal-dense"
    parent = SignalConv
    data = ("noise", "data_seed")
    module = PLAIN


class SignalGated(Crossing):
    """Classify noisy waveforms with a gated MLP.

    Data: as signal-conv, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: noise, data seed, rows, width, depth, norm, loss, batch size, gain, scales, label
    noise.
    Source: as signal-conv; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "signal-gated"
    parent = SignalConv
    data = ("noise", "data_seed")
    module = GATED


class TextureResMLP(Crossing):
    """Classify drawn textures with a residual MLP.

    Data: as texture-cnn, 400 to 4,800 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: bandwidth, data seed, rows, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as texture-cnn; net after He et al., 2016, arXiv:1603.05027,
    without convolutions.
    """

    name = "texture-resmlp"
    parent = TextureCNN
    data = ("bandwidth", "data_seed")
    module = RESIDUAL


class InpaintGated(Crossing):
    """Draw the lower half of a glyph with a gated MLP.

    Data: as glyphs-inpaint, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: noise, data seed, rows, width, depth, norm, loss, batch size, gain, scales, target
    noise.
    Source: as glyphs-inpaint; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "inpaint-gated"
    parent = GlyphsInpaint
    data = ("noise", "data_seed")
    module = GATED


class DenoiseTied(Crossing):
    """Take the noise off waveforms with a branch that is gone through again.

    Data: as signal-denoise, 400 to 4,800 rows to train on.
    Model: a residual branch of width 24 to 64, 2 to 5 times with the same weights.
    Drawn: noise, data seed, rows, width, times, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: as signal-denoise; net after Dehghani et al., 2019, arXiv:1807.03819,
    without attention.
    """

    name = "denoise-tied"
    parent = SignalDenoise
    data = ("noise", "data_seed")
    module = TIED


class AutomatonTied(Crossing):
    """Predict a ring of cells with a branch that is gone through again.

    Data: as automaton-gated, 400 to 4,800 rows to train on.
    Model: a residual branch of width 24 to 64, 2 to 5 times with the same weights.
    Drawn: moves, noise, data seed, rows, width, times, activation, norm, loss, batch size,
    gain, scales, target noise.
    Source: as automaton-gated; net after Dehghani et al., 2019, arXiv:1807.03819,
    without attention.
    """

    name = "automaton-tied"
    parent = AutomatonGated
    data = ("moves", "noise", "data_seed")
    module = TIED


class PendulumGated(Crossing):
    """Predict a double pendulum with a gated MLP.

    Data: as pendulum-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: time ahead, noise, data seed, rows, width, depth, norm, loss, batch size, gain, scales,
    target noise.
    Source: as pendulum-mlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "pendulum-gated"
    parent = PendulumMLP
    data = ("ahead", "noise", "data_seed")
    module = GATED


class SpectraGated(Crossing):
    """Tell a mixture's main compound with a gated MLP.

    Data: as spectra-few.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: noise, rows, data seed, width, depth, norm, loss, batch size, gain, scales, label
    noise.
    Source: as spectra-few; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "spectra-gated"
    parent = SpectraFew
    data = ("noise", "rows", "data_seed")
    module = GATED
    rows = ()


class ChaosPieces(Crossing):
    """Predict a chaotic series with an RNN over pieces.

    Data: as chaos-mlp, 400 to 4,800 rows to train on.
    Model: one recurrent layer of 16 to 48 with tanh over eight pieces, read out at the end.
    Drawn: system, steps ahead, noise, data seed, rows, width, norm, loss, batch size, gain, scales,
    target noise.
    Source: as chaos-mlp; net of Elman, 1990, "Finding Structure in Time".
    """

    name = "chaos-pieces"
    parent = ChaosMLP
    data = ("system", "ahead", "noise", "data_seed")
    module = PIECES


class SpotsDense(Crossing):
    """Count the spots of an image with a plain MLP.

    Data: as spots-cnn, 400 to 4,800 rows to train on.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: noise, data seed, rows, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as spots-cnn.
    """

    name = "spots-dense"
    parent = SpotsCNN
    data = ("noise", "data_seed")
    module = PLAIN


class GratingsTied(Crossing):
    """Read off which way stripes run with a branch that is gone through again.

    Data: as gratings-mixer, 400 to 4,800 rows to train on.
    Model: a residual branch of width 24 to 64, 2 to 5 times with the same weights.
    Drawn: noise, data seed, rows, width, times, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: as gratings-mixer; net after Dehghani et al., 2019, arXiv:1807.03819,
    without attention.
    """

    name = "gratings-tied"
    parent = GratingsMixer
    data = ("noise", "data_seed")
    module = TIED
