"""Families whose data are drawn: a teacher, parity, binary addition, implicit feedback."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Split
from .data import Dataset, dataset, from_rows, generator
from .nets import MLP, Net
from .sequence_nets import Recurrent
from .supervised import (
    ALL_ACTIVATIONS,
    BATCH_SIZES,
    NORMS,
    VALUE_LOSSES,
    Config,
    Settings,
    SupervisedFamily,
)

_ROWS = 8_192
_SEEDS = tuple(range(64))
_JITTER = 0.2  # on inputs of +-1: short sequences repeat, and rows of two splits must differ


@cache
def _teacher(n_inputs: int, width: int, seed: int) -> Dataset:
    rng = generator("teacher", n_inputs, width, seed)
    x = rng.normal(size=(_ROWS, n_inputs))
    hidden = np.tanh(x @ rng.normal(size=(n_inputs, width)) * 2.0 / np.sqrt(n_inputs))
    y = hidden @ rng.normal(size=(width, 4)) / np.sqrt(width)
    # A little noise, so that no student reaches zero.
    return from_rows("teacher", x, y + 0.05 * rng.normal(size=y.shape), 4, kind="values")


class TeacherRegression(SupervisedFamily):
    """Fit a random teacher network with a student MLP.

    Data: 8,192 normal inputs of 8 to 32, four outputs of a one-layer tanh teacher plus 5% noise.
    Model: 1 to 3 hidden layers of 16 to 64.
    Drawn: inputs, teacher (width and seed), width, depth, activation, norm, loss, batch size,
    gain, loss scale, target noise.
    Source: the student-teacher setting of Saad and Solla, 1995.
    """

    name = "teacher-regression"
    dataset = "teacher"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "n_inputs": (16, (8, 16, 32)),
        "teacher_width": (8, (4, 8, 16)),
        "teacher_seed": (1, _SEEDS[1:]),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (1, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` with four outputs."""
        data = _teacher(config["n_inputs"], config["teacher_width"], config["teacher_seed"])
        widths = (config["n_inputs"], *(config["width"],) * config["depth"], 4)
        return MLP(widths, config["activation"], config["norm"], config["init_gain"]), data


def _bits(name: str, length: int, channels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random bits (rows, length, channels), and the same as +-1 with jitter."""
    rng = generator(name, length)
    bits = rng.integers(0, 2, (_ROWS, length, channels))
    return bits, 2.0 * bits - 1.0 + _JITTER * rng.normal(size=bits.shape)


def _dealt(x: NDArray[Any], y: NDArray[Any]) -> Dataset:
    """Rows in order: they are independent draws. 5,888 train, 256, 1,024 and 1,024 held out."""
    names: tuple[Split, ...] = ("inner_valid", "outer_valid", "test", "train")
    xs, ys = (np.split(array, [256, 1280, 2304]) for array in (x, y))
    return dataset(dict(zip(names, xs, strict=True)), dict(zip(names, ys, strict=True)), 2)


@cache
def _parity(length: int) -> Dataset:
    bits, x = _bits("parity", length, 1)
    return _dealt(x, bits.sum((1, 2)) % 2)


@cache
def _addition(length: int) -> Dataset:
    bits, x = _bits("addition", length, 2)
    powers = 2 ** np.arange(length)
    total = (bits * powers[:, None]).sum((1, 2))
    return _dealt(x, total[:, None] // powers % 2)


class ParityRNN(SupervisedFamily):
    """Say whether a sequence has an odd number of ones, with an RNN or a GRU.

    Data: 8,192 sequences of 4 to 12 bits, as +-1 with jitter of 0.2. Losses stay at log 2 for long
    and then fall at once: a plateau that no smooth task has.
    Model: one recurrent layer of 8 to 32, two logits after the last step.
    Drawn: cell, width, length, batch size, gain, loss scale, label noise.
    Source: the parity problem of Hochreiter and Schmidhuber, 1997.
    """

    name = "parity-rnn"
    dataset = "parity"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "cell": ("rnn", ("rnn", "gru")),
        "width": (16, (8, 16, 24, 32)),
        "length": (6, (4, 5, 6, 8, 10, 12)),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net, read out once."""
        net = Recurrent(
            n_inputs=1,
            width=config["width"],
            n_outputs=2,
            cell=config["cell"],
            last_only=True,
            gain=config["init_gain"],
        )
        return net, _parity(config["length"])


class AdditionRNN(SupervisedFamily):
    """Add two binary numbers bit by bit, lowest first, with an RNN or a GRU.

    Data: 8,192 pairs of 4 to 12 bits, as +-1 with jitter of 0.2; each step's target is a bit of
    the sum, so the net must carry.
    Model: one recurrent layer of 8 to 32, two logits per step.
    Drawn: cell, width, length, norm, batch size, gain, loss scale, label noise.
    Source: the addition task of Zaremba and Sutskever, 2014, arXiv:1410.4615, in binary.
    """

    name = "addition-rnn"
    dataset = "addition"
    architecture = "rnn"
    settings: ClassVar[Settings] = {
        "cell": ("rnn", ("rnn", "gru")),
        "width": (16, (8, 16, 24, 32)),
        "length": (8, (4, 6, 8, 10, 12)),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", ("cross-entropy",)),
        "batch_size": (32, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `Recurrent` net, read out at each step."""
        net = Recurrent(
            n_inputs=2,
            width=config["width"],
            n_outputs=2,
            cell=config["cell"],
            norm=config["norm"],
            gain=config["init_gain"],
        )
        return net, _addition(config["length"])
