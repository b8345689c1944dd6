"""A family on a drawn language with many words, most of them rare."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from .categories import zipf
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import Net
from .sequence_nets import TokenMLP
from .supervised import ALL_ACTIVATIONS, Config, Settings, SupervisedFamily

_ROWS, _VOCABULARY, _CONTEXT, _STATES, _TOPICS = 24_576, 600, 4, 48, 6


@cache
def _sentences(skew: float, seed: int) -> Dataset:
    """Five words of a hidden Markov chain whose words depend on a topic that stays, too."""
    rng = generator("vocabulary", seed)
    n = n_drawn(_ROWS)
    move = rng.dirichlet(np.full(_STATES, 0.08), _STATES).cumsum(1)
    taste = rng.gamma(0.15, size=(_STATES, _VOCABULARY))
    colour = rng.gamma(0.5, size=(_TOPICS, 1, _VOCABULARY))
    words = zipf(_VOCABULARY, skew) * taste * colour
    words = (words / words.sum(-1, keepdims=True)).cumsum(-1)
    state, topic = rng.integers(_STATES, size=n), rng.integers(_TOPICS, size=n)
    written = []
    for _ in range(_CONTEXT + 1):
        chance = rng.random(n)
        word = np.empty(n, np.int64)
        # a cell at a time: all at once would hold n x vocabulary numbers
        for cell in np.unique(state * _TOPICS + topic):
            here = state * _TOPICS + topic == cell
            word[here] = np.searchsorted(words[topic[here][0], state[here][0]], chance[here])
        written.append(word.clip(max=_VOCABULARY - 1))
        state = (rng.random((n, 1)) > move[state]).sum(1).clip(max=_STATES - 1)
    tokens = np.stack(written, 1)
    return in_order(tokens[:, :-1], tokens[:, -1], _VOCABULARY)


class VocabularyMLP(SupervisedFamily):
    """Predict the next word of a drawn language of 600 words with Bengio's MLP.

    Data: 24,576 pieces of five words of a hidden Markov chain of 48 states and a topic; few words
    are frequent, and a step's gradient reaches a part of the table.
    Model: embeddings of 8 to 24 side by side, a hidden layer of 16 to 48.
    Drawn: skew, data seed, embedding, width, activation, batch size, gain, scales, label noise.
    Source: net after Bengio et al., 2003, "A Neural Probabilistic Language Model".
    """

    name = "vocabulary-mlp"
    dataset = "vocabulary"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "skew": (1.0, (0.7, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (16, (8, 12, 16, 24)),
        "width": (32, (16, 24, 32, 48)),
        "activation": ("tanh", ALL_ACTIVATIONS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `TokenMLP`."""
        shape = (config["activation"], "none", config["init_gain"])
        net = TokenMLP(_VOCABULARY, _CONTEXT, config["embed"], (config["width"],), *shape)
        return net, _sentences(config["skew"], config["data_seed"])
