"""What the rows of one tier say: a line per arm, pairs of arms, profile, and cost of tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..core.types import FloatArray
from .bootstrap import (
    READINGS,
    RESAMPLES,
    SMALLEST,
    Estimate,
    Reading,
    TaskTable,
    estimate,
    resample,
    tabulate,
    task_means,
)
from .frontier import BOUNDS, BenchTask, worth_of_trials
from .profile import Profile, measure_profile
from .records import Row

#: A run slower than this has been harmed.
HARM = 0.7
#: The arm that the verdicts are about, and those that are compared with every other, run by run.
POLICY = "steerable-policy"
#: The same given `validate=`: it sees held-out data, as the baseline's tuning does.
VALIDATED = "steerable-policy-validated"
#: That with `averages=True`: it ends with the best of its averages.
AVERAGED = "steerable-policy-averaged"
COMPARED: tuple[str, ...] = (
    POLICY,
    VALIDATED,
    AVERAGED,
    "steerable-policy-default-rate",
    "steerable-policy-http",
    "steerable-policy-killed",
    "adamw-policy",
)
#: Points of the curve that says what tuning is worth.
TRIALS: tuple[int, ...] = (1, 4, 12, 24)
HEADLINE = READINGS[0]
TEST = next(reading for reading in READINGS if reading.test)
#: Arms whose starts, a decade below and above the best rate, are told apart.
SPLIT: tuple[str, ...] = (POLICY, VALIDATED, AVERAGED)


@dataclass(frozen=True)
class Line:
    """One arm.

    Attributes:
        arm: Its name.
        speeds: Geometric-mean h* with its interval, by name of the reading; None where it cannot
            be read.
        by_task: Headline h* of each task that the arm ran on.
        without: Lowest and highest headline with one task left out; None with a single task.
        at_low: Runs whose headline h* lies on the lower bound, or would lie below it.
        at_high: Runs on the upper bound.
        harm: Share of runs with h* < 0.7.
        harm_on_test: The same by test losses.
        diverged: Runs without a final loss.
        runs: Runs in all.
        seeds: The arm's seeds.
        cost: CPU time of a step in units of plain AdamW's, by task where it was measured.
    """

    arm: str
    speeds: Mapping[str, Estimate | None]
    by_task: Mapping[str, float]
    without: tuple[float, float] | None
    at_low: int
    at_high: int
    harm: float
    harm_on_test: float
    diverged: int
    runs: int
    seeds: tuple[int, ...]
    cost: Mapping[str, float]

    @property
    def headline(self) -> Estimate:
        """Geometric-mean h* against K = 24, clipped as the protocol says."""
        found = self.speeds[HEADLINE.name]
        assert found is not None, "an arm of a section has runs"
        return found

    @property
    def worst(self) -> tuple[str, float]:
        """The slowest task and its speed."""
        name = min(self.by_task, key=lambda task: self.by_task[task])
        return name, self.by_task[name]


@dataclass(frozen=True)
class Pair:
    """One arm over another on the runs that both have.

    Attributes:
        first: Numerator.
        second: Denominator.
        ratio: Of h*, clipped as the protocol says.
        wide: The same read to 4.
        by_task: Ratio of each common task.
    """

    first: str
    second: str
    ratio: Estimate
    wide: Estimate
    by_task: Mapping[str, float]


@dataclass(frozen=True)
class Section:
    """One tier.

    Attributes:
        tier: Its name.
        tasks: With their frontiers; those that have rows.
        lines: One per arm, in the order of the rows.
        pairs: By (first, second).
        profile: Time to target in steps.
        cpu_profile: The same in CPU time.
        tuning: By number of trials, the h* that they are worth on the K = 24 frontier.
        horizon: Largest h* that every frontier can tell.
        resamples: Of the bootstrap.
        starts: The lines of `SPLIT` by (arm, decades from the best rate).
        flat: Tasks on which the baseline gains less from twice our steps than one of its runs
            scatters by: a little loss is much h* there.
    """

    tier: str
    tasks: tuple[BenchTask, ...]
    lines: tuple[Line, ...]
    pairs: Mapping[tuple[str, str], Pair]
    profile: Profile
    cpu_profile: Profile
    tuning: Mapping[int, float]
    horizon: float
    resamples: int
    starts: Mapping[tuple[str, int], Line] = field(default_factory=dict)
    flat: tuple[str, ...] = ()

    def line(self, arm: str) -> Line | None:
        """An arm's line; None if it did not run."""
        return next((line for line in self.lines if line.arm == arm), None)


def summarise(
    tier: str,
    rows: Sequence[Row],
    tasks: Sequence[BenchTask],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Section:
    """Everything that the rows of one tier say.

    Args:
        tier: Name of the tier.
        rows: Of this tier.
        tasks: With frontiers, each with at least one row.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    arms = tuple(dict.fromkeys(row.arm for row in rows))
    by_task: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        by_task.setdefault((row.task, row.steps), []).append(row)
    tables = [tabulate(by_task[task.spec.task, task.spec.steps], task, arms) for task in tasks]
    pairs = [(a, b) for a in COMPARED if a in arms for b in arms if a != b]
    draws = resample(tables, READINGS, pairs, resamples=resamples, seed=seed)
    points = {reading.name: _points(tables, reading, pairs) for reading in READINGS}
    speeds = {
        arm: {
            reading.name: _whole(
                points[reading.name][0][:, i], draws[reading.name].arms[:, i], tables, i, reading
            )
            for reading in READINGS
        }
        for i, arm in enumerate(arms)
    }
    found: dict[tuple[str, str], Pair] = {}
    for i, (a, b) in enumerate(pairs):
        values = points[HEADLINE.name][1][:, i]
        ratio = estimate(values, draws[HEADLINE.name].pairs[:, i])
        wide = estimate(points["wide"][1][:, i], draws["wide"].pairs[:, i])
        if ratio and wide:
            found[a, b] = Pair(a, b, ratio, wide, _named(tables, values))
    return Section(
        tier=tier,
        tasks=tuple(tasks),
        lines=tuple(
            _line(arm, i, tables, points[HEADLINE.name][0][:, i], speeds[arm], rows)
            for i, arm in enumerate(arms)
        ),
        pairs=found,
        profile=measure_profile(rows, tasks, tables),
        cpu_profile=measure_profile(rows, tasks, tables, cpu=True),
        tuning={k: _worth(tasks, k) for k in TRIALS},
        horizon=min(task.k24.horizons[-1] for task in tasks),
        resamples=resamples,
        starts=_by_start(rows, tasks, resamples, seed),
        flat=tuple(task.spec.task for task in tasks if _flat(task)),
    )


def _points(
    tables: Sequence[TaskTable], reading: Reading, pairs: Sequence[tuple[str, str]]
) -> tuple[FloatArray, FloatArray]:
    """Means of ln h* by task: of arms `(T, A)` and of pairs `(T, P)`."""
    means = [task_means(table, reading, pairs) for table in tables]
    return np.stack([arm for arm, _ in means]), np.stack([pair for _, pair in means])


def _whole(
    values: FloatArray,
    drawn: FloatArray,
    tables: Sequence[TaskTable],
    column: int,
    reading: Reading,
) -> Estimate | None:
    """The estimate, but not from half of an arm's tasks where a cost was not measured on all."""
    ran = np.array([table.ran[column].any() for table in tables])
    if reading.cpu and not np.isfinite(values[ran]).all():
        return None
    return estimate(values, drawn)


def _line(
    arm: str,
    column: int,
    tables: Sequence[TaskTable],
    values: FloatArray,
    speeds: Mapping[str, Estimate | None],
    rows: Sequence[Row],
) -> Line:
    every = np.concatenate([table.log_speeds(HEADLINE)[table.arm == column] for table in tables])
    low, high = np.log(BOUNDS)
    known = values[np.isfinite(values)]
    n = len(known)
    without = np.exp((known.sum() - known) / (n - 1)) if n > 1 else None
    own = [row for row in rows if row.arm == arm]
    return Line(
        arm=arm,
        speeds=speeds,
        by_task=_named(tables, values),
        without=None if without is None else (float(without.min()), float(without.max())),
        at_low=int((every <= low).sum()),
        at_high=int((every >= high).sum()),
        harm=_harm(tables, column, HEADLINE),
        harm_on_test=_harm(tables, column, TEST),
        diverged=sum(row.loss is None for row in own),
        runs=len(own),
        seeds=tuple(sorted({row.seed for row in own})),
        cost={
            table.name: math.exp(table.log_cost[column])
            for table in tables
            if math.isfinite(table.log_cost[column])
        },
    )


def _harm(tables: Sequence[TaskTable], column: int, reading: Reading) -> float:
    every = [table.log_speeds(reading)[table.arm == column] for table in tables]
    return float((np.concatenate(every) < math.log(HARM)).mean())


def _by_start(
    rows: Sequence[Row], tasks: Sequence[BenchTask], resamples: int, seed: int
) -> dict[tuple[str, int], Line]:
    """A line for each start of each arm in `SPLIT`: pooled, one may hide the other."""
    starts = sorted({(row.arm, row.offset) for row in rows if row.arm in SPLIT and row.offset})
    arms = [f"{arm} {offset}" for arm, offset in starts]
    if not arms:
        return {}
    apart = [
        replace(row, arm=f"{row.arm} {row.offset}")
        for row in rows
        if row.arm in SPLIT and row.offset
    ]
    tables = []
    for task in tasks:
        own = [row for row in apart if (row.task, row.steps) == (task.spec.task, task.spec.steps)]
        tables.append(tabulate(own, task, arms))
    draws = resample(tables, [HEADLINE], [], resamples=resamples, seed=seed)[HEADLINE.name].arms
    points, _ = _points(tables, HEADLINE, [])
    found = {}
    for i, start in enumerate(starts):
        speeds = {HEADLINE.name: _whole(points[:, i], draws[:, i], tables, i, HEADLINE)}
        found[start] = _line(arms[i], i, tables, points[:, i], speeds, apart)
    return found


def _flat(task: BenchTask) -> bool:
    """Whether a tuned baseline of twice our steps gains less than one run of ours scatters by."""
    runs = np.log(np.maximum(np.asarray(task.k24.runs, np.float64), SMALLEST))
    at = {horizon: i for i, horizon in enumerate(task.k24.horizons)}
    if not {1.0, 2.0} <= set(at) or runs.shape[1] < 2 or not np.isfinite(runs).all():
        return False
    medians = np.minimum.accumulate(np.median(runs, axis=1))
    return bool(medians[at[1.0]] - medians[at[2.0]] < runs[at[1.0]].std(ddof=1))


def _named(tables: Sequence[TaskTable], values: FloatArray) -> dict[str, float]:
    return {
        table.name: math.exp(value)
        for table, value in zip(tables, values, strict=True)
        if math.isfinite(value)
    }


def _worth(tasks: Sequence[BenchTask], k: int) -> float:
    return float(np.exp(np.mean([math.log(worth_of_trials(task.k24, k)) for task in tasks])))
