"""A family on small drawn graphs, whose nodes tell each other what they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from .base import Params
from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .nets import ACTIVATIONS, Net, Weights, add_linear, add_norm, layer_norm, linear
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    NORMS,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)

_ROWS: Final = 6_144
_ATOMS, _KINDS = 9, 4


@cache
def _molecules(density: float, noise: float, seed: int) -> Dataset:
    """Rings with cross bonds and the energy of bonds, triangles and kinds; (N, atoms, columns).

    An atom's columns: its kind, one-hot, and whether it is bound to each of the others.
    """
    rng = generator("molecules", int(100 * density), seed)
    n = n_drawn(_ROWS)
    kind = rng.choice(_KINDS, p=(0.5, 0.25, 0.15, 0.1), size=(n, _ATOMS))
    bound = np.triu(rng.random((n, _ATOMS, _ATOMS)) < density, 1)
    around = np.arange(_ATOMS)
    bound[:, around[:-1], around[1:]] = True
    bond = (bound | bound.transpose(0, 2, 1)).astype(np.int64)
    strength = rng.normal(size=(_KINDS, _KINDS))
    strength = strength + strength.T
    pair = strength[kind[:, :, None], kind[:, None, :]]
    triangles = np.einsum("nij,njk,nki->n", bond, bond, bond) / 6.0
    energy = 0.5 * (bond * pair).sum((1, 2)) / 2.0 + rng.normal(size=_KINDS)[kind].sum(1)
    energy = energy - 0.5 * triangles
    energy = energy + noise * energy.std() * rng.normal(size=n)
    columns = np.concatenate([np.eye(_KINDS, dtype=np.int64)[kind], bond], 2)
    return in_order(columns, energy[:, None], 1, kind="values")


@dataclass(frozen=True)
class MessagePassing:
    """Nodes with a state each, which is updated from itself and the sum over neighbours.

    Source: Gilmer et al., 2017, arXiv:1704.01212, with a linear message.
    """

    kinds: int
    width: int
    rounds: int
    n_outputs: int
    activation: str = "relu"
    norm: str = "none"
    gain: float = 1.0

    def init(self, generator: torch.Generator) -> Params:
        """Draw "embed", "round0" to "roundN" of shape (width, 2 * width), norms, "head"."""
        params: Params = {}
        first = (self.width, self.kinds)
        add_linear(params, "embed", first, generator, self.gain, self.activation)
        for i in range(self.rounds):
            shape = (self.width, 2 * self.width)
            add_linear(params, f"round{i}", shape, generator, self.gain, self.activation)
            if self.norm == "layer":
                add_norm(params, f"norm{i}", self.width)
        add_linear(params, "head", (self.n_outputs, self.width), generator, self.gain)
        return params

    def __call__(self, params: Weights, inputs: Tensor) -> Tensor:
        """Graphs (N, nodes, kinds + nodes) of 0 and 1 to (N, n_outputs)."""
        activation = ACTIVATIONS[self.activation]
        x = inputs.to(params["embed.weight"].dtype)
        bonds = x[..., self.kinds :]
        state = activation(linear(x[..., : self.kinds], params, "embed"))
        for i in range(self.rounds):
            told = torch.cat([state, bonds @ state], -1)
            state = activation(layer_norm(linear(told, params, f"round{i}"), params, f"norm{i}"))
        return linear(state.mean(-2), params, "head")


class MoleculesGraphNet(SupervisedFamily):
    """Regress the energy of a drawn molecule of nine atoms with a message-passing net.

    Data: 6,144 molecules of atoms of four kinds in a chain with cross bonds; bonds have a strength
    by the kinds they join, atoms one by their own, and triangles cost; noise of 2% to 20%.
    Model: states of 12 to 32, 1 to 3 rounds, their mean, a linear layer.
    Drawn: density, noise, data seed, width, rounds, activation, norm, loss, batch size, gain,
    scales, target noise.
    Source: Gilmer et al., 2017, arXiv:1704.01212.
    """

    name = "molecules-graphnet"
    dataset = "molecules"
    architecture = "message-passing"
    settings: ClassVar[Settings] = {
        "density": (0.2, (0.1, 0.2, 0.3)),
        "noise": (0.05, (0.02, 0.05, 0.2)),
        "data_seed": (1, DATA_SEEDS),
        "width": (16, (12, 16, 24, 32)),
        "rounds": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `MessagePassing` net with one output."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = MessagePassing(_KINDS, config["width"], config["rounds"], 1, *shape)
        return net, _molecules(config["density"], config["noise"], config["data_seed"])
