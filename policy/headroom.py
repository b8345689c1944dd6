"""What changes beside a policy's decisions would bring, for all tasks and task by task.

A policy has headroom where a factor on what it steers, chosen for a task in hindsight, makes that
task's runs end lower: there it could have known better. Where none helps the tasks that it was
trained on, more updates on those have little left to find. The same with a part of the update rule
says what a control of that part could be worth at most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.controls import CONTROLS
from ..core.errors import ConfigurationError, LhoptError, UnknownNameError
from ..core.types import BoolArray, FloatArray
from ..env.config import EnvConfig
from ..env.episode import MatrixChange, Perturbation
from ..env.frontier import POOL_FRONTIER, Frontier
from ..env.pool import Entry, TaskSpec, build_pool
from ..env.workers import each
from ..inner_tasks.registry import family_of, get_task
from ..optimizers.update import StepRule
from .artifact import Policy
from .compare import check_runs, data_met, drawn_specs
from .evaluate import closed_loop, hold, spread
from .train_config import TrainConfig

#: Seeds of the runs: none that frontiers, experts, a training's evaluation or a comparison use.
FIRST_SEED = 8000
#: The change that puts the default schedule alone in place of the policy, under its feedback.
HOLD = "hold"
#: Share of a run before a factor takes hold, if none is given: some of the policy's own decisions.
AFTER = 0.1
_WORDS = {"true": True, "false": False}
#: Of a rule's whole numbers: Newton-Schulz steps, each of which costs matrix products.
_MAX_INTEGER = 100


@dataclass(frozen=True)
class HeadroomConfig:
    """On what it is measured.

    Attributes:
        families: Families of the tasks, whether or not the policy was trained on them.
        per_family: Tasks of a family, the shortest of those that are left.
        shortest: Tasks of fewer steps are left out.
        longest: Tasks of more steps are left out.
        runs: Runs of a task, each with a seed and a start of its own, a multiple of 4: half of
            them choose, half are read, and both have the same mean of their log starts.
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
        if self.runs < 4 or self.runs % 4:
            raise ConfigurationError(
                f"runs is {self.runs}; a multiple of 4 is wanted: half choose, half are read."
            )
        if self.per_family < 1:
            raise ConfigurationError(f"per_family is {self.per_family}; at least 1 is wanted.")
        check_runs(self.decades, self.tells_slope, self.averages)


@dataclass(frozen=True)
class Reading:
    """Octaves over unchanged runs.

    Attributes:
        mean: Over families, whose tasks count alike.
        error: Standard error of that over families; nan for a single one.
    """

    mean: float
    error: float


@dataclass(frozen=True)
class Headroom:
    """Log2 speeds of one policy with and without changes beside it.

    Attributes:
        changes: The changes, as they were given.
        speeds: By task, `(1 + changes, runs)`: unchanged runs first.
        known: Those of the tasks' families whose data the policy was trained on.
    """

    changes: tuple[str, ...]
    speeds: Mapping[str, FloatArray] = field(repr=False)
    known: frozenset[str] = frozenset()

    def part(self, known: bool) -> Headroom:
        """Only the tasks on data that the policy was trained on, or only the others."""
        speeds = {
            task: rows
            for task, rows in self.speeds.items()
            if (family_of(task) in self.known) == known
        }
        return Headroom(self.changes, speeds, self.known)

    @property
    def n_families(self) -> int:
        """Families of the tasks."""
        return len({family_of(task) for task in self.speeds})

    @property
    def unchanged(self) -> Reading:
        """The policy's own log2 speed."""
        return self._over_families(lambda rows: float(rows[0].mean()))

    def idle(self, index: int) -> bool:
        """Whether a change moved no run: it never began, or the optimizer has no such part."""
        return all(np.array_equal(rows[index], rows[0]) for rows in self.speeds.values())

    def for_all(self, index: int) -> Reading:
        """What it brings in every run of every task."""
        return self._over_families(lambda rows: float((rows[index] - rows[0]).mean()))

    def per_task(self, indices: Sequence[int]) -> Reading:
        """What the best of some of them, or none, brings, chosen for every task.

        Chosen by half of the task's runs and read on the other half, and the other way round: a
        choice by the runs that it is read on is lucky, not better.
        """
        columns = [0, *indices]

        def crossed(rows: FloatArray) -> float:
            first = _halves(rows.shape[1])
            read = []
            for chosen_on in (first, ~first):
                best = int(np.argmax(rows[columns][:, chosen_on].mean(axis=1)))  # none, if equal
                read.append((rows[columns[best]] - rows[0])[~chosen_on].mean())
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


def _halves(n_runs: int) -> BoolArray:
    """Which of the runs are the first half: of four neighbouring starts the outer two."""
    return np.isin(np.arange(n_runs) % 4, (0, 3))


def parse_change(text: str, rule: StepRule) -> Perturbation:
    """What a text like "learning_rate=2", "weight_decay=4@0.5" or "cautious=false" changes.

    Args:
        text: NAME=VALUE. A control's name and a factor (a shift, where it moves in logits), from
            the first interval that begins after a tenth of the run, or after the share behind
            an @. With "first." or "last." before it, as in "first.weight_decay=4@0", a factor on
            the rate or decay of one matrix alone. Or a field of the update rule and its value, for
            the whole run.
        rule: The optimizer's own.

    Raises:
        UnknownNameError: The name is neither, no such matrix has a name, or it is to have anything
            but another rate or decay.
        ConfigurationError: The value is none of that kind, or a rule's field comes with a share.
    """
    name, equals, given = text.partition("=")
    value, at, share = given.partition("@")
    if not equals:
        raise ConfigurationError(
            f"{text!r} changes nothing; NAME=VALUE, NAME=VALUE@SHARE or {HOLD} does."
        )
    matrix, dot, control = name.partition(".")
    if dot:
        return _of_matrix(text, matrix, control, value, _number(text, share) if at else AFTER)
    if name in CONTROLS:
        number = _number(text, value)
        scales = CONTROLS[name].kind == "scale"
        if scales and number <= 0.0:
            raise ConfigurationError(f"{text!r}: a factor above 0 is wanted.")
        shift = float(np.log(number)) if scales else number
        if abs(shift) > CONTROLS[name].max_total:
            raise ConfigurationError(f"{text!r}: no run may move {name} as far as that.")
        return Perturbation({name: shift}, after=_number(text, share) if at else AFTER)
    names = [row.name for row in fields(StepRule)]
    if name not in names:
        raise UnknownNameError("control or field of the update rule", name, (*CONTROLS, *names))
    if at:
        raise ConfigurationError(f"{text!r}: a part of the rule is changed for the whole run.")
    part: dict[str, Any] = {name: _of_kind(text, value, getattr(rule, name))}
    try:
        replace(rule, **part)
    except LhoptError as error:
        raise ConfigurationError(f"{text!r}: {error}") from error
    return Perturbation(rule=part)


def _of_matrix(text: str, matrix: str, control: str, value: str, after: float) -> Perturbation:
    """A factor on one matrix's rate or decay."""
    named = MatrixChange(matrix, control, 1.0)  # a wrong name is told before a wrong value
    factor = _number(text, value)
    try:
        changed = replace(named, factor=factor)
    except ConfigurationError as error:
        raise ConfigurationError(f"{text!r}: {error}") from error
    return Perturbation(after=after, matrices=(changed,))


def _of_kind(text: str, value: str, example: bool | int | float | str) -> bool | int | float | str:
    """A value of the kind that a field of the rule has."""
    if isinstance(example, bool):
        if value not in _WORDS:
            raise ConfigurationError(f"{text!r}: true or false is wanted.")
        return _WORDS[value]
    if isinstance(example, str):
        return value
    number = _number(text, value)
    if isinstance(example, float):
        return number
    if number != int(number) or abs(number) > _MAX_INTEGER:
        raise ConfigurationError(f"{text!r}: a whole number up to {_MAX_INTEGER} is wanted.")
    return int(number)


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
    changes: Sequence[str],
    config: HeadroomConfig,
    *,
    processes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Headroom:
    """Steer runs of every task unchanged, then with each change, from the same starts and seeds.

    Args:
        policy: Whose headroom it is.
        changes: Each as `parse_change` reads it, or `HOLD`.
        config: Tasks and starts.
        processes: Tasks run at once.
        progress: Called with done, total and the task's name: for the frontiers, then the runs.

    Raises:
        ConfigurationError: As `parse_change`; or the optimizer lacks a control; or no task is left.
    """
    env = EnvConfig(optimizer=policy.optimizer, feedback=policy.feedback, averages=config.averages)
    perturbations = [
        (text, Perturbation() if text == HOLD else parse_change(text, env.steered.rule))
        for text in changes
    ]
    for text, one in perturbations:
        controls = {*one.shifts, *(change.control for change in one.matrices)}
        if missing := controls - set(env.steered.start):
            raise ConfigurationError(
                f"{text!r}: {policy.optimizer} has no {min(missing)}; it has "
                f"{', '.join(env.steered.start)}."
            )
    pool = build_pool(
        _specs(config, policy.optimizer),
        config=POOL_FRONTIER,
        keep_blunt=True,
        processes=processes,
        progress=progress,
    )
    work = partial(_speeds, policy=policy, perturbations=perturbations, env=env, config=config)
    jobs = [(entry.spec, entry.frontier) for entry in pool.entries]
    speeds: dict[str, FloatArray] = {}
    for (spec, _), row in zip(jobs, each(work, jobs, processes), strict=True):
        speeds[spec.task] = row
        if progress:
            progress(len(speeds), len(jobs), spec.task)
    known = data_met(policy, sorted({spec.family for spec, _ in jobs}))
    return Headroom(tuple(changes), speeds, frozenset(known))


def _specs(config: HeadroomConfig, optimizer: str) -> list[TaskSpec]:
    """Tasks as a training draws them, the shortest that are long enough."""
    found: dict[str, list[TaskSpec]] = defaultdict(list)
    drawn = drawn_specs(TrainConfig(optimizer=optimizer), config.families)
    for spec in sorted(drawn, key=lambda spec: spec.steps):
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
    perturbations: Sequence[tuple[str, Perturbation]],
    env: EnvConfig,
    config: HeadroomConfig,
) -> FloatArray:
    """Speeds of one task, `(1 + changes, runs)`."""
    spec, frontier = job
    entry = Entry(spec, get_task(spec.task), frontier)

    def measured(text: str = "", change: Perturbation | None = None) -> FloatArray:
        found = spread(
            entry,
            env,
            lambda episode: hold if text == HOLD else closed_loop(policy, episode.n_runs),
            first_seed=FIRST_SEED,
            n_runs=config.runs,
            decades=config.decades,
            reports_valid=config.tells_slope,
            tells_slope=config.tells_slope,
            perturbation=change,
        )
        return np.clip(found.log2_speed, *config.bounds)

    return np.stack([measured(), *(measured(*row) for row in perturbations)])
