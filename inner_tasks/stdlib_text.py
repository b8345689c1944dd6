"""Language models of text that travels with Python, none of it Python source."""

from __future__ import annotations

from typing import ClassVar

from .conv1d_nets import CausalConv
from .data import Dataset
from .nets import Net
from .sequence_nets import TokenMLP
from .supervised import ALL_ACTIVATIONS, BATCH_SIZES, NORMS, Config, Settings, SupervisedFamily
from .text import python_docs, unicode_names

_CONTEXT = 8
_WINDOW = 16


class DocsMLP(SupervisedFamily):
    """Predict the next character of English documentation from the last eight, with an MLP.

    Data: the prose of the topics of Python's `help()`, without the indented examples; 96
    characters.
    Model: embeddings side by side, 1 or 2 hidden layers.
    Drawn: embedding, width, depth, activation, norm, batch size, gain, scales, label noise.
    Source: Bengio et al., 2003, "A Neural Probabilistic Language Model"; text from the Python
    Language Reference.
    """

    name = "docs-mlp"
    dataset = "python-docs"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "embed": (8, (4, 8, 12)),
        "width": (32, (24, 32, 48, 64)),
        "depth": (1, (1, 1, 2)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TokenMLP` over eight characters."""
        data = python_docs(_CONTEXT)
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        return TokenMLP(data.n_outputs, _CONTEXT, config["embed"], hidden, *shape), data


class NamesConv(SupervisedFamily):
    """Predict each next character of Unicode's names with dilated causal convolutions.

    Data: names of characters ("GREEK SMALL LETTER ALPHA"), one per line in random order, windows
    of 16; 39 characters.
    Model: embedding, 2 or 3 causal convolutions of kernel 3, dilation 1, 2, 4.
    Drawn: embedding, width, depth, activation, norm, batch size, gain, scales, label noise.
    Source: van den Oord et al., 2016, arXiv:1609.03499, made small; names from the Unicode
    Character Database.
    """

    name = "names-conv"
    dataset = "unicode-names"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "embed": (8, (4, 8, 12)),
        "width": (16, (12, 16, 24)),
        "depth": (2, (2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (16, (4, 8, 16, 32)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `CausalConv` over characters."""
        data = unicode_names(_WINDOW)
        net = CausalConv(
            vocabulary=data.n_outputs,
            embed=config["embed"],
            width=config["width"],
            layers=config["depth"],
            activation=config["activation"],
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, data
