"""Families on tables of drawn causal models: each data seed is another program, not other rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from .crossing import EXPERTS, GATED, PLAIN, RESIDUAL, Crossing
from .data import Dataset
from .drawing import in_order, n_drawn
from .nets import Net
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    CLASS_LOSSES,
    NORMS,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)
from .worlds import SCARCE_ROWS, WORLDS, binned, drawn_world, largest, uneven

_ROWS: Final = 6_144
#: At least so much that a hundred rows tell something, too.
EXPLAINED: Final = (0.25, 0.9)
Table = NDArray[np.float64]

_FUNCTIONS: Final[tuple[Callable[[Table], Table], ...]] = (
    np.tanh,
    lambda x: np.sin(2.0 * x),
    np.abs,
    lambda x: np.maximum(x, 0.0),
    np.square,
    np.sign,
    np.positive,
)
_PRODUCT: Final = len(_FUNCTIONS)  # of two sums of parents


def _scaled(x: Table) -> Table:
    """Zero mean, unit variance, no value that a product's tail throws far out."""
    std = x.std(0)
    return np.asarray(((x - x.mean(0)) / np.where(std > 1e-9, std, 1.0)).clip(-6.0, 6.0))


def _noise(program: np.random.Generator, rng: np.random.Generator, n: int, columns: int) -> Table:
    """Columns of a drawn kind each: normal, heavy-tailed, uniform, or of several humps."""
    found = []
    for kind in program.integers(4, size=columns):
        humps = program.normal(size=int(program.integers(2, 5))) * 2.0
        tail = program.uniform(2.5, 6.0)
        if kind == 0:
            column = rng.normal(size=n)
        elif kind == 1:
            column = rng.standard_t(tail, size=n)
        elif kind == 2:
            column = rng.uniform(-1.0, 1.0, n)
        else:
            column = humps[rng.integers(len(humps), size=n)] + 0.5 * rng.normal(size=n)
        found.append(column)
    return _scaled(np.stack(found, 1))


def _nodes(program: np.random.Generator, rng: np.random.Generator, n: int) -> Table:
    """All nodes of a drawn layered graph of causes, (n, nodes), the earliest first."""
    layer = _noise(program, rng, n, int(program.integers(3, 13)))
    nodes, level = layer, 10.0 ** program.uniform(-2.0, -0.3)
    palette = program.permutation(_PRODUCT + 1)[: int(program.integers(2, 6))]
    most, skips = int(program.integers(2, 6)), program.choice((0.0, 0.2, 0.5))
    for _ in range(int(program.integers(2, 6))):
        width = int(program.integers(4, 13))
        effects = []
        for function in program.choice(palette, size=width):
            causes = nodes if program.random() < skips else layer
            sums = [_sum(program, causes, most) for _ in range(2)]
            one = int(function)
            effects.append(sums[0] * sums[1] if one == _PRODUCT else _FUNCTIONS[one](sums[0]))
        effect = _scaled(np.stack(effects, 1))
        layer = _scaled(effect + level * _noise(program, rng, n, width))
        nodes = np.concatenate([nodes, layer], 1)
    return nodes


def _sum(program: np.random.Generator, causes: Table, most: int) -> Table:
    """A weighted sum of a few drawn columns, and a bias."""
    picked = program.permutation(causes.shape[1])[: int(program.integers(1, most + 1))]
    weight = program.normal(size=len(picked))
    weight /= np.linalg.norm(weight)
    return np.asarray(causes[:, picked] @ weight + 0.5 * program.normal())


def _observed(program: np.random.Generator, nodes: Table) -> Table:
    """Nodes as a table shows them: as they are, as one-hot categories, skewed or rounded."""
    shares = program.dirichlet((2.0, 1.0, 0.7, 0.7))
    columns = []
    for node in nodes.T:
        kind = program.choice(4, p=shares)
        levels = uneven(program, int(program.integers(2, 9)))
        skew, grain = program.uniform(0.5, 1.5), program.choice((1.0, 2.0, 4.0))
        if kind == 1:
            columns.append(np.eye(len(levels))[binned(node, levels)])
        elif kind == 2:
            columns.append(np.exp(skew * node)[:, None])
        else:
            columns.append((np.round(grain * node) if kind == 3 else node)[:, None])
    table = np.concatenate(columns, 1)
    # a level that no row has, because many rows share a value
    return np.asarray(table[:, table.std(0) > 0.05])


def _split(program: np.random.Generator, nodes: Table, targets: int) -> tuple[Table, Table]:
    """Some nodes that are to be told, most of them late effects, and others that are seen."""
    n = nodes.shape[1]
    late = n - 1 - np.floor(n * program.random(n) ** 2).astype(int)
    hidden = np.array(list(dict.fromkeys([*late, *program.permutation(n)]))[:targets])
    rest = program.permutation(np.setdiff1d(np.arange(n), hidden))
    return nodes[:, rest[: int(program.integers(4, 19))]], nodes[:, hidden]


def _classes(
    program: np.random.Generator, rng: np.random.Generator, n: int
) -> tuple[Table, NDArray[np.int64]]:
    """A table and classes: intervals of one node, or which of several nodes is the largest."""
    competing = program.random() < 0.4
    seen, told = _split(
        program, _nodes(program, rng, n), int(program.integers(2, 9)) if competing else 1
    )
    told = told + program.uniform(0.02, 0.3) * rng.normal(size=told.shape)
    if competing:
        label = largest(_scaled(told))
    else:
        classes = int(program.choice((2, 2, 3, 4, 5, 6, 8)))
        # a class may be two intervals with others between them
        of = np.concatenate(
            [program.permutation(classes) for _ in range(program.choice((1, 1, 2)))]
        )
        label = of[binned(told[:, 0], uneven(program, len(of)))]
    return _observed(program, seen), label


def _values(program: np.random.Generator, rng: np.random.Generator, n: int) -> tuple[Table, Table]:
    """A table and one to three nodes, with a heavy tail in a third of the programs."""
    seen, told = _split(program, _nodes(program, rng, n), int(program.choice((1, 1, 2, 3))))
    told = told + program.uniform(0.02, 0.3) * rng.normal(size=told.shape)
    tail = program.choice((0.0, 0.0, 0.7))
    return _observed(program, seen), np.sinh(tail * told) if tail else told


@cache
def causes(seed: int) -> Dataset:
    """A table that a drawn causal model makes, and classes."""
    columns, label = drawn_world("causes", seed, n_drawn(_ROWS), _classes, EXPLAINED)
    return in_order(columns, label, int(label.max()) + 1)


@cache
def causes_values(seed: int) -> Dataset:
    """A table that a drawn causal model makes, and one to three values."""
    columns, values = drawn_world("causes values", seed, n_drawn(_ROWS), _values, EXPLAINED)
    return in_order(columns, values, values.shape[1], kind="values")


class CausesMLP(SupervisedFamily):
    """Classify the rows of a table that a drawn causal model makes, with an MLP.

    Data: 6,144 rows. Each data seed is another program: noise of drawn kinds goes through a drawn
    layered graph of drawn functions (tanh, sine, absolute value, rectifier, square, sign, product,
    identity) with noise at every node; 4 to 18 nodes are seen, as numbers, one-hot categories of
    uneven frequency, skewed or rounded. The class, one of 2 to 8 of uneven frequency, is an
    interval of another node, or which of several others is the largest.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: data seed, width, depth, activation, norm, loss, batch size, gain, scales, label noise.
    Source: structural causal models as a prior of tables after Hollmann et al., 2022,
    arXiv:2207.01848 (TabPFN).
    """

    name = "causes-mlp"
    dataset = "causes"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "data_seed": (1, WORLDS),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on the seed's table."""
        data = causes(config["data_seed"])
        return PLAIN.build(data.n_inputs, data.n_outputs, config), data


class CausesResMLP(Crossing):
    """Classify the rows of a table that a drawn causal model makes, with a residual MLP.

    Data: as causes-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: data seed, rows, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: as causes-mlp; net after He et al., 2016, arXiv:1603.05027, without convolutions.
    """

    name = "causes-resmlp"
    parent = CausesMLP
    data = ("data_seed",)
    module = RESIDUAL


class CausesGated(Crossing):
    """Classify the rows of a table that a drawn causal model makes, with a gated MLP.

    Data: as causes-mlp, 400 to 4,800 rows to train on.
    Model: 1 to 3 gated hidden layers of 16 to 64.
    Drawn: data seed, rows, width, depth, norm, loss, batch size, gain, scales, label noise.
    Source: as causes-mlp; net of Dauphin et al., 2017, arXiv:1612.08083.
    """

    name = "causes-gated"
    parent = CausesMLP
    data = ("data_seed",)
    module = GATED


class CausesFew(Crossing):
    """Classify rows of a drawn causal model's table, having seen few, with an MLP.

    Data: as causes-mlp, 100 to 1,200 rows to train on.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: data seed, rows, width, depth, activation, norm, loss, batch size, gain, scales, label
    noise.
    Source: as causes-mlp.
    """

    name = "causes-few"
    parent = CausesMLP
    data = ("data_seed",)
    module = PLAIN
    rows = SCARCE_ROWS


class CausesExperts(Crossing):
    """Classify rows of a drawn causal model's table, having seen few, with a mixture of experts.

    Data: as causes-mlp, 100 to 1,200 rows to train on.
    Model: 3 to 8 experts of 8 to 24 hidden units, weighted by a softmax.
    Drawn: data seed, rows, experts, width, activation, loss, batch size, gain, scales, label noise.
    Source: as causes-mlp; net after Jacobs et al., 1991, "Adaptive Mixtures of Local Experts",
    blended.
    """

    name = "causes-experts"
    parent = CausesMLP
    data = ("data_seed",)
    module = EXPERTS
    rows = SCARCE_ROWS


class CausesValues(SupervisedFamily):
    """Predict values in a table that a drawn causal model makes, with an MLP.

    Data: as causes-mlp, but the targets are one to three other nodes themselves, with a heavy tail
    in a third of the programs.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: data seed, width, depth, activation, norm, loss, batch size, gain, scales, target noise.
    Source: as causes-mlp.
    """

    name = "causes-values"
    dataset = "causes"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        **CausesMLP.settings,
        "loss": ("squared-error", VALUE_LOSSES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with an output for each value."""
        data = causes_values(config["data_seed"])
        return PLAIN.build(data.n_inputs, data.n_outputs, config), data


class CausesValuesFew(Crossing):
    """Predict values in a drawn causal model's table, having seen few rows, with a residual MLP.

    Data: as causes-values, 100 to 1,200 rows to train on.
    Model: 1 to 4 residual branches of width 16 to 64.
    Drawn: data seed, rows, width, depth, activation, norm, loss, batch size, gain, scales, target
    noise.
    Source: as causes-mlp; net after He et al., 2016, arXiv:1603.05027, without convolutions.
    """

    name = "causes-values-few"
    parent = CausesValues
    data = ("data_seed",)
    module = RESIDUAL
    rows = SCARCE_ROWS
