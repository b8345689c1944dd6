"""A family on drawn graphs: every node is a row of a lookup table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Params
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import Net, Weights, embedding, normal
from .supervised import Config, Settings, SupervisedFamily

_ROWS, _NODES, _PLACES, _GROUPS = 16_384, 500, 3, 10


@cache
def _links(spread: float, seed: int) -> Dataset:
    """Pairs of nodes and whether they are linked: the nearer they lie, the likelier."""
    rng = generator("links", seed)
    centre = rng.normal(size=(_GROUPS, _PLACES))
    place = centre[rng.integers(_GROUPS, size=_NODES)] + spread * rng.normal(size=(_NODES, _PLACES))
    social = rng.normal(size=_NODES)
    # nodes with many links are also asked about more often
    chance = np.exp(0.7 * social) / np.exp(0.7 * social).sum()
    every = np.arange(_NODES * _NODES).reshape(_NODES, _NODES)[np.triu_indices(_NODES, 1)]
    first, second = every // _NODES, every % _NODES
    weight = chance[first] * chance[second]
    # without replacement, so that no pair lies in two splits
    drawn = np.argsort(-(np.log(weight) + rng.gumbel(size=len(weight))))[: n_drawn(_ROWS)]
    first, second = first[drawn], second[drawn]
    distance = np.square(place[first] - place[second]).sum(1)
    score = 3.0 - 1.5 * distance + social[first] + social[second]
    linked = rng.random(len(score)) < 1.0 / (1.0 + np.exp(-score))
    order = rng.permutation(len(score))
    pairs = np.stack([first, second], 1)[order]
    return in_order(pairs, linked[order].astype(np.int64), 2)


@dataclass(frozen=True)
class LatentSpace:
    """Logits of a link: how near two nodes lie, and how sociable either is.

    Source: Hoff, Raftery and Handcock, 2002, "Latent Space Approaches to Social Network Analysis".
    """

    embed: int
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "place" (a row per node); zero "social", one "bias"."""
        std = self.gain / self.embed**0.5
        return {
            "place.weight": normal(generator, (_NODES, self.embed), std),
            "social.weight": torch.zeros(_NODES, 1),
            "bias": torch.zeros(1),
        }

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Pairs (N, 2) of nodes to logits (N, 2) of "not linked" and "linked"."""
        place = embedding(params["place.weight"], inputs)
        social = embedding(params["social.weight"], inputs).sum((-2, -1))
        near = -(place[..., 0, :] - place[..., 1, :]).square().sum(-1)
        logit = params["bias"] + social + near
        return torch.stack([torch.zeros_like(logit), logit], -1)


class GraphDistance(SupervisedFamily):
    """Predict the links of a drawn graph of 500 nodes from learned places of its nodes.

    Data: 16,384 pairs; nodes lie in ten groups and are linked the likelier the nearer they are, and
    some nodes are asked about often, others hardly: each has its own row, and a step's gradient
    reaches a part of them.
    Model: a place of 4 to 16 numbers and a sociability per node, one bias.
    Drawn: spread of the groups, data seed, embedding, batch size, gain, scales, label noise.
    Source: Hoff et al., 2002.
    """

    name = "graph-distance"
    dataset = "links"
    architecture = "latent-space"
    settings: ClassVar[Settings] = {
        "spread": (0.5, (0.3, 0.5, 0.8)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (8, (4, 8, 12, 16)),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `LatentSpace`."""
        net = LatentSpace(config["embed"], config["init_gain"])
        return net, _links(config["spread"], config["data_seed"])
