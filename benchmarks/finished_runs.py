"""Finished runs of AdamW with a schedule, many settings, seeds and lengths at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.types import FloatArray, IntArray
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, Settings
from .tuning import SCHEDULES, Setting

#: Points of a run's loss curve.
CURVE_POINTS = 50
#: Parameters, and runs, that one batch holds at most: bounds memory, and keeps a step in cache.
MAX_PARAMETERS, MAX_RUNS = 2_000_000, 96
#: The same where an accelerator holds the runs: there a step costs its launches, not its width.
ACCELERATOR_PARAMETERS, ACCELERATOR_RUNS = 64_000_000, 512
#: Steps per piece: data order and rates of longer runs are not held at once.
_PIECE = 256


@dataclass(frozen=True)
class Run:
    """One run: what trains, on which data order and initial weights, and for how long."""

    setting: Setting
    seed: int
    steps: int


def curve_steps(steps: int) -> IntArray:
    """Steps after which a run of this length is evaluated for its curve: every fiftieth of it."""
    points = np.round(np.arange(1, CURVE_POINTS + 1) * steps / CURVE_POINTS).astype(np.int64)
    return np.unique(np.maximum(points, 1))


def train(
    task: InnerTask,
    runs: Sequence[Run],
    *,
    progress: Callable[[int], None] | None = None,
    max_runs: int | None = None,
    device: str = "cpu",
) -> FloatArray:
    """Train every run to its end: `(runs, 2)` losses on `outer_valid` and `test`.

    The losses after the last step, or for a task with selection "best" those at the step of its
    curve with the lowest `outer_valid` loss. Infinite for a run that diverged, wherever it did.

    Args:
        task: What is trained.
        runs: Any order, any lengths.
        progress: Called with the number of steps of all runs that were done since the last call.
        max_runs: Runs per batch; by default as many as `MAX_PARAMETERS` and `MAX_RUNS` allow, on
            an accelerator `ACCELERATOR_PARAMETERS` and `ACCELERATOR_RUNS`.
        device: Where the runs live.
    """
    on_cpu = torch.device(device).type == "cpu"
    parameters, most = (
        (MAX_PARAMETERS, MAX_RUNS) if on_cpu else (ACCELERATOR_PARAMETERS, ACCELERATOR_RUNS)
    )
    width = max_runs or max(1, min(most, parameters // max(task.n_params(), 1)))
    # runs of like length share a batch
    order = np.argsort([run.steps for run in runs], kind="stable")
    out = np.full((len(runs), 2), np.inf)
    for start in range(0, len(order), width):
        rows = order[start : start + width]
        out[rows] = _train_batch(task, [runs[i] for i in rows], progress, device)
    return out


def _train_batch(
    task: InnerTask,
    runs: Sequence[Run],
    progress: Callable[[int], None] | None,
    device: str,
) -> FloatArray:
    """Train one batch, `runs` ascending in length."""
    settings = [run.setting for run in runs]
    total = np.array([run.steps for run in runs])
    points = [
        set(curve_steps(run.steps).tolist()) if task.selection == "best" else {run.steps}
        for run in runs
    ]
    seeds = [run.seed for run in runs]
    batch = BatchedRuns(task, seeds, _engine_settings(settings), device=device)
    active = np.arange(len(runs))
    best = np.full((len(runs), 2), np.inf)
    pieces = set(range(_PIECE, int(total.max()), _PIECE))
    step = 0
    for stop in sorted(pieces.union(*points)):
        rates = _rates([settings[i] for i in active], total[active], step, stop)
        batch.advance(stop - step, learning_rates=rates)
        if progress:
            progress((stop - step) * len(active))
        step = stop
        rows = np.array([k for k, i in enumerate(active) if stop in points[i]], np.int64)
        if not rows.size:
            continue
        valid = batch.evaluate("outer_valid", rows=rows)
        test = batch.evaluate("test", rows=rows)
        measured = active[rows]
        better = valid < best[measured, 0]
        best[measured[better]] = np.stack([valid, test], axis=1)[better]
        # a run that is dead at its end has no loss, whatever it had before
        last = total[measured] == stop
        best[measured[last & ~np.isfinite(valid)]] = np.inf
        left = total[active] > stop
        if left.any() and not left.all():
            batch.keep(left)
            active = active[left]
    return best


def _engine_settings(settings: Sequence[Setting]) -> Settings:
    return Settings(
        learning_rate=np.array([s.learning_rate for s in settings]),
        weight_decay=np.array([s.weight_decay for s in settings]),
        one_minus_beta1=1.0 - np.array([s.beta1 for s in settings]),
        one_minus_beta2=1.0 - np.array([s.beta2 for s in settings]),
    )


def _rates(settings: Sequence[Setting], total: IntArray, start: int, stop: int) -> FloatArray:
    """Learning rates `(stop - start, K)` of steps `start` to `stop`."""
    t = np.arange(start, stop, dtype=np.float64)[:, None]
    names = np.array([s.schedule for s in settings])
    rates = np.empty((stop - start, len(settings)))
    for name in set(names.tolist()):
        mine = np.flatnonzero(names == name)
        rates[:, mine] = SCHEDULES[name](t, total[mine].astype(np.float64))
    return np.asarray(rates * np.array([s.learning_rate for s in settings]))
