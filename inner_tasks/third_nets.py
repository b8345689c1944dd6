"""Families of other nets on the data of the families that policies were compared by at first.

A policy that was trained on these has met that data: judge it by other families.
"""

from __future__ import annotations

from typing import ClassVar

from .conv1d_nets import StridedConv1d
from .data import Dataset
from .drawing import DATA_SEEDS
from .few_rows import FEW_ROWS, first
from .logic import AutomatonGated, automaton
from .measurements import PendulumMLP, PricesMLP, SpectraFew, pendulums, prices, spectra
from .mixing_nets import Mixer
from .nets import Net, StridedCNN
from .recall import LinearRecurrence
from .relations import N_NAMES, FactsDistMult, PairMLP, facts
from .rhythms import RhythmsRNN, TidesConv, rhythms, tides
from .scenes import SIDE, GratingsMixer, GroundCNN, SpotsCNN, gratings, ground, spots
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
from .unusual_nets import CrossNet, InPieces, SineMLP


class AutomatonConv(SupervisedFamily):
    """Predict a ring of cells one or two moves ahead, with strided one-dimensional convolutions.

    Data: as automaton-gated.
    Model: 1 to 3 convolutions of kernel 4, stride 2, 8 to 24 channels, and a linear layer.
    Drawn: moves, noise, data seed, channels, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: as automaton-gated; strides after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "automaton-conv"
    dataset = "automaton"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "moves": AutomatonGated.settings["moves"],
        "noise": AutomatonGated.settings["noise"],
        "data_seed": (1, DATA_SEEDS),
        "width": (16, (8, 12, 16, 24)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` with an output for each cell."""
        data = automaton(config["moves"], config["noise"], config["data_seed"])
        channels = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        return StridedConv1d(data.n_inputs, channels, data.n_outputs, *shape), data


class PendulumSine(SupervisedFamily):
    """Predict where a double pendulum will be in a fifth to half a second, with a net of sines.

    Data: as pendulum-mlp.
    Model: 1 to 3 hidden layers of 24 to 64 whose activation is a sine.
    Drawn: time ahead, noise, data seed, width, depth, frequency, loss, batch size, gain, scales,
    target noise.
    Source: as pendulum-mlp; net of Sitzmann et al., 2020, arXiv:2006.09661.
    """

    name = "pendulum-sine"
    dataset = "pendulums"
    architecture = "sine-mlp"
    settings: ClassVar[Settings] = {
        "ahead": PendulumMLP.settings["ahead"],
        "noise": PendulumMLP.settings["noise"],
        "data_seed": (1, DATA_SEEDS),
        "width": (48, (24, 32, 48, 64)),
        "depth": (2, (1, 2, 2, 3)),
        "frequency": (1, (1, 1, 2)),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `SineMLP` of six numbers to six."""
        data = pendulums(config["ahead"], config["noise"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
        return SineMLP(widths, float(config["frequency"]), config["init_gain"]), data


class PendulumFew(PendulumMLP):
    """Predict where a double pendulum will be, having seen few, with an MLP.

    Data: as pendulum-mlp, 300 to 2,400 states to train on.
    Model: 1 to 3 hidden layers of 24 to 64.
    Drawn: time ahead, noise, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, target noise.
    Source: as pendulum-mlp.
    """

    name = "pendulum-few"
    settings: ClassVar[Settings] = {
        **PendulumMLP.settings,
        "rows": (1200, FEW_ROWS),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few states."""
        net, data = super().make(config)
        return net, first(data, config["rows"])


class PricesCross(SupervisedFamily):
    """Predict a price with heavy tails by crossing columns.

    Data: as prices-mlp.
    Model: 1 to 3 cross layers as wide as the table, and a linear read-out.
    Drawn: degrees of freedom, data seed, depth, loss, batch size, gain, scales, target noise.
    Source: as prices-mlp; net of Wang et al., 2021, arXiv:2008.13535.
    """

    name = "prices-cross"
    dataset = "prices"
    architecture = "cross-net"
    settings: ClassVar[Settings] = {
        "tail": PricesMLP.settings["tail"],
        "data_seed": (1, DATA_SEEDS),
        "depth": (2, (1, 2, 3)),
        "loss": ("huber", ("huber", "huber", "squared-error")),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `CrossNet` with one output."""
        data = prices(config["tail"], config["data_seed"])
        return CrossNet(data.n_inputs, config["depth"], data.n_outputs, config["init_gain"]), data


class SpectraConv(SupervisedFamily):
    """Tell a mixture's main compound by its spectrum, from few recordings, by convolutions.

    Data: as spectra-few.
    Model: 2 to 4 convolutions of kernel 4, stride 2, 6 to 16 channels, and a linear layer.
    Drawn: noise, rows, data seed, channels, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as spectra-few; strides after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "spectra-conv"
    dataset = "spectra"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "noise": SpectraFew.settings["noise"],
        "rows": SpectraFew.settings["rows"],
        "data_seed": (1, DATA_SEEDS),
        "width": (8, (6, 8, 12, 16)),
        "depth": (3, (2, 3, 4)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedConv1d` on few spectra."""
        data = spectra(config["noise"], config["data_seed"])
        channels = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = StridedConv1d(data.n_inputs, channels, data.n_outputs, *shape)
        return net, first(data, config["rows"])


class SpotsMixer(SupervisedFamily):
    """Count the spots of an image with an MLP-Mixer.

    Data: as spots-cnn.
    Model: 9 or 16 patches, 1 or 2 blocks, width 12 to 24.
    Drawn: noise, data seed, patch, width, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: as spots-cnn; net of Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    name = "spots-mixer"
    dataset = "spots"
    architecture = "mixer"
    settings: ClassVar[Settings] = {
        "noise": SpotsCNN.settings["noise"],
        "data_seed": (1, DATA_SEEDS),
        "patch": (4, (3, 4)),
        "width": (16, (12, 16, 24)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Mixer` over patches."""
        data = spots(config["noise"], config["data_seed"])
        sizes = (config["patch"], config["width"], config["depth"])
        shape = (config["activation"], config["norm"], config["init_gain"])
        return Mixer(SIDE, *sizes, data.n_outputs, *shape), data


class GratingsCNN(SupervisedFamily):
    """Read off which way stripes run, with strided convolutions.

    Data: as gratings-mixer.
    Model: 1 to 3 convolutions of 3x3, stride 2, 6 to 12 channels at first, and a linear layer.
    Drawn: noise, data seed, channels, depth, activation, norm (none or layer), loss, batch size,
    gain, scales, target noise.
    Source: as gratings-mixer; strides after Springenberg et al., 2014, arXiv:1412.6806.
    """

    name = "gratings-cnn"
    dataset = "gratings"
    architecture = "strided-cnn"
    settings: ClassVar[Settings] = {
        "noise": GratingsMixer.settings["noise"],
        "data_seed": (1, DATA_SEEDS),
        "channels": (8, (6, 8, 12)),
        "depth": (2, (1, 2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", ("none", "layer")),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, *BATCH_SIZES)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `StridedCNN` with two outputs."""
        data = gratings(config["noise"], config["data_seed"])
        channels = tuple(config["channels"] * 2**i for i in range(config["depth"]))
        shape = (config["activation"], config["norm"], config["init_gain"])
        return StridedCNN(1, SIDE, channels, data.n_outputs, *shape), data


class GroundMixer(SupervisedFamily):
    """Tell how deep water gets into porous ground, with an MLP-Mixer.

    Data: as ground-cnn.
    Model: 9 or 16 patches, 1 or 2 blocks, width 12 to 24.
    Drawn: porosity, data seed, patch, width, depth, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: as ground-cnn; net of Tolstikhin et al., 2021, arXiv:2105.01601.
    """

    name = "ground-mixer"
    dataset = "ground"
    architecture = "mixer"
    settings: ClassVar[Settings] = {
        "porous": GroundCNN.settings["porous"],
        "data_seed": (1, DATA_SEEDS),
        "patch": (4, (3, 4)),
        "width": (16, (12, 16, 24)),
        "depth": (1, (1, 1, 2)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, *BATCH_SIZES)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Mixer` with one output."""
        data = ground(config["porous"], config["data_seed"])
        sizes = (config["patch"], config["width"], config["depth"])
        shape = (config["activation"], config["norm"], config["init_gain"])
        return Mixer(SIDE, *sizes, data.n_outputs, *shape), data


class TidesRNN(SupervisedFamily):
    """Foretell eight hours of tides from 48, with an RNN over pieces of six hours.

    Data: as tides-conv.
    Model: one recurrent layer of 16 to 48 with tanh, read out after the last piece.
    Drawn: weather, data seed, width, norm, loss, batch size, gain, scales, target noise.
    Source: as tides-conv; net of Elman, 1990, "Finding Structure in Time".
    """

    name = "tides-rnn"
    dataset = "tides"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "weather": TidesConv.settings["weather"],
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48)),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over eight pieces."""
        data = tides(config["weather"], config["data_seed"])
        pieces = 8
        net = Recurrent(
            n_inputs=data.n_inputs // pieces,
            width=config["width"],
            n_outputs=data.n_outputs,
            cell="rnn",
            last_only=True,
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return InPieces(net, pieces), data


class RhythmsLinear(SupervisedFamily):
    """Name the rhythm that three drums beat, with a linear recurrence.

    Data: as rhythms-rnn.
    Model: a diagonal linear recurrence of 24 to 64 units between a gated and a hidden layer.
    Drawn: slips, data seed, width, activation, norm, loss, batch size, gain, scales, label noise.
    Source: as rhythms-rnn; net after Orvieto et al., 2023, arXiv:2303.06349.
    """

    name = "rhythms-linear"
    dataset = "rhythms"
    architecture = "linear-recurrence"
    settings: ClassVar[Settings] = {
        "slips": RhythmsRNN.settings["slips"],
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (24, 32, 48, 64)),
        "activation": ("gelu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `LinearRecurrence` over steps."""
        data = rhythms(config["slips"], config["data_seed"])
        drums = data.splits["train"][0].shape[-1]
        shape = (config["activation"], config["norm"], config["init_gain"])
        return LinearRecurrence(drums, config["width"], data.n_outputs, *shape), data


class FactsMLP(SupervisedFamily):
    """Complete facts with a vector for each subject, relation and time, and an MLP.

    Data: as facts-distmult.
    Model: vectors of 6 to 16 side by side, 1 or 2 hidden layers of 24 to 64.
    Drawn: noise, data seed, embedding, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as facts-distmult; net after Dong et al., 2014, "Knowledge Vault".
    """

    name = "facts-mlp"
    dataset = "facts"
    architecture = "entity-embedding"
    settings: ClassVar[Settings] = {
        "noise": FactsDistMult.settings["noise"],
        "data_seed": (1, DATA_SEEDS),
        "embed": (12, (6, 8, 12, 16)),
        "width": (48, (24, 32, 48, 64)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `PairMLP` of three names."""
        data = facts(config["noise"], config["data_seed"])
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        return PairMLP(N_NAMES, config["embed"], hidden, data.n_outputs, *shape, columns=3), data
