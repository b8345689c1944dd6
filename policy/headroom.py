"""What settings held beside a policy would bring, for all tasks and task by task.

A policy has headroom where a factor on what it steers, chosen for a task in hindsight, makes that
task's runs end lower: there it could have known better. Where nothing that is held helps the tasks
that it was trained on, more updates on those have little left to find. The same with a part of the
update rule says what a control of that part could be worth at most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np

from ..core.controls import CONTROLS
from ..core.errors import ConfigurationError, UnknownNameError
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..env.episode import Perturbation
from ..env.frontier import POOL_FRONTIER, Frontier
from ..env.pool import Entry, TaskSpec, build_pool
from ..env.workers import Workers
from ..inner_tasks.registry import family_of, get_task
from ..optimizers.update import StepRule
from .artifact import Policy
from .evaluate import closed_loop, denormals_flushed, spread
from .families import available
from .lineage import families_trained_on
from .pools import pool_specs
from .train_config import TrainConfig

#: Seeds of the runs: none that frontiers, experts, a training's evaluation or a comparison use.
FIRST_SEED = 8000
#: Share of a run before a factor is held, if none is given: a few decisions of the policy's own.
AFTER = 0.1
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class HeadroomConfig:
    """On what it is measured.

    Attributes:
        families: Families of the tasks, whether or not the policy was trained on them.
        per_family: Tasks of a family, the shortest of those that are left.
        shortest: Tasks of fewer steps are left out.
        longest: Tasks of more steps are left out.
        runs: Runs of a task, each with a seed and a start of its own; half of them choose, half of
            them are read.
        decades: Starting rates lie this far above and below the default, evenly.
        tells_slope: Whether runs report a validation loss and its slope.
        averages: Whether runs end with the best of their averages, which needs the slope.
        bounds: Octaves that a run counts, at least and at most.
    """

    families: tuple[str, ...]
    per_family: int = 1
    shortest: int = 150
    longest: int = 450
    runs: int = 8
    decades: float = 1.0
    tells_slope: bool = False
    averages: bool = False
    bounds: tuple[float, float] = (-2.0, 1.5)

    def __post_init__(self) -> None:
        if self.runs < 2 or self.per_family < 1:
            raise ConfigurationError(
                f"runs is {self.runs} and per_family {self.per_family}; at least 2 runs, half of "
                "which choose while half are read, and 1 task are wanted."
            )
        if self.averages and not self.tells_slope:
            raise ConfigurationError("averages without tells_slope: held-out data choose them.")


@dataclass(frozen=True)
class Reading:
    """Octaves over nothing held.

    Attributes:
        mean: Over families, whose tasks count alike.
        error: Standard error of that over families; nan for a single one.
    """

    mean: float
    error: float


@dataclass(frozen=True)
class Headroom:
    """Log2 speeds of one policy with and without what is held.

    Attributes:
        held: What was held, as it was given.
        speeds: By task, `(1 + held, runs)`: nothing held first.
        trained: Those of the tasks' families that the policy was trained on.
    """

    held: tuple[str, ...]
    speeds: Mapping[str, FloatArray] = field(repr=False)
    trained: frozenset[str] = frozenset()

    def part(self, trained: bool) -> Headroom:
        """Only the tasks of families that the policy was trained on, or only the others."""
        speeds = {
            task: rows
            for task, rows in self.speeds.items()
            if (family_of(task) in self.trained) == trained
        }
        return Headroom(self.held, speeds, self.trained)

    @property
    def n_families(self) -> int:
        """Families of the tasks."""
        return len({family_of(task) for task in self.speeds})

    @property
    def plain(self) -> Reading:
        """The policy's own log2 speed, nothing held."""
        return self._over_families(lambda rows: float(rows[0].mean()))

    def for_all(self, index: int) -> Reading:
        """What it brings if it is held in every run of every task."""
        return self._over_families(lambda rows: float((rows[index] - rows[0]).mean()))

    def per_task(self, indices: Sequence[int]) -> Reading:
        """What the best of some of them, or nothing, brings, chosen for every task.

        Chosen on every other run of the task and read on those between, and the other way round:
        a choice by the runs that it is read on is lucky, not better.
        """
        columns = [0, *indices]

        def crossed(rows: FloatArray) -> float:
            halves = rows[columns, ::2], rows[columns, 1::2]
            read = []
            for chosen_on, read_on in (halves, halves[::-1]):
                best = int(np.argmax(chosen_on.mean(axis=1)))  # the first, nothing, where equal
                read.append(float((read_on[best] - read_on[0]).mean()))
            return float(np.mean(read))

        return self._over_families(crossed)

    def _over_families(self, of_task: Callable[[FloatArray], float]) -> Reading:
        found: dict[str, list[float]] = defaultdict(list)
        for task, rows in self.speeds.items():
            found[family_of(task)].append(of_task(rows))
        means = [float(np.mean(values)) for values in found.values()]
        n = len(means)
        error = float(np.std(means, ddof=1) / np.sqrt(n)) if n > 1 else np.nan
        return Reading(float(np.mean(means)) if n else np.nan, error)


def perturbation(text: str, optimizer_rule: StepRule) -> Perturbation:
    """What a text like "learning_rate=2", "weight_decay=4@0.5" or "cautious=false" holds.

    Args:
        text: NAME=VALUE. A control's name and a factor (a shift, where it moves in logits), from a
            tenth of the run on or from the share after an @; or a field of the update rule and
            its value, for the whole run.
        optimizer_rule: The optimizer's own, whose fields say what kind of value they take.

    Raises:
        UnknownNameError: The name is neither.
        ConfigurationError: The value is none of that kind, or a rule's field comes with a share.
    """
    name, equals, given = text.partition("=")
    value, at, share = given.partition("@")
    if not equals:
        raise ConfigurationError(f"{text!r} holds nothing; NAME=VALUE or NAME=VALUE@SHARE does.")
    if name in CONTROLS:
        number = _number(text, value)
        scales = CONTROLS[name].kind == "scale"
        if scales and number <= 0.0:
            raise ConfigurationError(f"{text!r}: a factor above 0 is wanted.")
        shift = float(np.log(number)) if scales else number
        return Perturbation({name: shift}, after=_number(text, share) if at else AFTER)
    names = [row.name for row in fields(StepRule)]
    if name not in names:
        raise UnknownNameError("control or field of the update rule", name, (*CONTROLS, *names))
    if at:
        raise ConfigurationError(f"{text!r}: a part of the rule is held for the whole run.")
    now = getattr(optimizer_rule, name)
    if isinstance(now, bool):
        if value not in _WORDS:
            raise ConfigurationError(f"{text!r}: true or false is wanted.")
        return Perturbation(rule={name: _WORDS[value]})
    if isinstance(now, str):
        return Perturbation(rule={name: value})
    number = _number(text, value)
    if isinstance(now, int) and number != int(number):
        raise ConfigurationError(f"{text!r}: a whole number is wanted.")
    return Perturbation(rule={name: type(now)(number)})


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ConfigurationError(f"{text!r}: {value!r} is not a finite number.")
    return number


def headroom(
    policy: Policy,
    held: Sequence[str],
    config: HeadroomConfig,
    *,
    processes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Headroom:
    """Steer runs of every task with nothing held, then with each thing held, from the same starts.

    Args:
        policy: Whose headroom it is.
        held: What is held, each as `perturbation` reads it.
        config: Tasks and starts.
        processes: Tasks run at once.
        progress: Called with done, total and the task's name: for the frontiers, then the runs.

    Raises:
        ConfigurationError: As `perturbation`; or the optimizer lacks a control; or no task is left.
    """
    env = EnvConfig(optimizer=policy.optimizer, feedback=policy.feedback, averages=config.averages)
    perturbations = [perturbation(text, env.steered.rule) for text in held]
    for text, one in zip(held, perturbations, strict=True):
        if missing := set(one.shifts) - set(env.steered.start):
            raise ConfigurationError(
                f"{text!r}: {policy.optimizer} has no {min(missing)}; it has "
                f"{', '.join(env.steered.start)}."
            )
    specs = _specs(config, policy.optimizer)
    pool = build_pool(
        specs, config=POOL_FRONTIER, keep_blunt=True, processes=processes, progress=progress
    )
    work = partial(_speeds, policy=policy, perturbations=perturbations, env=env, config=config)
    workers = Workers(processes) if processes != 1 else None
    speeds: dict[str, FloatArray] = {}
    try:
        jobs = [(entry.spec, entry.frontier) for entry in pool.entries]
        for (spec, _), row in zip(jobs, (workers.map if workers else map)(work, jobs), strict=True):
            speeds[spec.task] = row
            if progress:
                progress(len(speeds), len(jobs), spec.task)
    finally:
        if workers:
            workers.close()
    return Headroom(tuple(held), speeds, frozenset(families_trained_on(policy.training)))


def _specs(config: HeadroomConfig, optimizer: str) -> list[TaskSpec]:
    """Tasks as a training draws them, the shortest that are long enough."""
    train, names = TrainConfig(optimizer=optimizer), available(config.families)
    chooses = [name for name in names if name in train.valid_families]
    drawn, valid = pool_specs(train, [name for name in names if name not in chooses], chooses)
    found: dict[str, list[TaskSpec]] = defaultdict(list)
    for spec in sorted((*drawn, *valid), key=lambda spec: spec.steps):
        fits = config.shortest <= spec.steps <= config.longest
        if fits and len(found[spec.family]) < config.per_family:
            found[spec.family].append(spec)
    specs = [spec for part in found.values() for spec in part]
    if not specs:
        raise ConfigurationError(
            f"No task of {config.shortest} to {config.longest} steps is left of "
            f"{', '.join(config.families) or 'no family'}; widen the bounds or name others."
        )
    return specs


def _speeds(
    job: tuple[TaskSpec, Frontier],
    policy: Policy,
    perturbations: Sequence[Perturbation],
    env: EnvConfig,
    config: HeadroomConfig,
) -> FloatArray:
    """Speeds of one task, `(1 + held, runs)`."""
    spec, frontier = job
    entry = Entry(spec, get_task(spec.task), frontier)

    def measured(held: Perturbation | None) -> FloatArray:
        found = spread(
            entry,
            env,
            lambda episode: closed_loop(policy, episode.n_runs),
            first_seed=FIRST_SEED,
            n_runs=config.runs,
            decades=config.decades,
            reports_valid=config.tells_slope,
            tells_slope=config.tells_slope,
            perturbation=held,
        )
        return np.clip(found.log2_speed, *config.bounds)

    with denormals_flushed():
        return np.stack([measured(held) for held in (None, *perturbations)])
