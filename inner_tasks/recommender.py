"""A recommender on drawn implicit feedback."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Params, Split
from .data import Dataset, dataset, deal, generator
from .nets import MLP, Net, Weights, embedding, normal
from .supervised import BATCH_SIZES, Config, Settings, SupervisedFamily

N_USERS, N_ITEMS = 200, 150
_POSITIVES, _RANK = 60, 4


@cache
def _feedback(negatives: int, seed: int) -> Dataset:
    """60 items per user by a rank-4 taste and a popularity; others as negatives."""
    rng = generator("recommender", negatives, seed)
    taste = rng.normal(size=(N_USERS, _RANK)) @ rng.normal(size=(_RANK, N_ITEMS)) / np.sqrt(_RANK)
    score = 1.5 * taste + rng.normal(size=N_ITEMS) + rng.gumbel(size=(N_USERS, N_ITEMS))
    items = np.argsort(-score, axis=1)  # Gumbel noise: draws without replacement from a softmax
    rows, labels = [], []
    for user, ranked in enumerate(items):
        chosen, rest = ranked[:_POSITIVES], ranked[_POSITIVES:]
        wrong = rng.choice(rest, _POSITIVES * negatives)
        rows.append(np.stack(np.broadcast_arrays(user, np.concatenate([chosen, wrong])), 1))
        labels.append(np.repeat([1, 0], [_POSITIVES, _POSITIVES * negatives]))
    pairs, clicked = np.concatenate(rows), np.concatenate(labels)
    inputs: dict[Split, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    targets: dict[Split, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    # Pairs, not rows, are dealt: a negative drawn twice must not sit in two splits.
    codes = pairs[:, 0] * N_ITEMS + pairs[:, 1]
    unique, index = np.unique(codes, return_inverse=True)
    for split, kept in deal(len(unique), "recommender").items():
        inside = np.isin(index, kept).nonzero()[0]
        inside = generator("recommender rows", split).permutation(inside)
        inputs[split], targets[split] = pairs[inside], clicked[inside]
        if split != "train":
            inputs[split], targets[split] = inputs[split][: len(kept)], targets[split][: len(kept)]
    return dataset(inputs, targets, 1)


@dataclass(frozen=True)
class Factorisation:
    """Logit of a click: user . item + biases, plus an MLP of both embeddings if `hidden` > 0."""

    rank: int
    hidden: int = 0
    activation: str = "relu"
    gain: float = 1.0

    @property
    def _mlp(self) -> MLP:
        return MLP((2 * self.rank, self.hidden, 1), self.activation, gain=self.gain)

    def init(self, generator: torch.Generator) -> Params:
        """Embeddings of std gain * rank**-0.5, zero biases, the MLP's layers."""
        std = self.gain / self.rank**0.5
        params: Params = {
            "user.weight": normal(generator, (N_USERS, self.rank), std),
            "item.weight": normal(generator, (N_ITEMS, self.rank), std),
            "user_bias.weight": torch.zeros(N_USERS, 1),
            "item_bias.weight": torch.zeros(N_ITEMS, 1),
            "bias": torch.zeros(1),
        }
        return {**params, **self._mlp.init(generator)} if self.hidden else params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Pairs (N, 2) of user and item to logits (N, 1)."""
        users, items = inputs.unbind(-1)
        user = embedding(params["user.weight"], users)
        item = embedding(params["item.weight"], items)
        biases = embedding(params["user_bias.weight"], users)
        biases = biases + embedding(params["item_bias.weight"], items) + params["bias"]
        logits = (user * item).sum(-1, keepdim=True) + biases
        if self.hidden:
            logits = logits + self._mlp(params, torch.cat((user, item), -1))
        return logits


class Recommender(SupervisedFamily):
    """Predict clicks by matrix factorisation, or NeuMF in small.

    Data: drawn feedback of 200 users on 150 items, 1 to 4 negatives per positive drawn into it.
    Model: embeddings of 4 to 16 and biases; with `hidden`, an MLP beside the product.
    Drawn: negatives, data seed, rank, hidden, activation, batch size, gain, scale, label noise.
    Overfits: scored by its best validation loss.
    Source: He et al., 2017, arXiv:1708.05031.
    """

    name = "recommender"
    dataset = "implicit-feedback"
    architecture = "ncf"
    selection = "best"
    settings: ClassVar[Settings] = {
        "negatives": (2, (1, 2, 4)),
        "data_seed": (1, tuple(range(1, 9))),
        "rank": (8, (4, 8, 12, 16)),
        "head": ("product", ("product", "product+mlp")),
        "hidden": (16, (8, 16, 24)),
        "activation": ("relu", ("relu", "gelu", "tanh", "silu")),
        "loss": ("binary-cross-entropy", ("binary-cross-entropy",)),
        "batch_size": (64, (*BATCH_SIZES[1:], 256)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Factorisation`."""
        hidden = config["hidden"] if config["head"] == "product+mlp" else 0
        net = Factorisation(config["rank"], hidden, config["activation"], config["init_gain"])
        return net, _feedback(config["negatives"], config["data_seed"])
