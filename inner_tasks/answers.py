"""Families on tables of choices: what a hand of cards is worth, what a voter votes for."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .few_rows import FEW_ROWS, first
from .nets import MLP, Net
from .supervised import ALL_ACTIVATIONS, CLASS_LOSSES, NORMS, Config, Settings, SupervisedFamily

_ROWS: Final = 8_192
_SUITS, _RANKS, _CARDS = 4, 8, 5
_WORTHS, _PARTIES, _OPINIONS = 6, 5, 3


@cache
def hands(seed: int) -> Dataset:
    """Five cards of 32, from many packs, one-hot by suit and rank; the class is their worth.

    Nothing, a pair, two pairs, three of a kind or better, all of one suit, a straight.
    """
    rng = generator("hands", seed)
    n = n_drawn(_ROWS)
    card = rng.random((n, _SUITS * _RANKS)).argsort(1)[:, :_CARDS]
    # a third are drawn to be alike, or nobody ever holds a good hand
    alike = rng.random(n) < 0.35
    near = (card[:, :1] + np.arange(_CARDS) * rng.choice((1, _RANKS), size=(n, 1))) % 32
    card = np.where(alike[:, None] & (rng.random((n, _CARDS)) < 0.8), near, card)
    suit, rank = card // _RANKS, card % _RANKS
    counts = np.sort((rank[..., None] == np.arange(_RANKS)).sum(1), 1)
    worth = np.zeros(n, np.int64)
    worth[counts[:, -1] == 2] = 1
    worth[(counts[:, -1] == 2) & (counts[:, -2] == 2)] = 2
    worth[counts[:, -1] >= 3] = 3
    worth[(suit == suit[:, :1]).all(1)] = 4
    worth[(counts[:, -1] == 1) & (np.ptp(rank, 1) == _CARDS - 1)] = 5
    seen = np.concatenate([np.eye(_SUITS)[suit], np.eye(_RANKS)[rank]], 2)
    return in_order(seen.reshape(n, -1), worth, _WORTHS)


class HandsMLP(SupervisedFamily):
    """Tell what five drawn cards are worth with an MLP.

    Data: 8,192 hands of five cards of four suits and eight ranks, from many packs, one-hot in the
    order in which they were drawn; six classes of very unequal size. No noise but a drawn one.
    Model: 1 or 2 hidden layers of 32 to 96.
    Drawn: data seed, width, depth, activation, norm, loss, batch size, gain, scales, label noise.
    Source: after Cattral et al., 2002, UCI "Poker Hand".
    """

    name = "hands-mlp"
    dataset = "hands"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "data_seed": (1, DATA_SEEDS),
        "width": (64, (32, 48, 64, 96)),
        "depth": (2, (1, 2, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on one-hot cards."""
        data = hands(config["data_seed"])
        widths = (_CARDS * (_SUITS + _RANKS), *(config["width"],) * config["depth"], _WORTHS)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


@cache
def ballots(questions: int, candour: float, seed: int) -> Dataset:
    """Yes or no to many questions, by three hidden opinions; the class is the nearest party."""
    rng = generator("ballots", questions, seed)
    n = n_drawn(max(FEW_ROWS))
    opinion = rng.normal(size=(n, _OPINIONS))
    lean = rng.normal(size=(_OPINIONS, questions))
    score = candour * (opinion @ lean + rng.normal(size=questions))
    answer = rng.random((n, questions)) < 1.0 / (1.0 + np.exp(-score))
    party = rng.normal(size=(_PARTIES, _OPINIONS))
    distance = np.square(opinion[:, None] - party).sum(2) + 0.5 * rng.gumbel(size=(n, _PARTIES))
    return in_order(answer.astype(float), distance.argmin(1), _PARTIES)


class BallotsMLP(SupervisedFamily):
    """Guess a voter's party from yes and no to many questions, having seen few voters.

    Data: 300 to 2,400 drawn voters to train on, 24 to 80 answers each, which three hidden opinions
    lie behind, more or less candidly.
    Model: 1 to 3 hidden layers of 24 to 96.
    Drawn: questions, candour, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, label noise.
    Source: answers after Rasch, 1960; parties after Downs, 1957.
    """

    name = "ballots-mlp"
    dataset = "ballots"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "questions": (40, (24, 40, 80)),
        "candour": (1.0, (0.5, 1.0, 2.0)),
        "rows": (1200, FEW_ROWS),
        "data_seed": (1, DATA_SEEDS),
        "width": (48, (24, 32, 48, 64, 96)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few voters."""
        data = ballots(config["questions"], config["candour"], config["data_seed"])
        widths = (config["questions"], *(config["width"],) * config["depth"], _PARTIES)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, first(data, config["rows"])
