"""Families on strings of drawn stochastic programs: each data seed is another program."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from .conv1d_nets import CausalConv
from .crossing import Crossing, Module
from .data import Dataset, IntArray
from .drawing import in_order, n_drawn
from .nets import Net
from .relations import PairMLP
from .sequence_nets import Recurrent
from .supervised import (
    ALL_ACTIVATIONS,
    CLASS_LOSSES,
    NORMS,
    Config,
    Settings,
    SupervisedFamily,
)
from .worlds import WORLDS, binned, drawn_world, uneven

_WINDOWS, _STRINGS = 6_144, 3_072
_LENGTH, _SYMBOLS = 16, 8  # the most symbols that a program has
#: At most so much: two programs that differ in many symbols can be told without any error.
EXPLAINED: Final = (0.15, 0.6)
_FEW_STRINGS: Final = (30, 60, 100, 200, 300)
Random = np.random.Generator


def _tables(
    program: Random, kin: int, apart: float, shape: tuple[int, ...], sparse: float
) -> NDArray[np.float64]:
    """Chances of `kin` related programs, (kin, *shape), summed up over the last axis."""
    common = program.dirichlet(np.full(shape[-1], sparse), shape[:-1])
    own = program.dirichlet(np.full(shape[-1], sparse), (kin, *shape[:-1]))
    return np.asarray(((1.0 - apart) * common + apart * own).cumsum(-1))


def _pick(rng: Random, summed: NDArray[np.float64]) -> IntArray:
    """One of the last axis's outcomes for each row of chances that are summed up."""
    found = (rng.random((len(summed), 1)) > summed).sum(1)
    return np.asarray(found.clip(max=summed.shape[1] - 1))


def _hidden_markov(
    program: Random, rng: Random, which: IntArray, kin: int, apart: float, symbols: int, length: int
) -> IntArray:
    """States move by a chain, most readily round a drawn circle; each mostly says one symbol."""
    states = int(program.integers(symbols, symbols + 4))
    circle, own = program.permutation(states), np.arange(states) % symbols
    round_, sure = program.uniform(0.5, 0.95, 2)
    moves = _tables(program, kin, apart, (states, states), 0.2) * (1.0 - round_)
    moves += round_ * np.eye(states)[circle].cumsum(-1)
    words = _tables(program, kin, apart, (states, symbols), 0.2) * (1.0 - sure)
    words += sure * np.eye(symbols)[own].cumsum(-1)
    state = rng.integers(states, size=len(which))
    string = np.zeros((len(which), length), np.int64)
    for t in range(length):
        string[:, t] = _pick(rng, words[which, state])
        state = _pick(rng, moves[which, state])
    return string


def _topics(
    program: Random, rng: Random, which: IntArray, kin: int, apart: float, symbols: int, length: int
) -> IntArray:
    """Chains of order one or two, of which one is followed until the topic switches."""
    topics, order = int(program.integers(2, 5)), int(program.integers(1, 3))
    chains = _tables(program, kin, apart, (topics, symbols**order, symbols), 0.2)
    switches = program.uniform(0.02, 0.15)
    topic, context = (
        rng.integers(topics, size=len(which)),
        rng.integers(symbols**order, size=len(which)),
    )
    string = np.zeros((len(which), length), np.int64)
    for t in range(length):
        string[:, t] = _pick(rng, chains[which, topic, context])
        context = (context * symbols + string[:, t]) % symbols**order
        other = rng.integers(topics, size=len(which))
        topic = np.where(rng.random(len(which)) < switches, other, topic)
    return string


def _oscillators(
    program: Random, rng: Random, which: IntArray, kin: int, apart: float, symbols: int, length: int
) -> IntArray:
    """Two to four coupled phases; what is seen of them is told in steps of uneven frequency."""
    n = int(program.integers(2, 5))
    turn = program.uniform(0.2, 2.5, n) + apart * program.normal(size=(kin, n))
    pull = program.normal(size=(n, n)) + apart * program.normal(size=(kin, n, n))
    weight, noise = program.normal(size=n), 10.0 ** program.uniform(-1.5, -0.3)
    shares = uneven(program, symbols)
    phase = rng.uniform(0.0, 2.0 * np.pi, (len(which), n))
    seen = np.zeros((len(which), length))
    for t in range(-10, length):  # the first steps settle
        gaps = np.sin(phase[:, None, :] - phase[:, :, None])
        phase = phase + turn[which] + 0.5 * (pull[which] * gaps).mean(-1)
        phase = phase + noise * rng.normal(size=phase.shape)
        seen[:, max(t, 0)] = np.cos(phase) @ weight
    return binned(seen, shares)


#: Draws a kind of program and strings of it: of the program of `kin` related ones that `which`
#: names for each row, the more `apart` the less related.
Kind = Callable[[Random, Random, IntArray, int, float, int, int], IntArray]
KINDS: Final[tuple[Kind, ...]] = (_hidden_markov, _topics, _oscillators)


def _kind(program: Random) -> tuple[Kind, int]:
    """A kind of program, and how many symbols it has."""
    return KINDS[int(program.integers(len(KINDS)))], int(program.integers(3, _SYMBOLS + 1))


def _next(program: Random, rng: Random, n: int) -> tuple[IntArray, IntArray]:
    """Strings, and the symbol that comes after each."""
    kind, symbols = _kind(program)
    string = kind(program, rng, np.zeros(n, np.int64), 1, 0.0, symbols, _LENGTH + 1)
    return string[:, :-1], string[:, -1]


def _told(program: Random, rng: Random, n: int) -> tuple[IntArray, IntArray]:
    """Strings, and either the next symbol or which of several related programs made each."""
    if program.random() < 0.6:
        return _next(program, rng, n)
    kind, symbols = _kind(program)
    kin, apart = int(program.integers(2, 7)), program.uniform(0.2, 0.7)
    shares = uneven(program, kin)
    which = rng.choice(kin, n, p=shares)
    return kind(program, rng, which, kin, apart, symbols, _LENGTH), which


def _clues(strings: IntArray) -> NDArray[np.float64]:
    """The last three symbols, the last two together, and how often each pair follows."""
    hot = np.eye(_SYMBOLS)[strings]
    pairs = np.eye(_SYMBOLS**2)[strings[:, :-1] * _SYMBOLS + strings[:, 1:]]
    return np.concatenate([hot[:, -3:].reshape(len(hot), -1), pairs[:, -1], pairs.mean(1)], 1)


@cache
def chains(seed: int) -> Dataset:
    """Strings of 16 symbols that a drawn program writes, and one class for each."""
    strings, label = drawn_world("chains", seed, n_drawn(_WINDOWS), _told, EXPLAINED, _clues)
    return in_order(strings, label, int(label.max()) + 1)


@cache
def chains_on(seed: int) -> Dataset:
    """Strings of 16 symbols that a drawn program writes; the targets are one place later."""
    strings, last = drawn_world("chains on", seed, n_drawn(_STRINGS), _next, EXPLAINED, _clues)
    later = np.concatenate([strings[:, 1:], last[:, None]], 1)
    return in_order(strings, later, int(max(strings.max(), last.max())) + 1)


class ChainsRNN(SupervisedFamily):
    """Tell what comes after a string, or which program wrote it, with an RNN.

    Data: 6,144 strings of 16 of 3 to 8 symbols. Each data seed is another program: a hidden Markov
    chain, chains of order one or two under a topic that switches, or coupled phases that are told
    in steps. The class is the next symbol, or which of 2 to 6 related programs wrote the string.
    Model: vectors of 4 to 8 for the symbols, one recurrent layer of 16 to 48 with tanh, read out
    after the last symbol.
    Drawn: data seed, embedding, width, norm, loss, batch size, gain, scales, label noise.
    Source: Rabiner, 1989, "A Tutorial on Hidden Markov Models and Selected Applications in Speech
    Recognition", for the first kind, Kuramoto, 1975, "Self-entrainment of a population of coupled
    non-linear oscillators", for the last; Elman, 1990, "Finding Structure in Time".
    """

    name = "chains-rnn"
    dataset = "chains"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "data_seed": (1, WORLDS),
        "embed": (4, (4, 8)),
        "width": (32, (16, 24, 32, 48)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net that reads out once."""
        data = chains(config["data_seed"])
        return _recurrent(data.n_outputs, config, last_only=True), data


def _recurrent(n_outputs: int, config: Config, *, last_only: bool) -> Net:
    return Recurrent(
        n_inputs=config["embed"],
        width=config["width"],
        n_outputs=n_outputs,
        cell="rnn",
        vocabulary=_SYMBOLS,
        last_only=last_only,
        norm=config["norm"],
        gain=config["init_gain"],
    )


def _everywhere(_: int, n_outputs: int, config: Config) -> Net:
    return _recurrent(n_outputs, config, last_only=False)


def _window(n_inputs: int, n_outputs: int, config: Config) -> Net:
    hidden, shape = (config["width"],) * config["depth"], (config["activation"], config["norm"])
    sizes = (_SYMBOLS, config["embed"], hidden, n_outputs)
    return PairMLP(*sizes, *shape, config["init_gain"], columns=n_inputs)


class ChainsMLP(Crossing):
    """Tell what comes after a string, or which program wrote it, with an MLP over all its symbols.

    Data: as chains-rnn, 400 to 4,800 strings to train on.
    Model: vectors of 4 to 8 for the symbols side by side, 1 or 2 hidden layers of 16 to 48.
    Drawn: data seed, rows, embedding, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: as chains-rnn; net of Bengio et al., 2003, "A Neural Probabilistic Language Model".
    """

    name = "chains-mlp"
    parent = ChainsRNN
    data = ("data_seed",)
    module = Module(
        "mlp",
        {
            "embed": (4, (4, 8)),
            "width": (32, (16, 24, 32, 48)),
            "depth": (1, (1, 1, 2)),
            "activation": ("relu", ALL_ACTIVATIONS),
            "norm": ("none", NORMS),
        },
        _window,
    )


class ChainsConv(SupervisedFamily):
    """Foretell each next symbol of a string with dilated causal convolutions.

    Data: 3,072 strings of 16 symbols, of programs as those of chains-rnn.
    Model: vectors of 4 to 8 for the symbols, 2 or 3 causal convolutions of 12 to 24.
    Drawn: data seed, embedding, width, depth, activation, norm, loss, batch size, gain, scales,
    label noise.
    Source: as chains-rnn; net after van den Oord et al., 2016, arXiv:1609.03499.
    """

    name = "chains-conv"
    dataset = "chains"
    architecture = "conv1d"
    settings: ClassVar[Settings] = {
        "data_seed": (1, WORLDS),
        "embed": (4, (4, 8)),
        "width": (16, (12, 16, 24)),
        "depth": (2, (2, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (16, (8, 16, 32)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `CausalConv` over symbols."""
        data = chains_on(config["data_seed"])
        net = CausalConv(
            vocabulary=data.n_outputs,
            embed=config["embed"],
            width=config["width"],
            layers=config["depth"],
            activation=config["activation"],
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, data


class ChainsFew(Crossing):
    """Foretell each next symbol of a string, having seen few strings, with an RNN.

    Data: as chains-conv, 30 to 300 strings to train on.
    Model: vectors of 4 to 8 for the symbols, one recurrent layer of 16 to 48 with tanh, read out
    after each symbol.
    Drawn: data seed, rows, embedding, width, norm, loss, batch size, gain, scales, label noise.
    Source: as chains-rnn.
    """

    name = "chains-few"
    parent = ChainsConv
    data = ("data_seed",)
    module = Module(
        "rnn",
        {"embed": (4, (4, 8)), "width": (32, (16, 24, 32, 48)), "norm": ("none", NORMS)},
        _everywhere,
    )
    rows = _FEW_STRINGS
