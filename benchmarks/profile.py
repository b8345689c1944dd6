"""Time to target, and the profile over tasks: how often an arm is nearly the first.

Source: Dolan and More, 2002 (performance profiles), as AlgoPerf scores training algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .bootstrap import TaskTable
from .frontier import BenchTask
from .records import Row

#: A task's target is the frontier's loss at this horizon.
TARGET_HORIZON = 0.7
#: The profile counts up to this many times the fastest arm's time.
LIMIT = 4.0


def target(task: BenchTask) -> float:
    """The loss to reach: the K = 24 baseline's, trained to its end over 0.7 of our steps."""
    return float(task.k24.losses()[task.k24.horizons.index(TARGET_HORIZON)])


def time_to_target(curve: Sequence[float | None], wanted: float) -> float:
    """Share of the run, in (0, 1), after which `wanted` is met and still holds at the next look.

    Infinite if that never happens; the last evaluation has no next one and cannot hold.

    >>> time_to_target((3.0, 1.0, 2.0, 1.0, 0.5), 1.0)
    0.8
    """
    met = [loss is not None and loss <= wanted for loss in curve]
    for i, (here, after) in enumerate(pairwise(met)):
        if here and after:
            return (i + 1) / len(curve)
    return math.inf


@dataclass(frozen=True)
class Profile:
    """Times to target of arms over tasks, relative to the fastest arm of each task.

    Attributes:
        times: By arm and task, in units of plain AdamW's steps over the run's; infinite for a miss.
        cpu: Whether times count CPU time instead of steps.
    """

    times: Mapping[str, Mapping[str, float]]
    cpu: bool

    def ratios(self, arm: str) -> tuple[float, ...]:
        """Time over the fastest arm's on each of the arm's tasks; infinite for a miss."""
        return tuple(
            time / min(self.times[other].get(task, math.inf) for other in self.times)
            if math.isfinite(time)
            else math.inf
            for task, time in self.times[arm].items()
        )

    def share(self, arm: str, tau: float) -> float:
        """Rho: share of tasks reached within `tau` times the fastest arm's time."""
        return float(np.mean([ratio <= tau for ratio in self.ratios(arm)]))

    def score(self, arm: str) -> float:
        """B: mean of rho over tau from 1 to 4; 1 is the fastest on every task, 0 never in time."""
        return float(np.mean([max(0.0, LIMIT - r) / (LIMIT - 1.0) for r in self.ratios(arm)]))

    def misses(self, arm: str) -> tuple[str, ...]:
        """Tasks on which the median run never holds the target."""
        return tuple(task for task, time in self.times[arm].items() if math.isinf(time))


def measure_profile(
    rows: Sequence[Row],
    tasks: Sequence[BenchTask],
    tables: Sequence[TaskTable],
    *,
    cpu: bool = False,
) -> Profile:
    """Median time over runs of every arm that has curves on all its tasks.

    A median between a finite and an infinite time is infinite.

    Args:
        rows: Of these tasks.
        tasks: In the order of `tables`.
        tables: For the cost of a step.
        cpu: Count CPU time; arms whose cost was not measured everywhere are left out.
    """
    times: dict[str, dict[str, float]] = {}
    left_out: set[str] = set()
    for task, table in zip(tasks, tables, strict=True):
        wanted = target(task)
        for arm, log_cost in zip(table.arms, table.log_cost, strict=True):
            own = [
                row.curve
                for row in rows
                if (row.arm, row.task, row.steps) == (arm, task.spec.task, task.spec.steps)
            ]
            if not own:
                continue
            if not all(own) or (cpu and math.isnan(log_cost)):
                left_out.add(arm)
                continue
            median = float(np.median([time_to_target(curve, wanted) for curve in own]))
            times.setdefault(arm, {})[task.spec.task] = median * (math.exp(log_cost) if cpu else 1)
    return Profile({arm: by_task for arm, by_task in times.items() if arm not in left_out}, cpu)
