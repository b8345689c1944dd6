"""Families on what offices keep: how exams go, what claims cost, how long one waits."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Final

import numpy as np

from .data import Dataset, generator
from .drawing import DATA_SEEDS, in_order, n_drawn
from .few_rows import FEW_ROWS, first
from .nets import MLP, Net
from .relations import PairMLP
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
from .unusual_nets import GatedMLP

_ROWS: Final = 8_192
_PUPILS, _EXERCISES, _TRAITS, _MARKS = 240, 60, 2, 3
_CATEGORIES: Final = (40, 12, 8, 5)
_AMOUNTS, _BESIDE = 5, 6


@cache
def _exams(luck: float, seed: int) -> Dataset:
    """A pupil and an exercise; the class is how it went: not at all, in part, or well."""
    rng = generator("exams", int(10 * luck), seed)
    n = n_drawn(_ROWS)
    # no pupil meets an exercise twice
    cell = rng.permutation(_PUPILS * _EXERCISES)[:n]
    pupil, exercise = np.divmod(cell, _EXERCISES)
    able = rng.normal(size=_PUPILS)
    bent = rng.normal(size=(_PUPILS, _TRAITS))
    asks = rng.dirichlet(np.ones(_TRAITS), size=_EXERCISES)
    hard, sharp = rng.normal(size=_EXERCISES), rng.gamma(4.0, 0.25, _EXERCISES)
    ease = able[pupil] + (bent[pupil] * asks[exercise]).sum(1) - hard[exercise]
    mark = sharp[exercise] * ease + luck * rng.logistic(size=n)
    label = np.digitize(mark, (-0.6, 0.6))
    return in_order(np.stack([pupil, _PUPILS + exercise], 1), label, _MARKS)


class ExamsPairs(SupervisedFamily):
    """Foretell how a pupil does in an exercise, with a vector for each of both and an MLP.

    Data: 8,192 of 14,400 pairs of 240 pupils and 60 exercises; exercises differ in what they ask,
    how hard they are and how sharply they part pupils.
    Model: vectors of 4 to 12, 1 or 2 hidden layers of 16 to 48.
    Drawn: luck, data seed, embedding, width, depth, activation, norm, loss, batch size, gain,
    scales, label noise.
    Source: item response theory after Reckase, 2009, "Multidimensional Item Response Theory".
    """

    name = "exams-pairs"
    dataset = "exams"
    architecture = "entity-embedding"
    settings: ClassVar[Settings] = {
        "luck": (0.3, (0.1, 0.3, 0.6)),
        "data_seed": (1, DATA_SEEDS),
        "embed": (8, (4, 8, 12)),
        "width": (32, (16, 24, 32, 48)),
        "depth": (1, (1, 1, 2)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("cross-entropy", CLASS_LOSSES),
        "batch_size": (64, BATCH_SIZES),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `PairMLP` with one table for pupils and exercises."""
        hidden = (config["width"],) * config["depth"]
        shape = (config["activation"], config["norm"], config["init_gain"])
        net = PairMLP(_PUPILS + _EXERCISES, config["embed"], hidden, _MARKS, *shape)
        return net, _exams(config["luck"], config["data_seed"])


@cache
def _claims(spread: float, seed: int) -> Dataset:
    """One-hot categories, some of them rare, and amounts; the target is the log of what it cost."""
    rng = generator("claims", int(100 * spread), seed)
    n = n_drawn(_ROWS)
    parts, total = [], np.zeros(n)
    amount = rng.gamma(2.0, 0.5, (n, _AMOUNTS))
    for size in _CATEGORIES:
        often = 1.0 / np.arange(1, size + 1)
        drawn = rng.choice(size, size=n, p=often / often.sum())
        parts.append(np.eye(size)[drawn])
        slope = rng.normal(size=(size, _AMOUNTS)) * (rng.random((size, _AMOUNTS)) < 0.3)
        total += rng.normal(size=size)[drawn] + (slope[drawn] * np.log(amount)).sum(1)
    total += np.maximum(0.0, np.log(amount[:, 0] * amount[:, 1]))  # beyond what is insured
    cost = total + spread * total.std() * rng.normal(size=n)
    return in_order(np.concatenate([*parts, amount], 1), cost[:, None], 1, kind="values")


class ClaimsGated(SupervisedFamily):
    """Estimate what a claim costs from categories and amounts, with a gated MLP.

    Data: 8,192 drawn claims of four one-hot categories (65 columns, the rarest in some fifty rows)
    and five amounts, to one number.
    Model: 1 to 3 gated layers of 16 to 64.
    Drawn: spread, data seed, width, depth, norm, loss, batch size, gain, scales, target noise.
    Source: Dauphin et al., 2017, arXiv:1612.08083, for the net.
    """

    name = "claims-gated"
    dataset = "claims"
    architecture = "gated-mlp"
    settings: ClassVar[Settings] = {
        "spread": (0.5, (0.2, 0.5, 1.0)),
        "data_seed": (1, DATA_SEEDS),
        "width": (32, (16, 24, 32, 48, 64)),
        "depth": (2, (1, 2, 3)),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (64, (32, 64, 128)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """A `GatedMLP` with one output."""
        data = _claims(config["spread"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], 1)
        return GatedMLP(widths, config["norm"], config["init_gain"]), data


@cache
def _queues(busy: float, seed: int) -> Dataset:
    """Counters, their load, and columns that mean nothing; the target is the log of the wait."""
    rng = generator("queues", int(100 * busy), seed)
    n = n_drawn(max(FEW_ROWS))
    counters = rng.integers(1, 6, n)
    service = np.exp(rng.normal(0.0, 0.5, n))
    load = rng.uniform(0.2, busy, n)
    varies = rng.gamma(2.0, 0.5, (n, 2))
    arrivals = load * counters / service
    # Kingman's formula with Sakasegawa's exponent for several counters
    wait = service * varies.mean(1) * load ** (np.sqrt(2.0 * (counters + 1)) - 1.0)
    wait = wait / (counters * (1.0 - load)) * np.exp(0.3 * rng.normal(size=n))
    seen = np.concatenate(
        [np.eye(5)[counters - 1], np.log(service)[:, None], np.log(arrivals)[:, None], varies], 1
    )
    seen = np.concatenate([seen, rng.normal(size=(n, _BESIDE))], 1)
    return in_order(seen, np.log(wait)[:, None], 1, kind="values")


class QueuesFew(SupervisedFamily):
    """Estimate how long one waits at a counter, with an MLP that saw few of them.

    Data: 300 to 2,400 drawn counters to train on: nine columns that matter, six that do not, to the
    log of the mean wait, known to 30%.
    Model: 1 to 3 hidden layers of 24 to 96.
    Drawn: how busy at most, rows, data seed, width, depth, activation, norm, loss, batch size,
    gain, scales, target noise.
    Source: Kingman, 1961; Sakasegawa, 1977.
    """

    name = "queues-few"
    dataset = "queues"
    architecture = "mlp"
    settings: ClassVar[Settings] = {
        "busy": (0.9, (0.8, 0.9, 0.97)),
        "rows": (1200, FEW_ROWS),
        "data_seed": (1, DATA_SEEDS),
        "width": (48, (24, 32, 48, 64, 96)),
        "depth": (2, (1, 2, 3)),
        "activation": ("relu", ALL_ACTIVATIONS),
        "norm": ("none", NORMS),
        "loss": ("squared-error", VALUE_LOSSES),
        "batch_size": (32, (16, 32, 64)),
    }

    def make(self, config: Config) -> tuple[Net, Dataset]:
        """An `MLP` on few counters."""
        data = _queues(config["busy"], config["data_seed"])
        widths = (data.n_inputs, *(config["width"],) * config["depth"], 1)
        net = MLP(widths, config["activation"], config["norm"], config["init_gain"])
        return net, first(data, config["rows"])
