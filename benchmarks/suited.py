"""`lhopt bench suited`: which optimizers the default policy does good to, on training tasks.

`policy.bundled.UNSUITED` follows this and no held-out task: it names the optimizers whose steered
runs do not end clearly lower than those alone (`HELPS`), by the geometric mean of the ratio of
their final losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..inner_tasks.base import InnerTask
from ..inner_tasks.registry import families
from ..optimizers.catalogue import ENTRIES, Entry
from ..policy.families import TRAIN_FAMILIES
from .optimizer_table import Row, policy_for, suited, train

STEPS = 250
#: A ratio below this is a gain, one above its inverse is harm, and in between is neither.
HELPS = 0.95
#: Members of each training family; quick: the default alone.
SEEDS = (1, 2)


@dataclass(frozen=True)
class Effect:
    """What the policy does to one optimizer.

    Attributes:
        entry: Which.
        policy: Whose policy.
        ratio: Geometric mean of final loss steered over alone; below 1 is good.
        lower: Share of tasks on which the steered run ends lower.
        tasks: Tasks that both kinds trained.
        diverged: Runs that diverged alone and steered.
        named: Whether the Tuner takes the policy only when it is named.
    """

    entry: Entry
    policy: str
    ratio: float
    lower: float
    tasks: int
    diverged: tuple[int, int]
    named: bool


def training_tasks(*, quick: bool) -> list[InnerTask]:
    """Members of the training families that need no download."""
    there = {family.name: family for family in families(available_only=True)}
    found = [there[n] for n in TRAIN_FAMILIES if n in there and not there[n].data_files]
    defaults = [family.default() for family in found]
    return defaults if quick else defaults + [f.sample(seed) for f in found for seed in SEEDS]


def measure(
    entries: Sequence[Entry], tasks: Sequence[InnerTask], steps: int = STEPS
) -> Iterator[Effect]:
    """One effect per optimizer, as each is finished."""
    for entry in entries:
        policy = policy_for(entry)
        pairs = [
            (train(entry, task, steps, 0, None), train(entry, task, steps, 0, policy))
            for task in tasks
        ]
        both = [(a, s) for a, s in pairs if not a.refused and not s.refused]
        logs = np.array([_log(s) - _log(a) for a, s in both])
        yield Effect(
            entry=entry,
            policy=policy.name,
            ratio=float(np.exp(logs.mean())) if both else math.nan,
            lower=float((logs < 0).mean()) if both else math.nan,
            tasks=len(both),
            diverged=(sum(a.loss is None for a, _ in both), sum(s.loss is None for _, s in both)),
            named=not suited(entry),
        )


def _log(row: Row) -> float:
    # a diverged run counts as a loss of 100
    return math.log(min(max(row.loss if row.loss is not None else math.inf, 1e-12), 100.0))


def line(effect: Effect) -> str:
    """What is printed about one optimizer."""
    verdict = "no gain"
    if effect.ratio < HELPS:
        verdict = "does good"
    elif effect.ratio > 1.0 / HELPS:
        verdict = "does harm"
    taken = "only if named" if effect.named else "unasked"
    return (
        f"{effect.entry.name:<16} {effect.policy:<10} loss x{effect.ratio:<6.3f} lower on "
        f"{effect.lower:>4.0%} of {effect.tasks} tasks, diverged {effect.diverged[0]} alone "
        f"{effect.diverged[1]} steered: {verdict}, taken {taken}"
    )


def run(*, quick: bool) -> None:
    """Train and print."""
    torch.set_num_threads(1)
    tasks = training_tasks(quick=quick)
    print(
        f"{len(tasks)} tasks of training families, {STEPS} steps, one run each: final loss with "
        "the bundled policy over that alone, both from the optimizer's defaults\n",
        flush=True,
    )
    for effect in measure(ENTRIES, tasks):
        print(line(effect), flush=True)
