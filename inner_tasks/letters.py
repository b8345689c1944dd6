"""Families on strings of few letters: which motif a strand bears, which bracket comes next."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from .conv1d_nets import CausalConv
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import Net
from .sequence_nets import Recurrent
from .supervised import (
    ALL_ACTIVATIONS,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_STRANDS, _STRINGS = 8_192, 3_072
_BASES, _STRAND, _MOTIF, _MOTIFS, _PLACES = 4, 16, 5, 4, 4
_KINDS, _STRING = 4, 24


@cache
def _motifs(mutated: float, seed: int) -> Dataset:
    """Strands of 16 bases; the class is the motif that lies near its end, 0 if none does."""
    rng = generator("motifs", int(100 * mutated), seed)
    n = n_drawn(_STRANDS)
    often = rng.dirichlet(np.full(_BASES, 8.0))
    strand = rng.choice(_BASES, size=(n, _STRAND), p=often)
    # what a motif has in each of its places, more or less surely
    sure = rng.dirichlet(np.full(_BASES, 0.15), size=(_MOTIFS, _MOTIF)).cumsum(-1)
    label = rng.integers(_MOTIFS + 1, size=n)
    at = _STRAND - _MOTIF - rng.integers(_PLACES, size=n)
    drawn = (rng.random((n, _MOTIF, 1)) > sure[label - 1]).sum(-1).clip(max=_BASES - 1)
    kept = (rng.random(drawn.shape) >= mutated) & (label > 0)[:, None]
    place = at[:, None] + np.arange(_MOTIF)
    rows = np.arange(n)[:, None]
    strand[rows, place] = np.where(kept, drawn, strand[rows, place])
    return in_order(strand, label, _MOTIFS + 1)


class MotifsRNN(SupervisedFamily):
    """Name the motif that a strand of bases bears, with an RNN.

    Data: 8,192 drawn strands of 16 bases, with one of four motifs at one of four places near the
    end, or none; a motif is not spelt the same each time.
    Model: vectors of 4 to 8 for the bases, one recurrent layer of 16 to 48 with tanh, read out
    after the last base.
    Drawn: share that mutated, data seed, embedding, width, norm, loss, batch size, gain, scales,
    label noise.
    Source: motifs as position weight matrices after Stormo et al., 1982; Elman, 1990, "Finding
    Structure in Time".
    """

    name = "motifs-rnn"
    dataset = "motifs"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "mutated": (0.05, (0.0, 0.05, 0.1)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (4, (4, 8)),
        "width": (32, (16, 24, 32, 48)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net over bases."""
        net = Recurrent(
            n_inputs=config["embed"],
            width=config["width"],
            n_outputs=_MOTIFS + 1,
            cell="rnn",
            vocabulary=_BASES,
            last_only=True,
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, _motifs(config["mutated"], config["data_seed"])


@cache
def _brackets(deep: float, seed: int) -> Dataset:
    """Strings of four kinds of brackets; the targets are the same strings one place later."""
    rng = generator("brackets", int(100 * deep), seed)
    n = n_drawn(_STRINGS)
    often = rng.dirichlet(np.full(_KINDS, 3.0))
    # some kinds open inside of others more readily
    inside = rng.dirichlet(np.full(_KINDS, 0.5), size=_KINDS)
    string = np.zeros((n, _STRING + 1), np.int64)
    for row in string:
        open_now: list[int] = []
        for place in range(_STRING + 1):
            if open_now and rng.random() >= deep ** (1 + len(open_now) // 3):
                row[place] = _KINDS + open_now.pop()
                continue
            chance = inside[open_now[-1]] if open_now else often
            open_now.append(int(rng.choice(_KINDS, p=chance)))
            row[place] = open_now[-1]
    return in_order(string[:, :-1], string[:, 1:], 2 * _KINDS)


class BracketsCausal(SupervisedFamily):
    """Foretell the next bracket of a string of four kinds, with causal convolutions.

    Data: 3,072 drawn strings of 24 brackets, opened and closed in order; which kind opens depends
    on what it opens in.
    Model: vectors of 8 for the brackets, 2 or 3 causal convolutions of 16 to 32.
    Drawn: how readily brackets open, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, label noise.
    Source: strings of Dyck's language; net after van den Oord et al., 2016, arXiv:1609.03499.
    """

    name = "brackets-causal"
    dataset = "brackets"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "deep": (0.6, (0.5, 0.6, 0.7)),
        "data_seed": (1, DATA_SEEDS),
        "width": (24, (16, 24, 32)),
        "depth": (2, (2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (16, (8, 16, 32)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `CausalConv` over brackets."""
        net = CausalConv(
            vocabulary=2 * _KINDS,
            embed=8,
            width=config["width"],
            layers=config["depth"],
            activation=config["activation"],
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, _brackets(config["deep"], config["data_seed"])
