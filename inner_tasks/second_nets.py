"""Families of other nets on data that another family draws: what a task is lies in both."""

from __future__ import annotations

from typing import ClassVar

from . import signals
from .categories import LogBilinear
from .conv1d_nets import StridedConv1d
from .data import Dataset
from .drawing import DATA_SEEDS
from .functions import friedman, plane_field
from .glyphs import N_GLYPHS, glyphs
from .glyphs import SIDE as GLYPH_SIDE
from .mixed_tables import mixed_table
from .mixing_nets import Mixer
from .nets import Net
from .sequence_nets import Recurrent
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
from .text import python_docs
from .textures import N_TEXTURES, textures
from .textures import SIDE as TEXTURE_SIDE
from .topics import N_TOPICS, N_WORDS, documents
from .unusual_nets import (
    CrossNet,
    GatedMLP,
    InPieces,
    RadialBasis,
    SineMLP,
    WordScores,
)


class TextureMixer(SupervisedFamily):
    """Classify drawn textures with an MLP-Mixer.

    Data: as texture-cnn.
    Model: 9 or 16 patches, 1 or 2 blocks of width 12 to 24; no attention.
    Drawn: bandwidth, data seed, patch, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    name = "texture-mixer"
    dataset = "textures"
    architecture = "mixer"
    settings: ClassVar[Settings] = {
        "bandwidth": (0.04, (0.02, 0.04, 0.06)),
        "data_seed": (1, (1, 2, 3, 4)),
        "patch": (4, (3, 4)),
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
        sizes = (config["patch"], config["width"], config["depth"])
        net = Mixer(TEXTURE_SIDE, *sizes, N_TEXTURES, *shape)
        return net, textures(config["bandwidth"], config["data_seed"])


class GlyphsRNN(SupervisedFamily):
    """Classify drawn glyphs row by row with an RNN.

    Data: as glyphs-mlp; an image is a sequence of 12 rows of 12 pixels.
    Model: one recurrent layer of 16 to 48 with tanh, read out after the last row.
    Drawn: noise, data seed, width, norm, loss, batch size, gain, scales, label noise.
    Source: images as sequences after Le et al., 2015, arXiv:1504.00941.
    """

    name = "glyphs-rnn"
    dataset = "glyphs"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "noise": (0.3, (0.15, 0.3, 0.5)),
        "data_seed": (1, (1, 2, 3, 4)),
        "width": (24, (16, 24, 32, 48)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over rows."""
        net = Recurrent(
            n_inputs=GLYPH_SIDE,
            width=config["width"],
            n_outputs=N_GLYPHS,
            cell="rnn",
            last_only=True,
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return InPieces(net, GLYPH_SIDE), glyphs(config["noise"], config["data_seed"])


class SignalRNN(SupervisedFamily):
    """Classify noisy waveforms with an RNN over pieces of the signal.

    Data: as signal-conv; a signal is a sequence of 6, 8 or 12 pieces.
    Model: one recurrent layer of 16 to 48 with tanh, read out after the last piece.
    Drawn: noise, data seed, pieces, width, norm, loss, batch size, gain, scales, label noise.
    Source: Elman, 1990, "Finding Structure in Time".
    """

    name = "signal-rnn"
    dataset = "waveforms"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "noise": (0.3, (0.15, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "pieces": (8, (6, 8, 12)),
        "width": (24, (16, 24, 32, 48)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over pieces."""
        data, pieces = signals.waveforms(config["noise"], config["data_seed"]), config["pieces"]
        net = Recurrent(
            n_inputs=data.n_inputs // pieces,
            width=config["width"],
            n_outputs=len(signals.WAVES),
            cell="rnn",
            last_only=True,
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return InPieces(net, pieces), data


class ChaosConv(SupervisedFamily):
    """Predict a chaotic series some steps ahead from its last 16 values, by convolutions.

    Data: as chaos-mlp.
    Model: 1 to 3 convolutions of kernel 4, stride 2, 6 to 16 channels at first, and a linear layer.
    Drawn: system, steps ahead, noise, data seed, channels, depth, activation, norm, loss, batch
    size, gain, scales, target noise.
    Source: strides in place of pooling after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "chaos-conv"
    dataset = "chaos"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "system": ("mackey-glass", ("mackey-glass", "lorenz")),
        "ahead": (4, (2, 4, 6)),
        "noise": (0.02, (0.01, 0.02, 0.05)),
        "data_seed": (1, DATA_SEEDS[:4]),
        "width": (8, (6, 8, 12, 16)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` whose channels double with each layer."""
        channels = tuple(config["width"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        seen = (config["system"], config["ahead"], config["noise"], config["data_seed"])
        data = signals.series(*seen)
        return StridedConv1d(data.n_inputs, channels, 1, *shape), data


class CoordinateSine(SupervisedFamily):
    """Fit a smooth random field over the plane with a net of sines.

    Data: as coordinate-mlp.
    Model: 1 to 3 hidden layers of 16 to 48 whose activation is a sine.
    Drawn: features, roughness, data seed, width, depth, frequency, loss, batch size, gain, scales,
    target noise.
    Source: Sitzmann et al., 2020, arXiv:2006.09661.
    """

    name = "coordinate-sine"
    dataset = "plane-field"
    architecture = "sine-mlp"
    settings: ClassVar[Settings] = {
        "features": (8, (4, 8, 16)),
        "roughness": (0.8, (0.5, 0.8, 1.2)),
        "data_seed": (1, DATA_SEEDS),
        "width": (24, (16, 24, 32, 48)),
        "depth": (2, (1, 2, 3)),
        "frequency": (2, (1, 2, 4)),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (64, (*BATCH_SIZES, 256)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `SineMLP` with one output."""
        data = plane_field(config["features"], config["roughness"], config["data_seed"])
        widths = (config["features"], *(config["width"],) * config["depth"], 1)
        return SineMLP(widths, float(config["frequency"]), config["init_gain"]), data


class FriedmanRBF(SupervisedFamily):
    """Regress Friedman's functions with Gaussian bumps around learned centres.

    Data: as friedman-mlp, 400 to 3,200 rows.
    Model: 24 to 96 centres, each with a width of its own, and a linear read-out.
    Drawn: problem, rows, noise, data seed, centres, loss, batch size, gain, scales, target noise.
    Source: Broomhead and Lowe, 1988.
    """

    name = "friedman-rbf"
    dataset = "friedman"
    architecture = "radial-basis"
    settings: ClassVar[Settings] = {
        "problem": (1, (1, 2, 3)),
        "rows": (1600, (400, 800, 1600, 3200)),
        "noise": (0.3, (0.1, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "centres": (48, (24, 48, 96)),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `RadialBasis` net with one output."""
        data = friedman(config["problem"], config["rows"], config["noise"], config["data_seed"])
        return RadialBasis(data.n_inputs, config["centres"], 1, config["init_gain"]), data


class ForestCross(SupervisedFamily):
    """Classify the rows of a drawn table of numbers and one-hot categories by crossing columns.

    Data: as forest-mlp.
    Model: 1 to 3 cross layers as wide as the table, and a linear read-out.
    Drawn: classes, sharpness, data seed, depth, loss, batch size, gain, scales, label noise.
    Source: Wang et al., 2021, arXiv:2008.13535.
    """

    name = "forest-cross"
    dataset = "mixed-table"
    architecture = "cross-net"
    settings: ClassVar[Settings] = {
        "classes": (3, (2, 3, 7)),
        "sharpness": (4.0, (2.0, 4.0, 8.0)),
        "data_seed": (1, DATA_SEEDS),
        "depth": (2, (1, 2, 3)),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `CrossNet` on the drawn table."""
        data = mixed_table(config["classes"], config["sharpness"], config["data_seed"])
        return CrossNet(data.n_inputs, config["depth"], data.n_outputs, config["init_gain"]), data


class ForestGated(SupervisedFamily):
    """Classify the rows of a drawn table of numbers and one-hot categories with a gated MLP.

    Data: as forest-mlp.
    Model: 1 to 3 gated layers of 16 to 64.
    Drawn: classes, sharpness, data seed, width, depth, norm, loss, batch size, gain, scales, label
    noise.
    Source: Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "forest-gated"
    dataset = "mixed-table"
    architecture = "gated-mlp"
    settings: ClassVar[Settings] = {
        "classes": (3, (2, 3, 7)),
        "sharpness": (4.0, (2.0, 4.0, 8.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `GatedMLP` on the drawn table."""
        data = mixed_table(config["classes"], config["sharpness"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
        return GatedMLP(widths, config["norm"], config["init_gain"]), data


class TopicsLinear(SupervisedFamily):
    """Name the main topic of a drawn document by adding up scores of its words: a convex problem.

    Data: as topics-bag.
    Model: a score for each of 400 words and 12 topics, and a bias per topic.
    Drawn: focus on the main topic, data seed, loss, batch size, gain, scales, label noise.
    Source: softmax regression on bags of words, as in Joulin et al., 2016, arXiv:1607.01759,
    without its low rank.
    """

    name = "topics-linear"
    dataset = "topics"
    architecture = "word-scores"
    settings: ClassVar[Settings] = {
        "focus": (0.4, (0.25, 0.4, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `WordScores`."""
        net = WordScores(N_WORDS, N_TOPICS, config["init_gain"])
        return net, documents(config["focus"], config["data_seed"])


class DocsBilinear(SupervisedFamily):
    """Predict the next character of English documentation from the last eight, log-bilinearly.

    Data: as docs-mlp.
    Model: embeddings of 8 to 24 and one matrix per place; the read-out has the same low rank, or is
    the embedding itself.
    Drawn: embedding, tied or not, batch size, gain, scales, label noise.
    Source: Mnih and Hinton, 2007.
    """

    name = "docs-bilinear"
    dataset = "python-docs"
    architecture = "log-bilinear"
    settings: ClassVar[Settings] = {
        "embed": (16, (8, 12, 16, 24)),
        "readout": ("own", ("own", "tied")),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `LogBilinear` over eight characters."""
        data, context = python_docs(8), 8
        tied, gain = config["readout"] == "tied", config["init_gain"]
        return LogBilinear(config["embed"], tied, gain, data.n_outputs, context), data
