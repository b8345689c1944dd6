"""Families on many alike things at once: spins, stones on a board, a swarm."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .few_rows import FEW_ROWS, first
from .mixing_nets import DeepSets, ResidualMLP
from .nets import MLP, Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)

_ROWS: Final = 8_192
_LATTICE, _WARMTHS, _SWEEPS = 8, 4, 40
_BOARD, _OUTCOMES = 5, 4
_BIRDS, _MANNERS = 12, 5


@cache
def _spins(coldest: float, seed: int) -> Dataset:
    """Lattices of spins in equilibrium, nearly; the class is how warm they are, of four."""
    rng = generator("spins", int(10 * coldest), seed)
    n = n_drawn(_ROWS)
    warmth = rng.uniform(coldest, 4.5, n)
    spin = rng.choice((-1, 1), size=(n, _LATTICE, _LATTICE))
    row, column = np.mgrid[:_LATTICE, :_LATTICE]
    for half in range(2 * _SWEEPS):  # Glauber's dynamics, one colour of the board at a time
        around = sum(np.roll(spin, by, axis) for by in (-1, 1) for axis in (1, 2))
        up = rng.random(spin.shape) < 1.0 / (1.0 + np.exp(-2.0 * around / warmth[:, None, None]))
        turn = (row + column) % 2 == half % 2
        spin = np.where(turn, np.where(up, 1, -1), spin)
    label = warmth.argsort().argsort() * _WARMTHS // n
    return in_order(spin.reshape(n, -1).astype(float), label, _WARMTHS)


class SpinsMLP(SupervisedFamily):
    """Say how warm a lattice of spins is, with an MLP.

    Data: 8,192 lattices of 8x8 that Ising's model made, of four ranges of temperature.
    Model: 1 or 2 hidden layers of 32 to 96.
    Drawn: lowest temperature, data seed, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: Carrasquilla and Melko, 2017, arXiv:1605.01735.
    """

    name = "spins-mlp"
    dataset = "spins"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "coldest": (1.5, (1.0, 1.5, 2.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (64, (32, 48, 64, 96)),
        "depth": (2, (1, 2, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on the lattice."""
        widths = (_LATTICE**2, *(config["width"],) * config["depth"], _WARMTHS)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, _spins(config["coldest"], config["data_seed"])


@cache
def _boards(stones: int, seed: int) -> Dataset:
    """Boards with stones of two players; the class says who has three in a row: none to both."""
    rng = generator("boards", stones, seed)
    n = n_drawn(_ROWS)
    rank = rng.random((n, _BOARD**2)).argsort(1).argsort(1)
    mine = np.where(rank < stones, 1, np.where(rank >= _BOARD**2 - stones, -1, 0))
    board = mine.reshape(n, _BOARD, _BOARD)
    won = np.zeros((2, n), bool)
    for player, side in enumerate((1, -1)):
        here = board == side
        lines = (
            here[:, :, :-2] & here[:, :, 1:-1] & here[:, :, 2:],
            here[:, :-2] & here[:, 1:-1] & here[:, 2:],
            here[:, :-2, :-2] & here[:, 1:-1, 1:-1] & here[:, 2:, 2:],
            here[:, 2:, :-2] & here[:, 1:-1, 1:-1] & here[:, :-2, 2:],
        )
        won[player] = np.any([line.any((1, 2)) for line in lines], 0)
    return in_order(mine.astype(float), won[0] + 2 * won[1], _OUTCOMES)


class BoardsResMLP(SupervisedFamily):
    """Say who has three stones in a row, with a residual MLP.

    Data: 8,192 boards of 5x5 with 6 to 8 stones of each of two players; nobody has a row, one, the
    other, or both. No noise but a drawn one.
    Model: 1 to 3 residual branches on a stream of 24 to 48.
    Drawn: stones, data seed, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: He et al., 2016, arXiv:1603.05027, without convolutions.
    """

    name = "boards-resmlp"
    dataset = "boards"
    architecture = "residual-mlp"
    settings: ClassVar[Settings] = {
        "stones": (7, (6, 7, 8)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (24, 32, 48)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `ResidualMLP` whose branches are as wide as the stream."""
        width, shape = config["width"], (config["activation"], config["norm"], config["init_gain"])
        net = ResidualMLP(_BOARD**2, width, config["depth"], width, _OUTCOMES, *shape)
        return net, _boards(config["stones"], config["data_seed"])


@cache
def _swarms(noise: float, seed: int) -> Dataset:
    """Places and motions of twelve birds; the class is what the swarm does.

    Each for itself, all one way, around, apart, or together.
    """
    rng = generator("swarms", int(100 * noise), seed)
    n = n_drawn(max(FEW_ROWS))
    manner = rng.integers(_MANNERS, size=n)
    place = rng.normal(size=(n, _BIRDS, 2))
    centre = place.mean(1, keepdims=True)
    out = place - centre
    around = np.stack([-out[..., 1], out[..., 0]], -1) * rng.choice((-1.0, 1.0), (n, 1, 1))
    common = np.broadcast_to(rng.normal(size=(n, 1, 2)), out.shape)
    moves = np.stack([np.zeros_like(out), common, around, out, -out])[manner, np.arange(n)]
    speed = rng.uniform(0.5, 1.0, (n, 1, 1))
    motion = speed * moves + noise * rng.normal(size=out.shape) + 0.3 * rng.normal(size=(n, 1, 2))
    where = place + rng.normal(size=(n, 1, 2))
    return in_order(np.concatenate([where, motion], -1), manner, _MANNERS, per_column=False)


class SwarmsFew(SupervisedFamily):
    """Say what a swarm does from places and motions of its birds, with deep sets that saw few.

    Data: 300 to 2,400 drawn swarms of twelve birds to train on, of five manners, under noise.
    Model: an MLP of each bird of 2 to 3 layers, the mean, an MLP; width 12 to 32.
    Drawn: noise, rows, data seed, width, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: Zaheer et al., 2017, arXiv:1703.06114; swarms after Reynolds, 1987.
    """

    name = "swarms-few"
    dataset = "swarms"
    architecture = "deepsets"
    settings: ClassVar[Settings] = {
        "noise": (0.7, (0.4, 0.7, 1.0)),
        "rows": (1200, FEW_ROWS),
        "data_seed": (1, DATA_SEEDS),
        "width": (24, (12, 16, 24, 32)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `DeepSets` net on few swarms."""
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = DeepSets(4, config["width"], config["depth"], _MANNERS, *shape)
        return net, first(_swarms(config["noise"], config["data_seed"]), config["rows"])
