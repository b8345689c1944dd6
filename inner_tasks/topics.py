"""Families on drawn tokens: documents of topics for a bag, sentences of a grammar for an MLP."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .mixing_nets import BagOfTokens
from .nets import Net
from .sequence_nets import TokenMLP
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_ROWS = 8_192
N_WORDS, N_TOPICS, _LENGTH = 400, 12, 24
_SYMBOLS, _STATES, _NEXT, _CONTEXT = 32, 40, 4, 6


@cache
def documents(focus: float, seed: int) -> Dataset:
    """Documents of 24 tokens; the class is the topic that has the largest share of the mixture."""
    rng = generator("topics", seed)
    n = n_drawn(_ROWS)
    words = rng.dirichlet(np.full(N_WORDS, 0.1), N_TOPICS)
    topic = rng.integers(N_TOPICS, size=n)
    shares = (1.0 - focus) * rng.dirichlet(np.full(N_TOPICS, 0.3), n)
    shares[np.arange(n), topic] += focus
    of = (rng.random((n, _LENGTH, 1)) > shares.cumsum(1)[:, None]).sum(-1).clip(max=N_TOPICS - 1)
    tokens = np.empty((n, _LENGTH), np.int64)
    for t in range(N_TOPICS):
        here = of == t
        tokens[here] = rng.choice(N_WORDS, int(here.sum()), p=words[t])
    return in_order(tokens, shares.argmax(1), N_TOPICS)


class TopicsBag(SupervisedFamily):
    """Name the main topic of a drawn document from the mean of its tokens' embeddings.

    Data: 8,192 documents of 24 tokens out of 400, each a mixture of 12 topics with words of their
    own; a step's gradient reaches only the rows of the table that its documents use.
    Model: embeddings of 8 to 32, the mean, up to 2 hidden layers of 16 to 48.
    Drawn: focus on the main topic, data seed, embedding, width, depth, activation, norm, loss,
    batch size, gain, scales, label noise.
    Source: data after Blei et al., 2003, "Latent Dirichlet Allocation"; net after Iyyer et al.,
    2015.
    """

    name = "topics-bag"
    dataset = "topics"
    architecture = "bag"
    settings: ClassVar[Settings] = {
        "focus": (0.4, (0.25, 0.4, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (16, (8, 16, 24, 32)),
        "width": (24, (16, 24, 32, 48)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `BagOfTokens`."""
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = BagOfTokens(N_WORDS, config["embed"], hidden, N_TOPICS, *shape)
        return net, documents(config["focus"], config["data_seed"])


@cache
def _sentences(seed: int) -> Dataset:
    """Seven symbols of a hidden Markov chain: 40 states, four successors, three symbols each."""
    rng = generator("grammar", seed)
    n = n_drawn(_ROWS)
    successors = np.stack([rng.permutation(_STATES)[:_NEXT] for _ in range(_STATES)])
    chances = rng.dirichlet(np.ones(_NEXT), _STATES)
    symbols = np.stack([rng.permutation(_SYMBOLS)[:3] for _ in range(_STATES)])
    state = rng.integers(_STATES, size=n)
    written = []
    for _ in range(_CONTEXT + 1):
        written.append(symbols[state, rng.integers(3, size=n)])
        choice = (rng.random((n, 1)) > chances[state].cumsum(1)).sum(1).clip(max=_NEXT - 1)
        state = successors[state, choice]
    tokens = np.stack(written, 1)
    return in_order(tokens[:, :-1], tokens[:, -1], _SYMBOLS)


class GrammarMLP(SupervisedFamily):
    """Predict the next symbol of a random grammar from the last six, with an MLP.

    Data: 8,192 sentences of a hidden Markov chain of 40 states, each with four successors and three
    of 32 symbols; one symbol leaves the state open, several narrow it down.
    Model: embeddings of 4 to 12 side by side, 1 or 2 hidden layers of 24 to 64.
    Drawn: grammar, embedding, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: Bengio et al., 2003, "A Neural Probabilistic Language Model".
    """

    name = "grammar-mlp"
    dataset = "grammar"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "data_seed": (1, DATA_SEEDS),
        "embed": (8, (4, 8, 12)),
        "width": (32, (24, 32, 48, 64)),
        "depth": (1, (1, 1, 2)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TokenMLP` over six symbols."""
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = TokenMLP(_SYMBOLS, _CONTEXT, config["embed"], hidden, *shape)
        return net, _sentences(config["data_seed"])
