"""A policy's own path, recorded where it was trained, for the arm that replays it blindly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..env.episode import Draw, Episode
from ..inner_tasks.base import InnerTask
from ..inner_tasks.registry import families, get_family
from ..policy.artifact import Policy
from ..policy.evaluate import closed_loop
from ..policy.families import TRAIN_FAMILIES
from .real import DECISIONS

#: Recorded runs of each task: their length and seeds.
STEPS, SEEDS = 200, (0, 1, 2, 3)


def recorded() -> list[str]:
    """Families whose default tasks are recorded."""
    there = {family.name: family for family in families(available_only=True)}
    return [name for name in TRAIN_FAMILIES if name in there and not there[name].data_files]


def median_path(
    policy: Policy, tasks: Sequence[InnerTask] | None = None, steps: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """A policy's own schedule, without its eyes: the median of its summed deltas by progress.

    Recorded on what policies of today train on (the default tasks of the training families that
    need no download), from the middle of its starting rates.

    Returns:
        Progress `(n,)` and summed deltas `(n, all controls)`, as `open_loop` takes them.
    """
    if tasks is None:
        tasks = [get_family(name).default() for name in recorded()]
    config = EnvConfig(optimizer=policy.optimizer, schedule=policy.schedule, noise_scale=0.0)
    start = np.full((len(SEEDS), N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    paths = []
    for task in tasks:
        drawn = Draw(
            SEEDS,
            start.copy(),
            DECISIONS,
            reports_valid=False,
            tells_epochs=True,
            tells_labels=True,
        )
        episode = Episode(task, steps or STEPS, config, drawn)
        controller = closed_loop(policy, episode.n_runs)
        total = np.zeros_like(start)
        line: list[FloatArray] = []
        while not episode.finished:
            chosen = controller(episode.observation, len(line))
            total = total + np.where(np.isfinite(chosen), chosen, 0.0)
            line.append(total)
            episode.step(chosen)
        paths.append(np.stack(line, axis=1))
    median = np.median(np.concatenate(paths), axis=0)
    n = len(median)
    progress = np.arange(n + 1) / (n + 1)
    return progress, np.concatenate([np.zeros_like(median[:1]), median])
