"""`lhopt search`: one fixed setting of an optimizer, chosen by batched random search.

Every batch draws one update rule (what is compiled into a run) and 24 settings of what may differ
between runs of a batch: rate, betas, eps, decay, clip, shape of the schedule. It is worth the mean
over training families of its clipped log2 speed, each task against cosine AdamW with its rate and
decay tuned: clipped (`CLIP`), because one task that a setting ruins, or one whose frontier is
nearly flat, would else outweigh all others. Three stages: `random` batches, `refine` batches around
the best so far, and `final`, which compares the leaders, and the default of today, on other tasks,
longer runs and other seeds; only the final stage chooses. Its leaders come from several rules,
because refining follows one family tree and fits the few short tasks it is judged by; its tasks are
those that policies train on. All tasks have a frontier sharp enough to tell settings apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import ResumeError
from ..core.schedules import Schedule
from ..core.types import FloatArray
from ..env.config import get_optimizer
from ..env.frontier import SPEED_BOUNDS, cosine
from ..env.pool import Entry, TaskSpec, draw_specs
from ..inner_tasks.engine import BatchedRuns, Settings
from ..inner_tasks.registry import get_task
from ..optimizers.update import ADAMW, StepRule
from .arms import transferred

#: Settings of a batch, and intervals of a run: the schedule moves between them, as in service.
BATCH, INTERVALS = 24, 32
#: Octaves of speed that one run can count for, at least and at most.
CLIP = (-1.5, 1.5)
STEERABLE_NAME, ADAMW_NAME = "lhopt.SteerableAdamW", "torch.optim.AdamW"

#: Does a function of every job, in their order.
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Setting:
    """All that a run is trained with.

    Attributes:
        rule: The update rule.
        values: By control: learning rate, betas as their distance from 1, eps, decay, clip.
        schedule: Shape over the run; None is the baseline's warm-up and cosine to 0.
    """

    rule: StepRule
    values: dict[str, float]
    schedule: Schedule | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        schedule = None if self.schedule is None else self.schedule.to_json()
        return {"rule": asdict(self.rule), "values": self.values, "schedule": schedule}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Setting:
        """What `to_json` wrote."""
        schedule = None if row["schedule"] is None else Schedule(**row["schedule"])
        return cls(StepRule(**row["rule"]), dict(row["values"]), schedule)


@dataclass(frozen=True)
class SearchConfig:
    """Sizes of a search.

    Attributes:
        optimizer: `lhopt.SteerableAdamW`, or `torch.optim.AdamW` with the baseline's cosine.
        families: Whose tasks the first two stages search on.
        final_families: Whose tasks the final stage compares on; empty: the same.
        random: Batches drawn at random.
        refine: Batches drawn around the best.
        leaders: Settings that the final stage compares, beside the default.
        per_rule: Leaders of one rule at most; AdamW has but one.
        around: Whether the final stage compares a grid around SteerableAdamW's default instead.
        per_family: Tasks per family at most: in the first two stages, and in the final one.
        steps: Shortest and longest run of the first two stages.
        final_steps: The same of the final stage.
        seeds: Runs per setting and task: in the first two stages, and in the final one.
        seed: Of everything that is drawn.
    """

    optimizer: str = STEERABLE_NAME
    families: tuple[str, ...] = ()
    final_families: tuple[str, ...] = ()
    random: int = 30
    refine: int = 18
    leaders: int = 24
    per_rule: int = 6
    around: bool = False
    per_family: tuple[int, int] = (2, 5)
    steps: tuple[int, int] = (150, 350)
    final_steps: tuple[int, int] = (150, 2000)
    seeds: tuple[int, int] = (1, 2)
    seed: int = 0


def draw_rule(rng: np.random.Generator, optimizer: str) -> StepRule:
    """A random update rule; AdamW's is fixed."""
    if optimizer == ADAMW_NAME:
        return ADAMW
    orthogonal = bool(rng.random() < 0.75)
    return StepRule(
        orthogonal=orthogonal,
        ns_steps=int(rng.choice([0, 1, 2, 3, 4, 5])) if orthogonal else 5,
        nesterov=bool(rng.random() < 0.7),
        precondition=orthogonal and bool(rng.random() < 0.5),
        trust_power=float(rng.choice([0.0, 0.25, 0.5, 0.75, 1.0])),
        vector_scale=float(rng.choice([0.3, 1.0, 2.0, 4.0])),
        cautious=bool(rng.random() < 0.5),
        relative_eps=bool(rng.random() < 0.5),
        average=float(rng.choice([0.0, 0.03, 0.1, 0.2])),
        clip=bool(rng.random() < 0.7),
    )


def draw_setting(rng: np.random.Generator, rule: StepRule, optimizer: str) -> Setting:
    """A random setting of a rule."""

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    if optimizer == ADAMW_NAME:
        values = {
            "learning_rate": log_uniform(1e-4, 1.0),
            "one_minus_beta1": log_uniform(0.03, 0.4),
            "one_minus_beta2": log_uniform(5e-4, 0.1),
            "eps": 1e-8,
            "weight_decay": float(rng.choice([0.0, 0.01, 0.1, 0.3])),
        }
        return Setting(rule, values, None)
    # a rate is a relative change per step where trust is 1, and an absolute one where it is 0
    low, high = (3e-3, 0.3) if rule.orthogonal or rule.trust_power else (1e-3, 0.1)
    values = {
        "learning_rate": log_uniform(low, high),
        "one_minus_beta1": log_uniform(0.03, 0.5),
        "one_minus_beta2": log_uniform(1e-3, 0.2),
        "eps": log_uniform(1e-8, 1.0) if rule.relative_eps else 1e-8,
        "weight_decay": log_uniform(3e-3, 1.0) if rng.random() < 0.85 else 0.0,
        "clip_ratio": float(rng.uniform(0.3, 0.98)),
    }
    schedule = Schedule(
        warmup=int(rng.integers(0, 5)),
        hold=float(rng.choice([0.0, 0.0, 0.2, 0.4])),
        power=float(rng.choice([0.7, 1.0, 1.0, 1.5])),
        final=float(rng.choice([0.0, 0.0, 0.05])),
    )
    return Setting(rule, values, schedule)


def mutate(rng: np.random.Generator, parent: Setting, rule: StepRule, optimizer: str) -> Setting:
    """A setting near another: every value moves a little, and now and then one is drawn anew."""
    fresh = draw_setting(rng, rule, optimizer)
    values = {}
    for name, value in parent.values.items():
        if rng.random() < 0.1:
            values[name] = fresh.values[name]
        elif name == "clip_ratio":
            values[name] = float(np.clip(value + 0.08 * rng.normal(), 0.2, 0.99))
        else:
            values[name] = value * float(np.exp(0.25 * rng.normal()))
    if rule.relative_eps != parent.rule.relative_eps:
        values["eps"] = fresh.values["eps"]
    schedule = parent.schedule
    if schedule is not None and fresh.schedule is not None and rng.random() < 0.4:
        name = str(rng.choice(["warmup", "hold", "power", "final"]))
        schedule = replace(schedule, **{name: getattr(fresh.schedule, name)})
    return Setting(rule, values, schedule)


def mutate_rule(rng: np.random.Generator, rule: StepRule, optimizer: str) -> StepRule:
    """The rule itself half of the time, else with one part drawn anew."""
    if optimizer == ADAMW_NAME or rng.random() < 0.5:
        return rule
    fresh = draw_rule(rng, optimizer)
    parts = ("orthogonal", "ns_steps", "nesterov", "precondition", "trust_power", "vector_scale",
             "cautious", "relative_eps", "average", "clip")  # fmt: skip
    name = str(rng.choice(parts))
    changed = replace(rule, **{name: getattr(fresh, name)})
    # without orthogonal steps it means nothing, and would count as another rule
    return changed if changed.orthogonal else replace(changed, precondition=False)


def around(setting: Setting) -> list[Setting]:
    """A grid: two scales of vectors, two trust powers, three rates, two shapes, two betas."""
    rules = [
        replace(setting.rule, vector_scale=scale, trust_power=trust)
        for scale in (setting.rule.vector_scale, 0.5 * setting.rule.vector_scale)
        for trust in (setting.rule.trust_power, min(2.0 * setting.rule.trust_power, 1.0))
    ]
    own = setting.values
    betas: tuple[dict[str, float], ...] = ({}, {"one_minus_beta2": 0.2 * own["one_minus_beta2"]})
    shapes = (setting.schedule, Schedule(hold=0.2))
    return [
        Setting(rule, {**own, **other, "learning_rate": factor * own["learning_rate"]}, shape)
        for rule in dict.fromkeys(rules)
        for factor in (1.0, 0.7, 1.4)
        for shape in dict.fromkeys(shapes)
        for other in betas
    ]


def speeds(entry: Entry, settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
    """Log2 speed `(settings, seeds)` of settings that share a rule; the lower bound if diverged."""
    rule, steps, n = settings[0].rule, entry.spec.steps, len(seeds)
    columns = {
        name: np.repeat([s.values[name] for s in settings], n) for name in settings[0].values
    }
    runs = BatchedRuns(entry.task, list(seeds) * len(settings), Settings(**columns), rule=rule)
    rates = columns["learning_rate"] * _multipliers(settings, steps, n)
    for start in range(0, steps, 256):
        stop = min(start + 256, steps)
        runs.advance(stop - start, learning_rates=rates[start:stop])
    losses = runs.evaluate("outer_valid")
    out = np.where(runs.alive, entry.frontier.log2_speed(losses), SPEED_BOUNDS[0])
    return np.asarray(out.reshape(len(settings), n))


def _multipliers(settings: Sequence[Setting], steps: int, n_seeds: int) -> FloatArray:
    """`(steps, settings x seeds)`: constant within each interval, as decisions are."""
    if settings[0].schedule is None:
        one = np.ones(len(settings) * n_seeds)
        return cosine(one, np.full(len(one), steps), 0, steps)
    length = -(-steps // INTERVALS)
    progress = (np.arange(steps) // length) * length / steps
    share = np.full(steps, length / steps)
    rows = [s.schedule.log_multiplier(progress, share) for s in settings if s.schedule]
    return np.repeat(np.exp(np.stack(rows, axis=1)), n_seeds, axis=1)


class Search:
    """A search in a folder; what is finished is read back.

    Args:
        config: Sizes.
        folder: Gets `rows.jsonl`, one line per batch and task, and `best.json`.
        first: Tasks of the first two stages with their frontiers.
        last: Tasks of the final stage.
        processes: Tasks trained at once.

    Raises:
        ResumeError: The folder holds a search of another configuration.
    """

    def __init__(
        self,
        config: SearchConfig,
        folder: Path,
        first: Sequence[Entry],
        last: Sequence[Entry],
        processes: int = 1,
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.tasks = {"random": tuple(first), "refine": tuple(first), "final": tuple(last)}
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "rows.jsonl"
        self._known: dict[tuple[str, int, str, str], list[list[float]]] = {}
        started = folder / "config.json"
        mine = json.loads(json.dumps(asdict(config)))
        if started.exists() and json.loads(started.read_text()) != mine:
            raise ResumeError(
                f"{folder} holds a search of another configuration ({started}); give the settings "
                "it was started with, or another folder."
            )
        started.write_text(json.dumps(mine, indent=1) + "\n")
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
                key = (row["stage"], row["batch"], row["task"], row["settings_mark"])
                self._known[key] = row["speeds"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut when a search was stopped: made again
        if lines:  # whatever the last line was, the next one begins its own
            self._path.write_text("\n".join(lines) + "\n")
        self.scored: list[tuple[float, Setting]] = []

    def run(self, report: Callable[[str, int, int, float], None] | None = None) -> dict[str, Any]:
        """All stages; returns what is also written to `best.json`.

        Args:
            report: Called after each batch with stage, done, total and the best score so far.
        """
        config = self.config
        with workers(self.processes) as pool:
            for i in range(0 if config.around else config.random):
                rng = np.random.default_rng([config.seed, 1, i])
                rule = draw_rule(rng, config.optimizer)
                batch = [draw_setting(rng, rule, config.optimizer) for _ in range(BATCH)]
                self._add(pool, "random", i, batch)
                if report:
                    report("random", i + 1, config.random, self.scored[0][0])
            for i in range(0 if config.around else config.refine):
                rng = np.random.default_rng([config.seed, 2, i])
                parent = self.scored[int(min(rng.geometric(0.25) - 1, 11))][1]
                rule = mutate_rule(rng, parent.rule, config.optimizer)
                batch = [mutate(rng, parent, rule, config.optimizer) for _ in range(BATCH)]
                self._add(pool, "refine", i, batch)
                if report:
                    report("refine", i + 1, config.refine, self.scored[0][0])
            rows = self._final(pool, self._leaders(), report)
        best = {"config": asdict(config), "leaders": rows}
        (self.folder / "best.json").write_text(json.dumps(best, indent=1) + "\n")
        return best

    def _add(self, pool: Map, stage: str, i: int, batch: list[Setting]) -> None:
        table = self._speeds(pool, stage, i, batch)
        self.scored += list(zip(table.mean(axis=1).tolist(), batch, strict=True))
        self.scored.sort(key=lambda pair: -pair[0])

    def _leaders(self) -> list[Setting]:
        """The best so far, not all of one rule, and the default of today."""
        if self.config.around:
            return around(default(self.config.optimizer))
        found: list[Setting] = [default(self.config.optimizer)]
        taken: dict[StepRule, int] = {}
        most = self.config.leaders if self.config.optimizer == ADAMW_NAME else self.config.per_rule
        for _, setting in self.scored:
            if len(found) > self.config.leaders:
                break
            if taken.get(setting.rule, 0) < most and setting not in found:
                taken[setting.rule] = taken.get(setting.rule, 0) + 1
                found.append(setting)
        return found

    def _final(
        self,
        pool: Map,
        leaders: list[Setting],
        report: Callable[[str, int, int, float], None] | None,
    ) -> list[dict[str, Any]]:
        rules = list(dict.fromkeys(s.rule for s in leaders))
        rows: list[dict[str, Any]] = []
        for i, rule in enumerate(rules):
            group = [s for s in leaders if s.rule == rule]
            table = self._speeds(pool, "final", i, group)
            for setting, line in zip(group, table, strict=True):
                families = dict(zip(self._families("final"), line.tolist(), strict=True))
                rows.append(
                    {
                        "log2_speed": float(line.mean()),
                        "setting": setting.to_json(),
                        "families": {k: round(v, 3) for k, v in families.items()},
                    }
                )
            rows.sort(key=lambda row: -float(row["log2_speed"]))
            if report:
                report("final", i + 1, len(rules), rows[0]["log2_speed"])
        return rows

    def _families(self, stage: str) -> list[str]:
        return list(dict.fromkeys(entry.spec.family for entry in self.tasks[stage]))

    def _speeds(self, pool: Map, stage: str, i: int, batch: list[Setting]) -> FloatArray:
        """Mean clipped log2 speed `(settings, families)`; finished tasks are read back."""
        seeds = tuple(range(700, 700 + self.config.seeds[stage == "final"]))
        seeds = tuple(s + 50 for s in seeds) if stage == "final" else seeds
        # what was measured for other settings, or against another frontier, is made anew
        mark = _mark(batch, seeds)
        todo = [e for e in self.tasks[stage] if (stage, i, _name(e), mark) not in self._known]
        # the longest first: nobody waits for one late long task
        todo.sort(key=lambda e: -e.spec.steps)
        with self._path.open("a") as file:
            jobs = [(entry, batch, seeds) for entry in todo]
            for entry, found in zip(todo, pool(_job, jobs), strict=True):
                key = (stage, i, _name(entry), mark)
                self._known[key] = found
                row = {
                    "stage": stage,
                    "batch": i,
                    "task": key[2],
                    "settings_mark": mark,
                    "speeds": found,
                }
                if entry is todo[0]:
                    row["settings"] = [s.to_json() for s in batch]
                file.write(json.dumps(row) + "\n")
        by_family: dict[str, list[FloatArray]] = {f: [] for f in self._families(stage)}
        for entry in self.tasks[stage]:
            table = np.clip(self._known[stage, i, _name(entry), mark], *CLIP)
            by_family[entry.spec.family].append(table.mean(axis=1))
        return np.stack([np.mean(v, axis=0) for v in by_family.values()], axis=1)


def _name(entry: Entry) -> str:
    """A task with its length and yardstick."""
    return f"{entry.spec.task} {entry.spec.steps} {_digest(entry.frontier.to_json())}"


def _mark(batch: Sequence[Setting], seeds: Sequence[int]) -> str:
    meaning = [setting.rule.meaning() for setting in batch]
    return _digest([[setting.to_json() for setting in batch], meaning, list(seeds)])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _job(job: tuple[Entry, list[Setting], tuple[int, ...]]) -> list[list[float]]:
    entry, batch, seeds = job
    found: list[list[float]] = np.round(speeds(entry, batch, seeds), 4).tolist()
    return found


def sharpest(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many of each family, those whose frontier tells most: the sharpest."""
    by_family: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda e: e.frontier.resolution):
        by_family.setdefault(entry.spec.family, []).append(entry)
    kept = {id(entry) for found in by_family.values() for entry in found[:most]}
    return [entry for entry in entries if id(entry) in kept]


@contextmanager
def workers(processes: int) -> Iterator[Map]:
    """What does jobs in their order: workers of one thread each, or this process."""
    if processes == 1:
        yield map
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_one_thread) as pool:
        yield pool.map


def _one_thread() -> None:
    torch.set_num_threads(1)


def search_specs(config: SearchConfig) -> tuple[list[TaskSpec], list[TaskSpec]]:
    """Candidates for the first two stages, twice as many as wanted, and for the final one.

    Other draws of the same families; those with a blunt frontier fall out.
    """
    first = draw_specs(config.families, 2 * config.per_family[0], config.steps, 11)
    families = config.final_families or config.families
    # the draw of a training with the defaults: its frontiers are wanted anyway
    last = draw_specs(families, config.per_family[1], config.final_steps, 0)
    return first, last


def default(optimizer: str) -> Setting:
    """An optimizer's one default, under the default schedule.

    AdamW's is the setting of the bench's arm `adamw-transferred`, under the baseline's cosine.
    """
    steered = get_optimizer(optimizer)
    if optimizer != ADAMW_NAME:
        return Setting(steered.rule, dict(steered.start), Schedule())
    row = transferred()
    values = {
        "learning_rate": row["learning_rate"],
        "one_minus_beta1": round(1.0 - row["beta1"], 12),
        "one_minus_beta2": round(1.0 - row["beta2"], 12),
        "eps": 1e-8,
        "weight_decay": row["weight_decay"],
    }
    return Setting(ADAMW, values, None)


def plain(specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Those whose weights are not rescaled: users' networks are not, and no default could know."""
    kept = []
    for spec in specs:
        config = getattr(get_task(spec.task), "config", None) or {}
        if float(config.get("reparam", 1.0)) == 1.0:
            kept.append(spec)
    return kept


def chosen(best: dict[str, Any]) -> Setting:
    """The setting that a finished search chose."""
    return Setting.from_json(best["leaders"][0]["setting"])


__all__ = [
    "CLIP",
    "Search",
    "SearchConfig",
    "Setting",
    "chosen",
    "default",
    "plain",
    "search_specs",
    "sharpest",
    "speeds",
    "workers",
]
