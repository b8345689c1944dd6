"""Families on bits: the truth of a formula, and cells that follow a rule."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .mixing_nets import ResidualMLP
from .nets import Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)
from .unusual_nets import GatedMLP

_ROWS: Final = 8_192
_BITS, _FORMULAS, _TERMS = 24, 6, 12
_CELLS: Final = 24


@cache
def formulas(literals: int, seed: int) -> Dataset:
    """Rows of 24 bits; the class is the formula, a set of ANDs, with the most true terms."""
    rng = generator("formulas", literals, seed)
    n = n_drawn(_ROWS)
    bits = rng.integers(2, size=(n, _BITS))
    at = np.stack(
        [rng.permutation(_BITS)[:literals] for _ in range(_FORMULAS * _TERMS)]
    )  # a term's bits, all different
    wanted = rng.integers(2, size=at.shape)
    true = (bits[:, at] == wanted).all(-1).reshape(n, _FORMULAS, _TERMS)
    # a tie goes to any of those that tie: what a net cannot know, as in measured data
    label = (true.sum(-1) + 0.5 * rng.random((n, _FORMULAS))).argmax(1)
    return in_order(2.0 * bits - 1.0, label, _FORMULAS)


class FormulaResMLP(SupervisedFamily):
    """Tell which of six formulas of propositional logic holds for 24 bits, with a residual MLP.

    Data: 8,192 rows; a formula has twelve terms of 2 to 4 literals, and the one with most true
    terms is the class. A third of the rows or more have a tie, which chance decides: at best, 70
    to 80% can be told.
    Model: 1 to 3 residual branches on a stream of 16 to 48.
    Drawn: literals, data seed, width, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: Valiant, 1984, "A Theory of the Learnable", for the formulas; net after He et al., 2016,
    arXiv:1603.05027.
    """

    name = "formula-resmlp"
    dataset = "formulas"
    architecture = "residual-mlp"
    settings: ClassVar[Settings] = {
        "literals": (3, (2, 3, 4)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("layer", ("none", "layer")),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `ResidualMLP` whose branches are as wide as the stream."""
        data = formulas(config["literals"], config["data_seed"])
        width, shape = config["width"], (config["activation"], config["norm"], config["init_gain"])
        return ResidualMLP(_BITS, width, config["depth"], width, _FORMULAS, *shape), data


@cache
def automaton(moves: int, noise: float, seed: int) -> Dataset:
    """A ring of 24 cells and the ring some moves later, under a rule that was drawn."""
    rng = generator("automaton", moves, seed)
    n = n_drawn(_ROWS)
    rule = rng.permutation(np.arange(8) % 2)  # as many neighbourhoods live as die
    cells = rng.integers(2, size=(n, _CELLS))
    later = cells
    for _ in range(moves):
        left, right = np.roll(later, 1, 1), np.roll(later, -1, 1)
        later = rule[4 * left + 2 * later + right]
    seen = 2.0 * cells - 1.0 + noise * rng.normal(size=cells.shape)
    return in_order(seen, later.astype(float), _CELLS, kind="values")


class AutomatonGated(SupervisedFamily):
    """Predict a ring of cells one or two moves ahead, with a gated MLP.

    Data: 8,192 rings of 24 cells, seen with noise, under one of the elementary rules that let half
    of the neighbourhoods live; some draws are simple ("what the cell is not") and some are not.
    Model: 1 or 2 hidden layers of 32 to 96, of two linear maps each, one gating the other.
    Drawn: moves, noise, data seed, width, depth, norm, loss, batch size, gain, scales, target
    noise.
    Source: Wolfram, 1983, "Statistical mechanics of cellular automata"; net after Dauphin et al.,
    2017, arXiv:1612.08083.
    """

    name = "automaton-gated"
    dataset = "automaton"
    architecture = "gated-mlp"
    settings: ClassVar[Settings] = {
        "moves": (1, (1, 1, 2)),
        "noise": (0.2, (0.1, 0.2, 0.4)),
        "data_seed": (1, DATA_SEEDS),
        "width": (64, (32, 48, 64, 96)),
        "depth": (1, (1, 2)),
        "norm": ("none", ("none", "layer")),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `GatedMLP` with an output for each cell."""
        data = automaton(config["moves"], config["noise"], config["data_seed"])
        widths = (_CELLS, *(config["width"],) * config["depth"], _CELLS)
        return GatedMLP(widths, config["norm"], config["init_gain"]), data
