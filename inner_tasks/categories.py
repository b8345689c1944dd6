"""Families of lookup tables: a step gives many of their rows no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import Params
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
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

_ROWS, _CHAIN_ROWS = 8_192, 12_288
_COLUMNS: Final[tuple[int, ...]] = (200, 60, 12)
_LATENT, _CLASSES = 4, 8
_VOCABULARY, _CONTEXT, _STATES = 256, 3, 24


def zipf(n: int, power: float) -> NDArray[np.float64]:
    """Probabilities of `n` words or entities, the k-th in proportion to k ** -power."""
    weights = np.arange(1, n + 1) ** -power
    return np.asarray(weights / weights.sum())


@cache
def _table(skew: float, seed: int) -> Dataset:
    """Rows of three categories; the class depends on the product of what is hidden behind them."""
    rng = generator("categories", seed)
    n = n_drawn(_ROWS)
    columns = [rng.choice(size, n, p=zipf(size, skew)) for size in _COLUMNS]
    hidden = [rng.normal(size=(size, _LATENT)) for size in _COLUMNS]
    first, second, third = (h[c] for h, c in zip(hidden, columns, strict=True))
    score = (first * second + third) @ rng.normal(size=(_LATENT, _CLASSES))
    label = (1.5 * score + rng.gumbel(size=score.shape)).argmax(1)
    offsets = np.cumsum((0, *_COLUMNS[:-1]))
    return in_order(np.stack(columns, 1) + offsets, label, _CLASSES)


@dataclass(frozen=True)
class EntityMLP:
    """Embeddings of a row's categories side by side, then an MLP.

    Source: Guo and Berkhahn, 2016, "Entity Embeddings of Categorical Variables", arXiv:1604.06737.
    """

    embed: int
    hidden: tuple[int, ...]
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    @property
    def _mlp(self) -> MLP:
        widths = (len(_COLUMNS) * self.embed, *self.hidden, _CLASSES)
        return MLP(widths, self.activation, self.norm, self.gain)

    def init(self, generator: torch.Generator) -> Params:
        """Draw one table for each column, then the layers of an `MLP`."""
        tables = {
            f"column{i}.weight": normal(generator, (size, self.embed), 0.5)
            for i, size in enumerate(_COLUMNS)
        }
        return {**tables, **self._mlp.init(generator)}

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Categories (N, 3), numbered through all columns, to logits (N, classes)."""
        parts, start = [], 0
        for i, (size, column) in enumerate(zip(_COLUMNS, inputs.unbind(-1), strict=True)):
            parts.append(embedding(params[f"column{i}.weight"], column - start))
            start += size
        return self._mlp(params, torch.cat(parts, -1))


class EntitiesMLP(SupervisedFamily):
    """Classify rows of three categories of 200, 60 and 12 values with embeddings and an MLP.

    Data: 8,192 rows; values are frequent and rare as by Zipf's law, and the class depends on the
    product of what is hidden behind two of them. Many rows of the tables have no gradient in a
    step, most of them where batches are small.
    Model: embeddings of 4 to 16 side by side, 1 or 2 hidden layers of 16 to 48.
    Drawn: skew, data seed, embedding, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: net after Guo and Berkhahn, 2016, arXiv:1604.06737.
    """

    name = "entities-mlp"
    dataset = "categories"
    architecture = "entity-embedding"
    settings: ClassVar[Settings] = {
        "skew": (0.5, (0.0, 0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (8, (4, 8, 12, 16)),
        "width": (32, (16, 24, 32, 48)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `EntityMLP`."""
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        data = _table(config["skew"], config["data_seed"])
        return EntityMLP(config["embed"], hidden, *shape), data


@cache
def _chain(skew: float, seed: int) -> Dataset:
    """Four words of a hidden Markov chain whose states prefer some words of a Zipf vocabulary."""
    rng = generator("zipf-chain", seed)
    n = n_drawn(_CHAIN_ROWS)
    move = rng.dirichlet(np.full(_STATES, 0.15), _STATES).cumsum(1)
    words = zipf(_VOCABULARY, skew) * rng.gamma(0.3, size=(_STATES, _VOCABULARY))
    words = (words / words.sum(1, keepdims=True)).cumsum(1)
    state = rng.integers(_STATES, size=n)
    written = []
    for _ in range(_CONTEXT + 1):
        written.append((rng.random((n, 1)) > words[state]).sum(1).clip(max=_VOCABULARY - 1))
        state = (rng.random((n, 1)) > move[state]).sum(1).clip(max=_STATES - 1)
    tokens = np.stack(written, 1)
    return in_order(tokens[:, :-1], tokens[:, -1], _VOCABULARY)


@dataclass(frozen=True)
class LogBilinear:
    """Next word: the words before it, each through a matrix of its place, against all words.

    Source: Mnih and Hinton, 2007, "Three New Graphical Models for Statistical Language Modelling".
    """

    embed: int
    tied: bool = False
    gain: float = 1.0
    vocabulary: int = _VOCABULARY
    context: int = _CONTEXT

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed", a matrix for each place and, unless tied, "output"; zero biases."""
        std = self.gain / math.sqrt(self.embed)
        params: Params = {"embed.weight": normal(generator, (self.vocabulary, self.embed), std)}
        for i in range(self.context):
            params[f"place{i}.weight"] = normal(generator, (self.embed, self.embed), std)
        if not self.tied:
            params["output.weight"] = normal(generator, (self.vocabulary, self.embed), std)
        params["output.bias"] = torch.zeros(self.vocabulary)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Words (N, context) to logits (N, vocabulary)."""
        said = [
            embedding(params["embed.weight"], word) @ params[f"place{i}.weight"].mT
            for i, word in enumerate(inputs.unbind(-1))
        ]
        table = params["embed.weight" if self.tied else "output.weight"]
        return torch.stack(said).sum(0) @ table.mT + params["output.bias"]


class ZipfBilinear(SupervisedFamily):
    """Predict the next word of a drawn language of 256 words with a log-bilinear model.

    Data: 12,288 pieces of four words of a hidden Markov chain of 24 states; few words are frequent,
    so that many rows of the embedding have no gradient in a step, unless it is the read-out too.
    Model: embeddings of 8 to 24 and one matrix per place; the read-out has the same low rank, or is
    the embedding itself.
    Drawn: skew, data seed, embedding, tied or not, batch size, gain, scales, label noise.
    Source: Mnih and Hinton, 2007.
    """

    name = "zipf-bilinear"
    dataset = "zipf-chain"
    architecture = "log-bilinear"
    settings: ClassVar[Settings] = {
        "skew": (1.0, (0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (16, (8, 12, 16, 24)),
        "readout": ("own", ("own", "tied")),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `LogBilinear`."""
        net = LogBilinear(config["embed"], config["readout"] == "tied", config["init_gain"])
        return net, _chain(config["skew"], config["data_seed"])
