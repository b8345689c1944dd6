"""Families of composed nets on the data of the families that policies were compared by at first.

A policy that was trained on these has met that data: judge it by other families.
"""

from __future__ import annotations

from typing import ClassVar

from .answers import BallotsMLP, HandsMLP, ballots, hands
from .composed_nets import Experts, MaxoutMLP, PolynomialNet, TiedMLP
from .data import Dataset
from .drawing import DATA_SEEDS
from .few_rows import FEW_ROWS, first
from .logic import FormulaResMLP, formulas
from .measurements import PricesMLP, prices
from .nets import Net
from .rhythms import TidesConv, tides
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)


class FormulaMaxout(SupervisedFamily):
    """Tell which of six formulas of propositional logic holds for 24 bits, with a maxout MLP.

    Data: as formula-resmlp.
    Model: 1 or 2 hidden layers of 16 to 48 units, each the largest of 2 or 3.
    Drawn: literals, data seed, width, depth, pieces, loss, batch size, gain, scales, label noise.
    Source: as formula-resmlp; net of Goodfellow et al., 2013, arXiv:1302.4389.
    """

    name = "formula-maxout"
    dataset = "formulas"
    architecture = "maxout-mlp"
    settings: ClassVar[Settings] = {
        "literals": FormulaResMLP.settings["literals"],
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48)),
        "depth": (1, (1, 1, 2)),
        "pieces": (2, (2, 2, 3)),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `MaxoutMLP` on bits."""
        data = formulas(config["literals"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
        return MaxoutMLP(widths, config["pieces"], config["init_gain"]), data


class PricesExperts(SupervisedFamily):
    """Predict a price with heavy tails with a mixture of experts.

    Data: as prices-mlp.
    Model: 3 to 8 experts of 8 to 24 hidden units, weighted by a softmax.
    Drawn: degrees of freedom, data seed, experts, width, activation, loss, batch size, gain,
    scales, target noise.
    Source: as prices-mlp; net after Jacobs et al., 1991, "Adaptive Mixtures of Local
    Experts", blended.
    """

    name = "prices-experts"
    dataset = "prices"
    architecture = "mixture-of-experts"
    settings: ClassVar[Settings] = {
        "tail": PricesMLP.settings["tail"],
        "data_seed": (1, DATA_SEEDS),
        "experts": (4, (3, 4, 6, 8)),
        "width": (16, (8, 12, 16, 24)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "loss": ("huber", ("huber", "huber", "squared-error")),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """`Experts` with one output."""
        data = prices(config["tail"], config["data_seed"])
        sizes = (data.n_inputs, config["experts"], config["width"], data.n_outputs)
        return Experts(*sizes, config["activation"], config["init_gain"]), data


class HandsExperts(SupervisedFamily):
    """Tell what five drawn cards are worth with a mixture of experts.

    Data: as hands-mlp.
    Model: 3 to 8 experts of 12 to 32 hidden units, weighted by a softmax.
    Drawn: data seed, experts, width, activation, loss, batch size, gain, scales, label noise.
    Source: as hands-mlp; net after Jacobs et al., 1991, "Adaptive Mixtures of Local
    Experts", blended.
    """

    name = "hands-experts"
    dataset = "hands"
    architecture = "mixture-of-experts"
    settings: ClassVar[Settings] = {
        "data_seed": (1, DATA_SEEDS),
        "experts": (6, (3, 4, 6, 8)),
        "width": (16, (12, 16, 24, 32)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": HandsMLP.settings["batch_size"],
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """`Experts` on one-hot cards."""
        data = hands(config["data_seed"])
        sizes = (data.n_inputs, config["experts"], config["width"], data.n_outputs)
        return Experts(*sizes, config["activation"], config["init_gain"]), data


class BallotsTied(SupervisedFamily):
    """Guess a voter's party, having seen few voters, with a branch that is gone through again.

    Data: as ballots-mlp.
    Model: a residual branch of width 24 to 64, 2 to 5 times with the same weights.
    Drawn: questions, candour, rows, data seed, width, times, activation, norm, loss, batch size,
    gain, scales, label noise.
    Source: as ballots-mlp; net after Dehghani et al., 2019, arXiv:1807.03819, without attention.
    """

    name = "ballots-tied"
    dataset = "ballots"
    architecture = "tied-mlp"
    settings: ClassVar[Settings] = {
        "questions": BallotsMLP.settings["questions"],
        "candour": BallotsMLP.settings["candour"],
        "rows": (1200, FEW_ROWS),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (24, 32, 48, 64)),
        "times": (3, (2, 3, 4, 5)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TiedMLP` on few voters."""
        data = ballots(config["questions"], config["candour"], config["data_seed"])
        sizes = (data.n_inputs, config["width"], config["times"], data.n_outputs)
        shape = (config["activation"], config["norm"], config["init_gain"])
        return TiedMLP(*sizes, *shape), first(data, config["rows"])


class TidesPolynomials(SupervisedFamily):
    """Foretell eight hours of tides from 48, with a net of polynomials.

    Data: as tides-conv.
    Model: none (a sum of polynomials of each hour) to 2 hidden layers of 8 to 24, degree 2 to 4.
    Drawn: weather, data seed, width, depth, degree, loss, batch size, gain, scales, target noise.
    Source: as tides-conv; net after Liu et al., 2024, arXiv:2404.19756, with Chebyshev's
    polynomials.
    """

    name = "tides-polynomials"
    dataset = "tides"
    architecture = "polynomial-net"
    settings: ClassVar[Settings] = {
        "weather": TidesConv.settings["weather"],
        "data_seed": (1, DATA_SEEDS),
        "width": (16, (8, 12, 16, 24)),
        "depth": (1, (0, 1, 1, 2)),
        "degree": (3, (2, 3, 4)),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `PolynomialNet` with eight outputs."""
        data = tides(config["weather"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], data.n_outputs)
        return PolynomialNet(widths, config["degree"], config["init_gain"]), data
