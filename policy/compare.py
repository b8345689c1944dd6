"""Policies side by side on tasks that none of them was trained on, without touching the bench's.

What chooses among policies is the evaluation families (`VALID_FAMILIES`), which choose among a
training's checkpoints too, and `COMPARE_FAMILIES`, which no training by default touches; how far
the verdict can be trusted, the interval says. Held-out tasks are for the bench, once a policy is
chosen.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import numpy as np

from ..core.errors import ConfigurationError
from ..core.feedback import Feedback
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..env.episode import Episode
from ..env.frontier import POOL_FRONTIER, Frontier
from ..env.pool import Entry, TaskSpec, build_pool
from ..env.workers import each
from ..inner_tasks.registry import FAMILIES, family_of, get_task
from .artifact import Policy
from .evaluate import Controller, closed_loop, hold, spread
from .families import COMPARE_FAMILIES, VALID_FAMILIES, available
from .folds import source
from .intervals import levels
from .lineage import families_met, families_trained_on, lineage
from .pools import imitation_specs, pool_specs
from .train_config import TrainConfig

logger = logging.getLogger("lhopt")

#: Its row in a comparison: the default rate under the default schedule, held.
HELD = "hold"
#: What is added to the name of a column with feedback.
FEEDBACK = "+slope"
#: What is added to the name of a column whose runs end with the best of their averages.
AVERAGES = "+averages"
#: The column of policies of one recipe, each on the families that it left out.
RECIPE = "left-out"
#: Seeds of the runs: none that frontiers, experts or the trainer's own evaluation use.
FIRST_SEED = 7000
RESAMPLES = 20_000


def check_runs(decades: float, tells_slope: bool, averages: bool) -> None:
    """Raise ConfigurationError unless runs can start so far from the default, and end so."""
    if not 0.0 <= decades <= 4.0:
        raise ConfigurationError(
            f"decades is {decades}; a number from 0 to 4 is wanted: how far the starting rates lie "
            "from the default."
        )
    if averages and not tells_slope:
        raise ConfigurationError(
            "averages without tells_slope: they are chosen by the held-out loss of a job that "
            "gives a Tuner validate=, which tells the slope."
        )


@dataclass(frozen=True)
class CompareConfig:
    """What is compared on.

    Attributes:
        families: Families of the tasks.
        decades: Starting rates lie this far above and below the default, evenly.
        runs: Runs of a policy and task, each with a seed and a start of its own.
        longest: Tasks of more steps are left out.
        validates: Whether runs report a validation loss.
        tells_slope: Whether it comes with its slope along the weights' size.
        feedback: Where above 0, every column is there a second time, with a `Feedback` of this gain
            under it in place of its own, if it has one.
        averages: Whether every column is there once more, of the same runs, each with the best of
            its averages by the loss on `inner_valid` (`core.averages`) in place of the optimizer's.
        keep_blunt: See `build_pool`: tasks whose tuned baseline gains little by more steps too.
        bounds: Octaves that a run counts, at least and at most: as in a training's evaluation.
    """

    families: tuple[str, ...] = (*VALID_FAMILIES, *COMPARE_FAMILIES)
    decades: float = 1.0
    runs: int = 8
    longest: int = 2000
    validates: bool = False
    tells_slope: bool = False
    feedback: float = 0.0
    averages: bool = False
    keep_blunt: bool = False
    bounds: tuple[float, float] = (-2.0, 1.5)

    def __post_init__(self) -> None:
        check_runs(self.decades, self.tells_slope, self.averages)
        if not 0.0 <= self.feedback <= 1e4 or (self.feedback and not self.tells_slope):
            raise ConfigurationError(
                f"feedback is {self.feedback} and tells_slope {self.tells_slope}; a gain from 0 to "
                "10000 is wanted, above 0 only where runs tell the slope."
            )


@dataclass(frozen=True)
class Comparison:
    """Mean log2 speeds.

    Attributes:
        policies: Names, `HELD` last.
        speeds: By task name, `(policies,)`.
    """

    policies: tuple[str, ...]
    speeds: Mapping[str, FloatArray] = field(repr=False)

    def by_family(self) -> dict[str, FloatArray]:
        """Mean over a family's tasks, `(policies,)`."""
        return {family: rows.mean(axis=0) for family, rows in self._grouped().items()}

    def merged(self, other: Comparison) -> Comparison:
        """Both, where the same columns were compared on other tasks."""
        assert self.policies == other.policies
        return Comparison(self.policies, {**self.speeds, **other.speeds})

    @property
    def mean(self) -> FloatArray:
        """Mean over families, `(policies,)`."""
        return np.asarray(np.mean(list(self.by_family().values()), axis=0))

    def gaps(self, base: int = 0) -> list[tuple[float, float, float]]:
        """Of each policy over one of them: mean, 95% interval, families and tasks resampled.

        A single task says nothing of others: its interval is nan.
        """
        rng = np.random.default_rng(0)
        families = [rows - rows[:, [base]] for rows in self._grouped().values()]
        draws = []
        for _ in range(RESAMPLES):
            picked = rng.integers(0, len(families), len(families))
            rows = (families[i] for i in picked)
            draws.append(np.mean([r[rng.integers(0, len(r), len(r))].mean(0) for r in rows], 0))
        low, high = np.quantile(draws, levels(len(families)), axis=0)
        if len(self.speeds) < 2:
            low, high = np.full((2, len(low)), np.nan)
        mean = self.mean - self.mean[base]
        return [(float(m), float(a), float(b)) for m, a, b in zip(mean, low, high, strict=True)]

    def _grouped(self) -> dict[str, FloatArray]:
        """Speeds of each family's tasks, `(tasks, policies)`."""
        found: dict[str, list[FloatArray]] = defaultdict(list)
        for task, speeds in self.speeds.items():
            found[family_of(task)].append(speeds)
        return {family: np.stack(rows) for family, rows in found.items()}


def drawn_specs(config: TrainConfig, families: Sequence[str]) -> list[TaskSpec]:
    """Tasks of those families: evaluation families' as they evaluate, the others' as PPO draws."""
    names = available(families)
    trained = [name for name in names if name not in config.valid_families]
    chosen = [name for name in names if name in config.valid_families]
    drawn, valid = pool_specs(config, trained, chosen)
    return [*valid, *drawn]


def unseen(
    config: TrainConfig, policies: Sequence[Policy], families: Sequence[str]
) -> list[TaskSpec]:
    """Tasks of those families that no manifest names: evaluation families' and PPO's own draws.

    Raises:
        ConfigurationError: None is left.
    """
    stages = [stage for policy in policies for stage in lineage(policy.training)]
    seen = {str(task) for stage in stages for task, *_ in stage.get("tasks", ())}
    seen |= {spec.task for spec in imitation_specs(config)}
    specs = [spec for spec in drawn_specs(config, families) if spec.task not in seen]
    if not specs:
        raise ConfigurationError(
            f"Nothing is left of {', '.join(families) or 'no family'}: the policies were trained "
            "on every task that would be drawn. Name other families."
        )
    return specs


def data_met(policy: Policy, families: Sequence[str]) -> list[str]:
    """Those of the families whose data a policy was trained on, by whatever family's name."""
    trained = families_trained_on(policy.training) & set(FAMILIES)
    met = {source(family) for family in trained}
    return [family for family in families if family in FAMILIES and source(family) in met]


def compare(
    policies: Mapping[str, Policy],
    config: CompareConfig,
    *,
    judged: Sequence[Policy] | None = None,
    processes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Steer runs of every task with every policy, from the same starts and seeds.

    Args:
        policies: By the name that stands in the table; all steer one optimizer.
        config: Tasks and starts.
        judged: Those whose training tasks are left out; all of them by default.
        processes: Tasks run at once.
        progress: Called with done, total and the task's name: for the frontiers, then the runs.

    Raises:
        ConfigurationError: The policies steer different optimizers, or no task is left.
    """
    optimizers = sorted({policy.optimizer for policy in policies.values()})
    if len(optimizers) != 1:
        raise ConfigurationError(
            f"The policies steer {', '.join(optimizers) or 'nothing'}; give policies of one "
            "optimizer."
        )
    train = TrainConfig(optimizer=optimizers[0])
    judged = judged or list(policies.values())
    for policy in judged:
        if shared := data_met(policy, config.families):
            logger.warning(
                "%s (%s) was trained on the data of %s: what it does there says little of others",
                policy.name, policy.digest[:12], ", ".join(shared),
            )  # fmt: skip
    specs = unseen(train, judged, config.families)
    short = [spec for spec in specs if spec.steps <= config.longest]
    if specs and not short:
        raise ConfigurationError(
            f"No task is left: the {len(specs)} take {min(spec.steps for spec in specs)} steps at "
            f"least, and longest is {config.longest}."
        )
    pool = build_pool(
        short,
        config=POOL_FRONTIER,
        keep_blunt=config.keep_blunt,
        processes=processes,
        progress=progress,
    )
    work = partial(_speeds, policies=tuple(policies.values()), config=config)
    jobs = [(entry.spec, entry.frontier) for entry in pool.entries]
    speeds: dict[str, FloatArray] = {}
    for (spec, _), row in zip(jobs, each(work, jobs, processes), strict=True):
        speeds[spec.task] = row
        if progress:
            progress(len(speeds), len(jobs), spec.task)
    again = [f"{name}{FEEDBACK}" for name in (*policies, HELD)] if config.feedback else []
    columns = (*policies, *again, HELD)
    chosen = [f"{name}{AVERAGES}" for name in columns] if config.averages else []
    return Comparison((*columns[:-1], *chosen, HELD), speeds)


def compare_left_out(
    recipe: Sequence[Policy],
    beside: Mapping[str, Policy],
    config: CompareConfig,
    *,
    processes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Judge a recipe by policies of it, each on the families that it left out (`policy.folds`).

    Args:
        recipe: Policies that differ in the families they left out; together they are one column,
            `RECIPE`, the first.
        beside: Other policies by name, on the same tasks; where they were trained on those very
            tasks, they have the advantage.
        config: Tasks and starts; `families` is not read.
        processes: As `compare`.
        progress: As `compare`, for each policy of the recipe anew.

    Raises:
        ConfigurationError: A policy left nothing out, met what it left out, or was made by other
            settings than the first; two left out the same; and as `compare`.
    """
    parts = left_out(recipe)
    return reduce(
        Comparison.merged,
        [
            compare(
                {RECIPE: policy, **beside},
                replace(config, families=families),
                judged=[policy],
                processes=processes,
                progress=progress,
            )
            for policy, families in zip(recipe, parts, strict=True)
        ],
    )


def left_out(recipe: Sequence[Policy]) -> list[tuple[str, ...]]:
    """The families that each policy of a recipe may be judged by.

    Raises:
        ConfigurationError: As `compare_left_out` says.
    """
    if not recipe:
        raise ConfigurationError("No policy to judge; one of each `lhopt train --fold K/N`.")
    parts: list[tuple[str, ...]] = []
    for policy in recipe:
        settings = policy.training.get("config", {})
        families = tuple(settings.get("leave_out", ()))
        again = sorted(family for family in families if any(family in part for part in parts))
        met = sorted(families_met(policy.training).intersection(families))
        others = recipe[0].training.get("config", {})
        differ = sorted(
            key
            for key in {*settings, *others} - {"leave_out", "name", "start"}
            if settings.get(key) != others.get(key)
        )
        for wrong in (
            "" if families else "left no family out",
            again and f"left out {', '.join(again)}, as another did",
            met and f"left out {', '.join(met)}, but began from a policy that was trained on them",
            differ and f"was made with another {', '.join(differ)} than the first",
        ):
            if wrong:
                raise ConfigurationError(
                    f"Policy {policy.name!r} ({policy.digest[:12]}) {wrong}. Give one policy of "
                    "each `lhopt train --fold K/N`, with the same settings."
                )
        parts.append(families)
    return parts


def _speeds(
    job: tuple[TaskSpec, Frontier], policies: Sequence[Policy], config: CompareConfig
) -> FloatArray:
    """Mean speeds on one task, `(columns,)`: of each policy, and of holding the default rate.

    Between them, with `averages`, those of all with the best of their averages.
    """
    spec, frontier = job
    entry = Entry(spec, get_task(spec.task), frontier)

    def measured(policy: Policy | None, feedback: Feedback | None) -> tuple[float, float]:
        found = spread(
            entry,
            EnvConfig(optimizer=policies[0].optimizer, feedback=feedback, averages=config.averages),
            partial(_controller, policy),
            first_seed=FIRST_SEED,
            n_runs=config.runs,
            decades=config.decades if policy else 0.0,
            reports_valid=config.validates or config.tells_slope,
            tells_slope=config.tells_slope,
        )
        plain, chosen = (
            float(np.clip(speed, *config.bounds).mean())
            for speed in (found.unchosen, found.log2_speed)
        )
        return plain, chosen

    columns: list[tuple[Policy | None, Feedback | None]] = [(p, p.feedback) for p in policies]
    if config.feedback:
        columns += [(policy, Feedback(config.feedback)) for policy in (*policies, None)]
    rows = [measured(*column) for column in (*columns, (None, None))]
    plain = [row[0] for row in rows]
    chosen = [row[1] for row in rows] if config.averages else []
    return np.array([*plain[:-1], *chosen, plain[-1]])


def _controller(policy: Policy | None, episode: Episode) -> Controller:
    return closed_loop(policy, episode.n_runs) if policy else hold
