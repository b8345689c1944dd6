"""Families on names that stand in relations: facts of a graph, players who meet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Params
from .data import Dataset, generator
from .drawing import DATA_SEEDS, distinct_cells, in_order, n_drawn
from .nets import MLP, Net, Weights, embedding, normal
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_FACTS, _MEETINGS = 12_288, 8_192
_THINGS, _RELATIONS, _TIMES, _KINDS = 160, 8, 24, 12
#: Of the facts' table: things, relations and times, numbered through.
N_NAMES = _THINGS + _RELATIONS + _TIMES
_PLAYERS, _SKILLS = 150, 3


@cache
def facts(noise: float, seed: int) -> Dataset:
    """Subject, relation and time of facts; the class is the kind of the object."""
    rng = generator("facts", int(10 * noise), seed)
    sizes, hidden = (_THINGS, _RELATIONS, _TIMES), 5
    often = [np.log(rng.dirichlet(np.full(size, 2.0))) for size in sizes]
    fact = distinct_cells(reduce(np.add.outer, often), n_drawn(_FACTS), rng)
    vectors = [rng.normal(size=(size, hidden)) for size in sizes]
    product = np.prod([v[column] for v, column in zip(vectors, fact.T, strict=True)], 0)
    score = product @ rng.normal(size=(hidden, _KINDS))
    label = (score + noise * rng.gumbel(size=score.shape)).argmax(1)
    return in_order(fact + np.cumsum((0, *sizes[:-1])), label, _KINDS)


@dataclass(frozen=True)
class DistMult:
    """Scores of all objects: the product of the vectors of a fact's names and of the object's.

    Source: Yang et al., 2015, arXiv:1412.6575; with a vector for the time too: Lacroix et al.,
    2020, arXiv:2004.04926, without complex numbers.
    """

    embed: int
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "name.weight" for subjects, relations and times, "object.weight" and a zero bias."""
        std = self.gain * self.embed ** (-1.0 / 8.0)  # products of four add up to about 1
        return {
            "name.weight": normal(generator, (N_NAMES, self.embed), std),
            "object.weight": normal(generator, (_KINDS, self.embed), std),
            "object.bias": torch.zeros(_KINDS),
        }

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Subject, relation and time (N, 3), numbered through, to logits (N, kinds)."""
        first, second, third = embedding(params["name.weight"], inputs).unbind(-2)
        return (first * second * third) @ params["object.weight"].T + params["object.bias"]


class FactsDistMult(SupervisedFamily):
    """Complete facts: which kind of object belongs to this subject, relation and time.

    Data: 12,288 facts on 160 things, some named more often than others, in 8 relations at 24 times,
    to 12 kinds.
    Model: vectors of 6 to 24 for every thing, relation, time and kind, multiplied.
    Drawn: noise, data seed, embedding, loss, batch size, gain, scales, label noise.
    Source: Yang et al., 2015, arXiv:1412.6575.
    """

    name = "facts-distmult"
    dataset = "facts"
    architecture = "distmult"
    settings: ClassVar[Settings] = {
        "noise": (0.5, (0.2, 0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (12, (6, 12, 16, 24)),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `DistMult`."""
        data = facts(config["noise"], config["data_seed"])
        return DistMult(config["embed"], config["init_gain"]), data


@cache
def _meetings(luck: float, seed: int) -> Dataset:
    """Pairs of players; the class is how it went: lost, drawn or won."""
    rng = generator("meetings", int(10 * luck), seed)
    n = n_drawn(_MEETINGS)
    pairs = distinct_cells(np.where(np.eye(_PLAYERS, dtype=bool), -np.inf, 0.0), n, rng)
    first, second = pairs.T
    strength = rng.normal(size=_PLAYERS)
    style = rng.normal(size=(_PLAYERS, _SKILLS))
    # some styles beat some others, in a circle: no single strength tells it all
    beats = np.roll(np.eye(_SKILLS), 1, 1) - np.roll(np.eye(_SKILLS), -1, 1)
    edge = strength[first] - strength[second] + ((style[first] @ beats) * style[second]).sum(1)
    edge = edge + luck * rng.logistic(size=n)
    return in_order(pairs, np.digitize(edge, (-0.7, 0.7)), 3)


@dataclass(frozen=True)
class PairMLP:
    """The vectors of two names, or of more, from one table, side by side, then an MLP."""

    names: int
    embed: int
    hidden: tuple[int, ...]
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0
    columns: int = 2

    @property
    def _mlp(self) -> MLP:
        widths = (self.columns * self.embed, *self.hidden, self.n_outputs)
        return MLP(widths, self.activation, self.norm, self.gain)

    def init(self, generator: torch.Generator) -> Params:
        """Draw "name.weight", then the layers of an `MLP`."""
        table = normal(generator, (self.names, self.embed), 0.5)
        return {"name.weight": table, **self._mlp.init(generator)}

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Names (N, columns) to (N, n_outputs)."""
        pair = embedding(params["name.weight"], inputs)
        return self._mlp(params, pair.reshape(len(pair), -1))


class MeetingsMLP(SupervisedFamily):
    """Predict how two players' meeting goes, with a vector for each player and an MLP.

    Data: 8,192 meetings of 150 players who differ in strength, and in styles of which one beats the
    next in a circle. No meeting is in two splits, but a third of those held out have been trained
    on the other way round, as a rematch.
    Model: vectors of 4 to 12, 1 or 2 hidden layers of 16 to 48.
    Drawn: luck, data seed, embedding, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: data after Bradley and Terry, 1952, with circles as in Balduzzi et al., 2018,
    arXiv:1806.02643.
    """

    name = "meetings-mlp"
    dataset = "meetings"
    architecture = "entity-embedding"
    settings: ClassVar[Settings] = {
        "luck": (0.3, (0.1, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (8, (4, 8, 12)),
        "width": (32, (16, 24, 32, 48)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `PairMLP`."""
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        data = _meetings(config["luck"], config["data_seed"])
        return PairMLP(_PLAYERS, config["embed"], hidden, 3, *shape), data
