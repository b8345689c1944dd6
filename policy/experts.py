"""Experts: good settings of one task by search, which a policy then imitates (`imitation.py`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS
from ..core.controls import CONTROL_NAMES, CONTROLS, Control
from ..core.errors import FrontierError
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..env.frontier import FrontierConfig, cache_folder, cache_key
from ..env.measured import shipped
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, Settings

if TYPE_CHECKING:
    from .imitation import ImitationConfig

#: Range of the search around the start, in decades (`scale`) or logit shift; small moves of the
#: betas and decay are searched because on short runs they matter as much as the schedule.
SEARCH: dict[str, tuple[float, float]] = {
    "learning_rate": (-2.0, 1.7),
    "one_minus_beta1": (-0.5, 0.6),
    "one_minus_beta2": (-0.5, 1.5),
    "weight_decay": (-1.0, 1.5),
    "clip_ratio": (-1.5, 1.5),
    "eps": (0.0, 0.0),
}

#: In the search for an expert, at these shares of the run so many of the trials go on. Generous:
#: a high rate looks worse in the middle of a run than it ends.
HALVING = ((0.25, 0.5), (0.5, 0.25))
#: The same where a second search follows: what a decay is worth shows late, so nobody whose rate is
#: not hopeless is given up.
GENTLE = ((0.25, 0.5),)
#: Standard deviations of the second search around the best of the first, as in `SEARCH`.
SPREAD: dict[str, float] = {
    "learning_rate": 0.2,
    "one_minus_beta1": 0.15,
    "one_minus_beta2": 0.25,
    "weight_decay": 0.4,
    "clip_ratio": 0.4,
    "eps": 0.0,
}


def find_expert(
    task: InnerTask, steps: int, config: EnvConfig, imitation: ImitationConfig
) -> FloatArray:
    """Good settings of one task under the default schedule: `(controls,)`, nan if not steered.

    Random search over `imitation.trials` settings, one run each, the worst of them given up on the
    way (`HALVING`); the geometric mean of the best few, because the very best of many noisy runs is
    lucky. With `imitation.refine`, fewer are given up (`GENTLE`), and a second search around that
    mean chooses. Cached on disk beside the frontiers.

    Raises:
        FrontierError: Every setting diverged.
    """
    name = expert_name(task, steps, config, imitation)
    path = cache_folder() / name
    known = json.loads(path.read_text()) if path.exists() else shipped(name)
    if known is not None:
        return np.array([np.nan if v is None else v for v in known])
    start = _trials(config, imitation.trials, np.random.default_rng([7, steps]))
    halving = GENTLE if imitation.refine else HALVING
    best = _best(start, held_losses(task, steps, config, start, halving=halving), imitation.top)
    if imitation.refine and len(best):
        start = _around(config, best, imitation.refine, np.random.default_rng([8, steps]))
        best = _best(start, held_losses(task, steps, config, start, seed=4243), imitation.top)
    if not len(best):
        raise FrontierError(
            f"All {imitation.trials} settings tried on {task.name!r} diverged; the task is broken, "
            "or the optimizer starts far from where it works."
        )
    expert = _mean(config, best)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.write_text(json.dumps([None if np.isnan(v) else v for v in expert]))
    temporary.replace(path)
    return expert


def _best(start: FloatArray, loss: FloatArray, top: int) -> FloatArray:
    """The settings with the lowest losses, `(up to top, controls)`; none that diverged."""
    best = np.argsort(loss, kind="stable")[:top]
    return start[best[np.isfinite(loss[best])]]


def _mean(config: EnvConfig, settings: FloatArray) -> FloatArray:
    """Mean of settings on each control's own scale: `(controls,)`, nan if not steered."""
    mean = np.full(N_CONTROLS, np.nan)
    for control in config.controls:
        column = settings[:, COLUMN[control.name]]
        distance = control.distance(column, column[:1])
        mean[COLUMN[control.name]] = float(control.apply(column[0], np.asarray(distance.mean())))
    return mean


def _around(config: EnvConfig, best: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """Those settings and others around their mean: `(n, controls)`."""
    start = np.repeat(best[:1], n, axis=0)
    start[: len(best)] = best[:n]
    mean, left = _mean(config, best), max(n - len(best), 0)
    for control in config.controls:
        shift = SPREAD[control.name] * rng.normal(size=left)
        j = COLUMN[control.name]
        start[len(best) :, j] = _shifted(control, mean[j], shift)
    return start


def expert_name(task: InnerTask, steps: int, config: EnvConfig, imitation: ImitationConfig) -> str:
    """Name of an expert's file in the cache: changes with all that `find_expert` depends on."""
    described = {
        **config.steered.rule.meaning(),
        "optimizer": asdict(config.steered.rule),
        "start": {**config.steered.start, **config.start},
        "controls": config.steered.controls,
        "schedule": config.schedule.to_json(),
        "search": [imitation.trials, imitation.top, HALVING, SEARCH],
    }
    if imitation.refine:  # without it, what was searched before there was any stays good
        described["refine"] = [imitation.refine, GENTLE, SPREAD]
    text = json.dumps(described, sort_keys=True, default=str)
    mark = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"expert-{cache_key(task, steps, FrontierConfig())}-{mark}.json"


def _trials(config: EnvConfig, n: int, rng: np.random.Generator) -> FloatArray:
    """Random settings around the optimizer's start: `(n, controls)`."""
    start = np.full((n, N_CONTROLS), np.nan)
    for control_name, value in {**config.steered.start, **config.start}.items():
        low, high = SEARCH[control_name]
        control = CONTROLS[control_name]
        steered = control_name in config.steered.controls
        shift = rng.uniform(low, high, n) if steered else np.zeros(n)
        # half of the trials move the learning rate alone: it matters most
        if control_name != "learning_rate":
            shift[: n // 2] = 0.0
        start[:, COLUMN[control_name]] = _shifted(control, value, shift)
    return start


def _shifted(control: Control, value: float, shift: FloatArray) -> FloatArray:
    """A value moved by decades (`scale`) or logits, `(n,)`."""
    delta = shift * np.log(10.0) if control.kind == "scale" else shift
    return control.apply(np.full(len(shift), value), delta)


def held_losses(
    task: InnerTask,
    steps: int,
    config: EnvConfig,
    start: FloatArray,
    *,
    halving: Sequence[tuple[float, float]] = (),
    seed: int = 4242,
    n_intervals: int = 32,
) -> FloatArray:
    """Final `outer_valid` losses of runs that are held still under the default schedule, `(K,)`.

    As an `Episode` without moves, and without the statistics that nobody reads here.

    Args:
        task: What is trained.
        steps: Inner steps of a run.
        config: Optimizer and schedule.
        start: `(K, controls)` settings.
        halving: (share of the run, share of the runs that go on), ascending; who is given up reads
            as infinite.
        seed: Of every run.
        n_intervals: Intervals of the schedule.
    """
    names = [n for n in CONTROL_NAMES if not np.isnan(start[:, COLUMN[n]]).all()]
    settings = Settings(**{n: start[:, COLUMN[n]].copy() for n in names})
    runs = BatchedRuns(task, [seed] * len(start), settings, rule=config.steered.rule)
    rows, marks, done = np.arange(len(start)), list(halving), 0
    interval = -(-steps // n_intervals)
    while done < steps:
        if marks and done >= marks[0][0] * steps:
            n_kept = max(1, round(marks.pop(0)[1] * len(start)))
            order = np.argsort(runs.evaluate("outer_valid"), kind="stable")
            kept = np.sort(order[:n_kept])
            runs.keep(kept)
            rows = rows[kept]
        n = min(interval, steps - done)
        log_multiplier = config.schedule.log_multiplier(
            np.full(len(rows), done / steps), np.full(len(rows), interval / steps)
        )
        rate = start[rows, COLUMN["learning_rate"]] * np.exp(log_multiplier)
        runs.advance(n, learning_rates=np.tile(rate, (n, 1)))
        done += n
    out = np.full(len(start), np.inf)
    out[rows] = runs.evaluate("outer_valid")
    return out
