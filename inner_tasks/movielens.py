"""NeuMF on MovieLens-1M, from a file under `LHOPT_DATA`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import Params, Split
from .data import MAX_HELD_OUT, MAX_INNER_VALID, Dataset, dataset, generator, require
from .nets import MLP, Net, Weights, add_linear, embedding, linear, normal
from .supervised import Config, Settings, SupervisedFamily

MOVIELENS: Final = "movielens-1m-ncf/ml1m_ncf.npz"
N_USERS, N_ITEMS = 600, 400
NEGATIVES: Final = 4  # per positive, as in the paper

IntPairs = NDArray[np.int64]


@cache
def movielens() -> Dataset:
    """Pairs of the 400 most rated films and 600 users, each positive with 4 negatives.

    `test` is the file's leave-one-out split: one pair of a user and the first 4 of its 99 negatives
    that are among the films kept; users without are not in it. Of the rest, one pair of a user is
    in `outer_valid` and one in `inner_valid`, each with 4 films that the user never rated. No pair
    of a held-out split, positive or negative, is trained on. Rows are (user, film), in blocks of a
    positive and its negatives.
    """
    with np.load(require(MOVIELENS)) as stored:
        train, positive, negative = (
            stored[key].astype(np.int64) for key in ("train", "test", "test_negative")
        )
    items = np.argsort(-np.bincount(train[:, 1]), kind="stable")[:N_ITEMS]
    item_of = np.full(int(max(train[:, 1].max(), positive[:, 1].max(), negative.max())) + 1, -1)
    item_of[items] = np.arange(N_ITEMS)
    rng = generator("movielens")
    users = rng.permutation(len(positive))[:N_USERS]
    owned = _by_user(train, item_of, users)
    blocks: dict[Split, list[IntPairs]] = {
        "train": [], "inner_valid": [], "outer_valid": [], "test": []
    }  # fmt: skip
    limits = {"inner_valid": MAX_INNER_VALID, "outer_valid": MAX_HELD_OUT}
    for user, (old, liked) in enumerate(zip(users, owned, strict=True)):
        last = item_of[positive[old, 1]]
        unrated = np.setdiff1d(np.arange(N_ITEMS), np.append(liked, last))
        theirs = item_of[negative[old]]
        theirs = theirs[np.isin(theirs, unrated)][:NEGATIVES]
        if last >= 0 and len(theirs) == NEGATIVES:
            blocks["test"].append(_block(user, last, theirs))
            unrated = np.setdiff1d(unrated, theirs)
        liked, unrated = rng.permutation(liked), rng.permutation(unrated)
        for split in ("outer_valid", "inner_valid"):
            full = (len(blocks[split]) + 1) * (1 + NEGATIVES) > limits[split]
            if full or len(liked) < 3 or len(unrated) <= 2 * NEGATIVES:
                continue
            blocks[split].append(_block(user, liked[0], unrated[:NEGATIVES]))
            liked, unrated = liked[1:], unrated[NEGATIVES:]
        for item in liked:
            blocks["train"].append(_block(user, item, rng.choice(unrated, NEGATIVES)))
    inputs = {split: np.concatenate(rows) for split, rows in blocks.items()}
    label = np.array([1] + [0] * NEGATIVES)
    targets = {split: np.tile(label, len(rows)) for split, rows in blocks.items()}
    return dataset(inputs, targets, 1)


def _by_user(pairs: IntPairs, item_of: IntPairs, users: IntPairs) -> list[IntPairs]:
    """The kept films of each of these users."""
    items = item_of[pairs[:, 1]]
    pairs, items = pairs[items >= 0], items[items >= 0]
    order = np.argsort(pairs[:, 0], kind="stable")
    first = np.searchsorted(pairs[order, 0], users)
    last = np.searchsorted(pairs[order, 0], users, side="right")
    return [items[order[a:b]] for a, b in zip(first, last, strict=True)]


def _block(user: int, item: Any, negatives: IntPairs) -> IntPairs:
    films = np.append(item, negatives)
    return np.stack([np.full_like(films, user), films], 1)


@dataclass(frozen=True)
class NeuMF:
    """Logit of a linear layer over a product of embeddings and an MLP of two others."""

    users: int
    items: int
    rank: int
    hidden: int
    activation: str = "relu"
    gain: float = 1.0

    @property
    def _mlp(self) -> MLP:
        return MLP((2 * self.rank, self.hidden, self.rank), self.activation, gain=self.gain)

    def init(self, generator: torch.Generator) -> Params:
        """Embeddings of std 0.01 * gain as in the paper, the MLP's layers, "head"."""
        params: Params = {}
        for tower in ("product", "mlp"):
            for kind, n in (("user", self.users), ("item", self.items)):
                table = normal(generator, (n, self.rank), 0.01 * self.gain)
                params[f"{tower}_{kind}.weight"] = table
        params.update(self._mlp.init(generator))
        add_linear(params, "head", (1, 2 * self.rank), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Pairs (N, 2) of user and item to logits (N, 1)."""
        user, item = inputs.unbind(-1)
        product = embedding(params["product_user.weight"], user) * embedding(
            params["product_item.weight"], item
        )
        both = (
            embedding(params["mlp_user.weight"], user),
            embedding(params["mlp_item.weight"], item),
        )
        deep = self._mlp(params, torch.cat(both, -1))
        return linear(torch.cat((product, deep), -1), params, "head")


class NeuMFMovielens(SupervisedFamily):
    """Predict which films a user of MovieLens rates, by NeuMF.

    Data: MovieLens-1M, 600 users and the 400 most rated films, 4 negatives per rated film; the
    leave-one-out test split of the paper.
    Model: product and MLP towers with embeddings of their own of 4 to 16, one hidden layer.
    Drawn: rank, hidden, activation, batch size, gain, loss scale, label noise.
    Overfits: scored by its best validation loss.
    Source: He et al., 2017, arXiv:1708.05031; data by Harper and Konstan, 2015.
    """

    name = "neumf"
    dataset = "movielens-1m"
    architecture = "ncf"
    data_files = (MOVIELENS,)
    selection = "best"
    settings: ClassVar[Settings] = {
        "rank": (8, (4, 8, 12, 16)),
        "hidden": (16, (8, 16, 32)),
        "activation": ("relu", ("relu", "gelu", "tanh", "silu")),
        "loss": ("binary-cross-entropy", ("binary-cross-entropy",)),
        "batch_size": (256, (128, 256, 512)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `NeuMF`."""
        shape = (config["rank"], config["hidden"], config["activation"], config["init_gain"])
        return NeuMF(N_USERS, N_ITEMS, *shape), movielens()
