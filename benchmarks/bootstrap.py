"""Speeds and their intervals: a hierarchical bootstrap over tasks, seeds and the baseline's runs.

A speed is h*: the budget, in units of ours, at which the tuned baseline's frontier reaches our
final loss. Everything here is in natural logarithms of h*; the frontier is read log-log.

One resample draws tasks with replacement and, for each task that it drew, seeds with replacement.
A drawn seed is drawn for everybody: for every arm that ran it, with both of its starts, and for the
baseline, whose frontier is made again from the drawn runs. So what makes a seed easy or hard for
all cancels where it should, and a lucky baseline widens the interval as a lucky arm does.

Intervals take the percentiles that Student's t has for as many tasks (`policy.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import ConfigurationError
from ..core.types import BoolArray, FloatArray, IntArray
from ..policy.intervals import levels
from .frontier import BOUNDS, WIDE_BOUNDS, BenchFrontier, BenchTask
from .records import Row

RESAMPLES = 20_000
#: Losses below this are read as this: a logarithm needs a floor.
SMALLEST = 1e-12
#: Resamples interpolated together: their arrays stay in the processor's cache.
CHUNK = 256


@dataclass(frozen=True)
class Reading:
    """One way of reading speeds from the same runs.

    Attributes:
        name: In the table and the summary.
        strength: Which baseline's frontier is read.
        bounds: Between which h* is clipped, before any cost is taken off.
        test: Whether `test` losses are read on the `test` frontier.
        cpu: Whether h* is divided by the CPU time of a step, in units of plain AdamW's.
    """

    name: str
    strength: Literal["k24", "5x7"] = "k24"
    bounds: tuple[float, float] = BOUNDS
    test: bool = False
    cpu: bool = False


#: The headline first.
READINGS: tuple[Reading, ...] = (
    Reading("steps"),
    Reading("wide", bounds=WIDE_BOUNDS),
    Reading("cpu", cpu=True),
    Reading("test", test=True),
    Reading("5x7", strength="5x7"),
    Reading("5x7 wide", strength="5x7", bounds=WIDE_BOUNDS),
)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Curve:
    """A frontier's runs by horizon and the table's seeds `(H, S)`; nan where it has no such run."""

    horizons: FloatArray
    runs: FloatArray


@dataclass(frozen=True)
class TaskTable:
    """All arms' runs on one task, as arrays.

    Attributes:
        name: Of the task.
        arms: Every arm of the section, also those without a run here.
        seeds: Of arms and baseline together, `(S,)`.
        arm: Column in `arms` of each run, `(R,)`.
        seed: Column in `seeds` of each run.
        losses: Final `outer_valid` loss; infinite where the run diverged.
        test_losses: The same on `test`.
        log_cost: Log of CPU time per step over plain AdamW's, `(A,)`; nan where not measured.
        curves: The frontiers by (strength, test).
    """

    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    arm: IntArray
    seed: IntArray
    losses: FloatArray
    test_losses: FloatArray
    log_cost: FloatArray
    curves: dict[tuple[str, bool], _Curve]

    @property
    def ran(self) -> BoolArray:
        """Which arm has which seed, `(A, S)`."""
        found = np.zeros((len(self.arms), len(self.seeds)), np.bool_)
        found[self.arm, self.seed] = True
        return found

    def log_speeds(self, reading: Reading) -> FloatArray:
        """Ln h* of every run `(R,)` on the frontier of all its seeds, before any cost."""
        every = np.arange(len(self.seeds))[None]
        raw: FloatArray = self.raw(reading, every)[0].clip(*np.log(reading.bounds))
        return raw

    def raw(self, reading: Reading, drawn: IntArray) -> FloatArray:
        """Ln h* `(N, R)` on each draw's own frontier, clipped by its horizons alone."""
        curve = self.curves[reading.strength, reading.test]
        losses = self.test_losses if reading.test else self.losses
        return log_speeds(envelopes(curve.runs, drawn), curve.horizons, losses)


def tabulate(rows: Sequence[Row], task: BenchTask, arms: Sequence[str]) -> TaskTable:
    """The runs of one task as arrays.

    Args:
        rows: Of this task and its length alone.
        task: With its two frontiers.
        arms: Every arm of the section.

    Raises:
        ConfigurationError: Two rows are of the same run.
    """
    runs = [(row.arm, row.seed, row.offset) for row in rows]
    if len(set(runs)) != len(runs):
        twice = next(run for run in runs if runs.count(run) > 1)
        raise ConfigurationError(
            f"Two rows of task {task.spec.task!r} are of the same run (arm, seed, offset) {twice}; "
            "each run counts once. Delete the file of raw rows, or the older of the two lines."
        )
    frontiers: dict[str, BenchFrontier] = {"k24": task.k24, "5x7": task.five_by_seven}
    seeds = sorted(
        {row.seed for row in rows}.union(*(frontier.seeds for frontier in frontiers.values()))
    )
    place = {seed: i for i, seed in enumerate(seeds)}
    number = {arm: i for i, arm in enumerate(arms)}
    curves = {}
    for strength, frontier in frontiers.items():
        columns = [place[seed] for seed in frontier.seeds]
        for test, measured in ((False, frontier.runs), (True, frontier.test_runs)):
            table = np.full((len(frontier.horizons), len(seeds)), np.nan)
            # a diverged run of the baseline is the worst of all, whatever it is stored as
            table[:, columns] = np.nan_to_num(
                np.asarray(measured, np.float64), nan=np.inf, posinf=np.inf
            )
            curves[strength, test] = _Curve(np.asarray(frontier.horizons, np.float64), table)
    return TaskTable(
        name=task.spec.task,
        arms=tuple(arms),
        seeds=tuple(seeds),
        arm=np.array([number[row.arm] for row in rows], np.int64),
        seed=np.array([place[row.seed] for row in rows], np.int64),
        losses=_losses([row.loss for row in rows]),
        test_losses=_losses([row.test_loss for row in rows]),
        log_cost=np.array([_log_cost([r for r in rows if r.arm == arm]) for arm in arms]),
        curves=curves,
    )


def _losses(values: Sequence[float | None]) -> FloatArray:
    return np.array([math.inf if value is None else value for value in values], np.float64)


def _log_cost(rows: Sequence[Row]) -> float:
    """Median over runs: each was timed beside its own plain AdamW, and a machine has hiccups."""
    ratios = [row.cpu_ms / row.plain_ms for row in rows if row.cpu_ms and row.plain_ms]
    return float(np.log(np.median(ratios))) if ratios else math.nan


def envelopes(runs: FloatArray, drawn: IntArray) -> FloatArray:
    """Frontier losses `(N, H)` of each draw: median over its runs, never rising with the horizon.

    Args:
        runs: Final losses `(H, S)`, infinite where diverged, nan where there is no such run.
        drawn: Columns of each draw, `(N, n)`; those that are nan do not count.
    """
    picked = np.sort(runs[:, drawn], axis=-1)  # nan last
    count = (~np.isnan(picked[0])).sum(axis=-1)
    low, high = (count - 1) // 2, count // 2
    rows = np.arange(len(drawn))
    medians = 0.5 * (picked[:, rows, low] + picked[:, rows, high])
    lowest: FloatArray = np.minimum.accumulate(medians, axis=0).T
    return lowest


def log_speeds(envelope: FloatArray, horizons: FloatArray, losses: FloatArray) -> FloatArray:
    """Ln h* `(N, R)` of R losses on N frontiers, log-log between horizons.

    The smallest budget that reaches the loss. A loss above the first horizon's, or not finite, is
    that horizon; one below the last is the last.

    Args:
        envelope: `(N, H)`, not rising along H.
        horizons: `(H,)`, ascending.
        losses: `(R,)`.
    """
    out = np.empty((len(envelope), len(losses)))
    log_horizons = np.log(horizons)
    wanted = np.log(np.maximum(losses, SMALLEST))
    wanted[~np.isfinite(losses)] = np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.log(np.maximum(envelope, SMALLEST))
        for start in range(0, len(envelope), CHUNK):
            level = levels[start : start + CHUNK]
            above = np.zeros((len(level), len(losses)), np.int64)
            for column in level.T:
                above += column[:, None] > wanted
            right = above.clip(1, len(horizons) - 1)
            left_level = np.take_along_axis(level, right - 1, axis=1)
            right_level = np.take_along_axis(level, right, axis=1)
            share = (left_level - wanted) / (left_level - right_level)
            # from an infinite level the straight line reaches every finite one at its far end
            share = np.where(np.isnan(share), 1.0, share).clip(0.0, 1.0)
            share[above == 0] = 0.0
            share[above == len(horizons)] = 1.0
            left = log_horizons[right - 1]
            out[start : start + CHUNK] = left + share * (log_horizons[right] - left)
    return out


@dataclass(frozen=True)
class Draws:
    """Resampled means of ln h*: `arms` `(B, A)` and differences `pairs` `(B, P)`."""

    arms: FloatArray
    pairs: FloatArray


def resample(
    tables: Sequence[TaskTable],
    readings: Sequence[Reading],
    pairs: Sequence[tuple[str, str]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Draws]:
    """The bootstrap: every reading of every arm and pair, on the same draws.

    Args:
        tables: The tasks; their `arms` are the same.
        readings: Ways of reading.
        pairs: Arms to compare, first over second, on the seeds that both have.
        resamples: How often.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    arms = tables[0].arms
    number = {arm: i for i, arm in enumerate(arms)}
    columns = [(number[a], number[b]) for a, b in pairs]
    width = len(arms) + len(pairs)
    totals = {reading.name: np.zeros((resamples, width)) for reading in readings}
    counts = {reading.name: np.zeros((resamples, width)) for reading in readings}
    slots = rng.integers(0, len(tables), (resamples, len(tables)))
    for t, table in enumerate(tables):
        which = np.nonzero(slots == t)[0]  # a task drawn twice has two entries, with own seeds
        drawn = draw_seeds(table, len(which), rng)
        for reading, means in _means(table, drawn, readings, columns):
            known = np.isfinite(means)
            np.add.at(totals[reading.name], which, np.where(known, means, 0.0))
            np.add.at(counts[reading.name], which, known)
    out = {}
    for name, total in totals.items():
        with np.errstate(invalid="ignore"):
            mean = total / counts[name]  # nan where no drawn task has the arm
        out[name] = Draws(mean[:, : len(arms)], mean[:, len(arms) :])
    return out


def draw_seeds(table: TaskTable, n: int, rng: np.random.Generator) -> IntArray:
    """Columns of drawn seeds `(n, S)`; one that leaves an arm or a frontier empty is redrawn."""
    needed = [ran for ran in table.ran if ran.any()]
    needed += [~np.isnan(curve.runs[0]) for curve in table.curves.values()]
    groups = np.unique(np.stack(needed), axis=0)
    size = len(table.seeds)
    drawn = rng.integers(0, size, (n, size))
    bad = np.arange(n)
    while len(bad):
        bad = bad[~groups[:, drawn[bad]].any(axis=2).all(axis=0)]
        drawn[bad] = rng.integers(0, size, (len(bad), size))
    return drawn


def _means(
    table: TaskTable,
    drawn: IntArray,
    readings: Sequence[Reading],
    columns: Sequence[tuple[int, int]],
) -> list[tuple[Reading, FloatArray]]:
    """Means `(N, A + P)` over the drawn seeds of one task; nan where there is nothing to mean."""
    times = np.zeros((len(drawn), len(table.seeds)))
    np.add.at(times, (np.arange(len(drawn))[:, None], drawn), 1.0)
    raw: dict[tuple[str, bool], FloatArray] = {}
    out = []
    for reading in readings:
        key = reading.strength, reading.test
        if key not in raw:
            raw[key] = table.raw(reading, drawn)
        speeds = raw[key].clip(*np.log(reading.bounds))
        out.append((reading, _weigh(table, reading, speeds, times, columns)))
    return out


def _weigh(
    table: TaskTable,
    reading: Reading,
    speeds: FloatArray,
    times: FloatArray,
    columns: Sequence[tuple[int, int]],
) -> FloatArray:
    """Means `(N, A + P)` of speeds `(N, R)` over seeds that count `times` `(N, S)`."""
    n_arms, n_seeds = len(table.arms), len(table.seeds)
    cell = table.arm * n_seeds + table.seed
    # a seed's starts count as one: their mean
    share = 1.0 / np.bincount(cell, minlength=n_arms * n_seeds)[cell]
    spread = np.zeros((len(cell), n_arms * n_seeds))
    spread[np.arange(len(cell)), cell] = share
    by_seed = (speeds @ spread).reshape(-1, n_arms, n_seeds)
    present = table.ran.astype(np.float64)
    cost = table.log_cost if reading.cpu else np.zeros(n_arms)
    out = np.empty((len(by_seed), n_arms + len(columns)))
    with np.errstate(divide="ignore", invalid="ignore"):
        out[:, :n_arms] = np.einsum("nas,ns->na", by_seed, times) / (times @ present.T) - cost
        for i, (a, b) in enumerate(columns):
            weight = times * (present[a] * present[b])
            gap = np.einsum("ns,ns->n", by_seed[:, a] - by_seed[:, b], weight)
            out[:, n_arms + i] = gap / weight.sum(axis=1) - (cost[a] - cost[b])
    return out


def task_means(
    table: TaskTable, reading: Reading, pairs: Sequence[tuple[str, str]] = ()
) -> tuple[FloatArray, FloatArray]:
    """What is resampled, once on all seeds: ln h* of each arm `(A,)`, and of each pair `(P,)`.

    Nan where an arm has no run here, or a pair no seed in common.
    """
    number = {arm: i for i, arm in enumerate(table.arms)}
    once = np.ones((1, len(table.seeds)))
    columns = [(number[a], number[b]) for a, b in pairs]
    means = _weigh(table, reading, table.log_speeds(reading)[None], once, columns)[0]
    return means[: len(table.arms)], means[len(table.arms) :]


def estimate(by_task: FloatArray, draws: FloatArray) -> Estimate | None:
    """Geometric mean over the tasks that are known, with its interval; None if none is.

    Args:
        by_task: ln h* of each task, nan where there is none.
        draws: Resampled means `(B,)`.
    """
    known = by_task[np.isfinite(by_task)]
    drawn = draws[np.isfinite(draws)]
    if not len(known) or not len(drawn):
        return None
    low, high = np.quantile(drawn, levels(len(known)))
    return Estimate(math.exp(known.mean()), math.exp(low), math.exp(high))
