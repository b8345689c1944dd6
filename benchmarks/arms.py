"""The arms of the bench, each on the same tasks, initial weights, data order and length.

An arm that starts somewhere starts a decade above and a decade below its optimizer's best rate. For
torch.optim.AdamW that is the tuned baseline's; for SteerableAdamW the best of a scan with the no-op
policy. The policy itself is run by the real `Tuner` in a real loop; what stands in for it (no-op,
random, replay) by the batched environment, which a test holds to the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS
from ..core.schedules import Schedule
from ..core.types import FloatArray
from ..env.config import EnvConfig, get_optimizer
from ..env.episode import Draw, Episode
from ..env.pool import Entry
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, Settings
from ..inner_tasks.registry import families
from ..policy.artifact import Policy
from ..policy.evaluate import Controller, closed_loop, hold, open_loop, random_choices
from ..policy.evaluate import run as run_batched
from ..policy.train import TRAIN_FAMILIES
from . import real
from .baseline import cosine_runs
from .real import DECISIONS

#: Changes whenever an arm does, so that old rows are not read.
PROTOCOL = 1
ADAMW, STEERABLE = "torch.optim.AdamW", "lhopt.SteerableAdamW"
#: Rate of the AdamW that nobody tuned.
UNTUNED_RATE = 1e-3
#: Decades from the best rate at which steered arms start.
OFFSETS = (-1, 1)
#: Rates of SteerableAdamW's own scan, and the seeds that it is judged on.
SCAN_RATES = tuple(float(r) for r in np.geomspace(1e-3, 1.0, 7))
SCAN_SEEDS = (100, 101)
#: Plain steps that a Tuner's CPU time is compared with.
TIMED_STEPS = 60
#: Recording of the replayed path: length of the runs, and their seeds.
REPLAY_STEPS, REPLAY_SEEDS = 200, (0, 1, 2, 3)

Kind = Literal["tuner", "hold", "random", "replay", "default", "cosine", "constant", "tuned"]


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: Stable, in the raw rows.
        label: For people.
        optimizer: What trains.
        kind: How it is run.
    """

    name: str
    label: str
    optimizer: str
    kind: Kind

    @property
    def wants_policy(self) -> bool:
        """Whether its numbers depend on the policy's weights or schedule."""
        return self.kind in ("tuner", "hold", "random", "replay", "default")

    @property
    def offsets(self) -> tuple[int | None, ...]:
        """Starts in decades from the best rate; None where there is nothing to start off."""
        return OFFSETS if self.kind in ("tuner", "hold", "random", "replay") else (None,)


def _steered(short: str, name: str, optimizer: str) -> tuple[Arm, ...]:
    return (
        Arm(f"{short}-policy", f"{name} + policy (Tuner)", optimizer, "tuner"),
        Arm(f"{short}-noop", f"{name} + no-op policy", optimizer, "hold"),
        Arm(f"{short}-random", f"{name} + random policy", optimizer, "random"),
        Arm(f"{short}-replay", f"{name} + replay of the median path", optimizer, "replay"),
    )


ARMS: tuple[Arm, ...] = (
    *_steered("adamw", "AdamW", ADAMW),
    *_steered("steerable", "SteerableAdamW", STEERABLE),
    Arm(
        "steerable-default",
        "SteerableAdamW at its default + schedule, no policy",
        STEERABLE,
        "default",
    ),
    Arm("adamw-cosine", "AdamW 1e-3 cosine", ADAMW, "cosine"),
    Arm("adamw-constant", "AdamW 1e-3 constant", ADAMW, "constant"),
    Arm("adamw-tuned", "AdamW cosine, tuned (the baseline itself)", ADAMW, "tuned"),
)


@dataclass(frozen=True)
class Row:
    """One finished run; a line of the raw results.

    Attributes:
        arm: Name of the arm.
        task: Name of the task.
        steps: Length of the run.
        seed: Of weights and data order.
        offset: Decades from the best rate at the start; None where the arm has no such start.
        rate: Starting learning rate.
        loss: Final `outer_valid` loss; None if the run diverged.
        test_loss: Final loss on `test`; None if the run diverged.
        cpu_ms: CPU milliseconds per step, where the real loop ran.
        plain_ms: The same of torch.optim.AdamW without a Tuner, measured just before.
        stamp: Of everything that the row depends on; rows of another stamp are made anew.
    """

    arm: str
    task: str
    steps: int
    seed: int
    offset: int | None
    rate: float
    loss: float | None
    test_loss: float | None
    cpu_ms: float | None
    plain_ms: float | None
    stamp: str


class Results:
    """Raw rows in a JSONL file, one line per finished run, read back when a bench goes on.

    Args:
        path: The file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    self._lines[row["id"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line that was cut when a bench was stopped: that run is made again

    def get(self, name: str) -> Any | None:
        """What was put under this name."""
        return self._lines.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value; it is on disk when this returns."""
        self._lines[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"id": name, "value": value}) + "\n")


class Bench:
    """Runs arms on tasks; what is finished already is read back.

    Args:
        entries: Tasks with their frontiers.
        policies: A policy by the optimizer that it steers; arms without one are left out.
        results: Where finished runs go.
        seeds: Runs per task and start.
        arms: Which arms.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        policies: Mapping[str, Policy],
        results: Results,
        *,
        seeds: Sequence[int] = (0, 1, 2),
        arms: Sequence[Arm] = ARMS,
    ) -> None:
        self.entries, self.policies, self.results = entries, policies, results
        self.seeds = tuple(seeds)
        self.arms = [arm for arm in arms if not arm.wants_policy or arm.optimizer in policies]

    @property
    def total(self) -> int:
        """Runs of all arms together."""
        return len(self.entries) * len(self.seeds) * sum(len(arm.offsets) for arm in self.arms)

    def run(self) -> Iterator[Row]:
        """Every run, finished ones first read back, task by task."""
        for entry in self.entries:
            for arm in self.arms:
                yield from self._arm(arm, entry)

    def _arm(self, arm: Arm, entry: Entry) -> Iterator[Row]:
        wanted = [(seed, offset) for offset in arm.offsets for seed in self.seeds]
        stamp = self._stamp(arm, entry)
        names = [f"run {arm.name} {entry.spec.task} {s} {o} {stamp}" for s, o in wanted]
        if arm.kind != "tuner":
            # one batch: all of it or nothing
            held = [self.results.get(name) for name in names]
            if None in held:
                rows = self._batch(arm, entry, wanted, stamp)
                for name, row in zip(names, rows, strict=True):
                    self.results.put(name, asdict(row))
            else:
                rows = [Row(**row) for row in held if row is not None]
            yield from rows
            return
        for name, (seed, offset) in zip(names, wanted, strict=True):
            known = self.results.get(name)
            if known is None:
                known = asdict(self._tuned_by_policy(arm, entry, seed, offset or 0, stamp))
                self.results.put(name, known)
            yield Row(**known)

    def _stamp(self, arm: Arm, entry: Entry) -> str:
        """Names everything that a row depends on besides arm, task, seed and start."""
        policy = self.policies.get(arm.optimizer) if arm.wants_policy else None
        described = {
            "protocol": PROTOCOL,
            "steps": entry.spec.steps,
            "config": getattr(entry.task, "config", None),
            "frontier": entry.frontier.to_json(),
            "policy": policy.digest if policy else None,
            "optimizer": _described(arm.optimizer, recorded=arm.kind == "replay"),
            "batch": len(self.seeds) if arm.kind == "random" else None,
        }
        text = json.dumps(described, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def best_rate(self, optimizer: str, entry: Entry) -> float:
        """The rate that starts are decades off of."""
        if optimizer == ADAMW:
            frontier = entry.frontier
            return frontier.best_rates[frontier.budgets.index(1.0)]
        return self._scan(optimizer, entry)

    def _scan(self, optimizer: str, entry: Entry) -> float:
        """Best rate of an optimizer under the no-op policy, on the tuning seeds."""
        schedule = self.policies[optimizer].schedule
        described = {
            "protocol": PROTOCOL,
            "task": entry.task.name,
            "config": getattr(entry.task, "config", None),
            "steps": entry.spec.steps,
            "schedule": schedule.to_json(),
            "optimizer": _described(optimizer),
        }
        text = json.dumps(described, sort_keys=True, default=str)
        name = f"scan {optimizer} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        held = self.results.get(name)
        if held is None:
            held = self._measure_scan(optimizer, entry, schedule)
            self.results.put(name, held)
        return float(held["best"])

    def _measure_scan(self, optimizer: str, entry: Entry, schedule: Schedule) -> dict[str, Any]:
        losses: dict[float, float] = {}
        rates = list(SCAN_RATES)
        for _ in range(3):  # at most three widenings: an optimum on the edge is none
            repeated = np.repeat(rates, len(SCAN_SEEDS))
            seeds = list(SCAN_SEEDS) * len(rates)
            final, _ = batched(entry, optimizer, schedule, lambda _: hold, seeds, repeated)
            means = final.reshape(len(rates), len(SCAN_SEEDS)).mean(axis=1)
            losses.update(zip(rates, means.tolist(), strict=True))
            best = min(losses, key=lambda rate: losses[rate])
            step = SCAN_RATES[1] / SCAN_RATES[0]
            if best == min(losses):
                rates = [best / step, best / step**2]
            elif best == max(losses):
                rates = [best * step, best * step**2]
            else:
                break
        return {
            "task": entry.spec.task,
            "optimizer": optimizer,
            "best": best,
            "losses": {f"{r:g}": v if np.isfinite(v) else None for r, v in sorted(losses.items())},
        }

    def _tuned_by_policy(self, arm: Arm, entry: Entry, seed: int, offset: int, stamp: str) -> Row:
        task, steps = entry.task, entry.spec.steps
        rate = self.best_rate(arm.optimizer, entry) * 10.0**offset
        timed = min(TIMED_STEPS, steps)
        plain = real.train(task, timed, seed, ADAMW, UNTUNED_RATE)
        outcome = real.train(
            task, steps, seed, arm.optimizer, rate, policy=self.policies[arm.optimizer]
        )
        return Row(
            arm=arm.name,
            task=entry.spec.task,
            steps=steps,
            seed=seed,
            offset=offset,
            rate=rate,
            loss=_finite(outcome.loss),
            test_loss=_finite(outcome.test_loss),
            cpu_ms=1e3 * outcome.cpu_seconds / steps,
            plain_ms=1e3 * plain.cpu_seconds / timed,
            stamp=stamp,
        )

    def _batch(
        self, arm: Arm, entry: Entry, wanted: Sequence[tuple[int, int | None]], stamp: str
    ) -> list[Row]:
        task, steps, seeds = entry.task, entry.spec.steps, [seed for seed, _ in wanted]
        if arm.kind in ("cosine", "constant", "tuned"):
            peak = self.best_rate(ADAMW, entry) if arm.kind == "tuned" else UNTUNED_RATE
            rates = np.full(len(seeds), peak)
            if arm.kind == "constant":
                runs = BatchedRuns(task, seeds, Settings(learning_rate=peak))
                runs.advance(steps)
            else:
                runs = cosine_runs(task, steps, peak, seeds)
            loss, test = runs.evaluate("outer_valid"), runs.evaluate("test")
        else:
            policy = self.policies[arm.optimizer]
            if arm.kind == "default":
                best = real.default_values(arm.optimizer)["learning_rate"]
            else:
                best = self.best_rate(arm.optimizer, entry)
            rates = best * 10.0 ** np.array([float(offset or 0) for _, offset in wanted])
            make = self._controller(arm, policy)
            loss, test = batched(entry, arm.optimizer, policy.schedule, make, seeds, rates)
        return [
            Row(
                arm=arm.name,
                task=entry.spec.task,
                steps=steps,
                seed=seed,
                offset=offset,
                rate=float(rates[i]),
                loss=_finite(loss[i]),
                test_loss=_finite(test[i]),
                cpu_ms=None,
                plain_ms=None,
                stamp=stamp,
            )
            for i, (seed, offset) in enumerate(wanted)
        ]

    def _controller(self, arm: Arm, policy: Policy) -> Callable[[Episode], Controller]:
        if arm.kind == "random":
            return lambda episode: random_choices(policy.controls, episode.drawn.seeds[0])
        if arm.kind == "replay":
            progress, path = self._median_path(policy)
            return lambda episode: open_loop(progress, path, episode.n_decisions)
        return lambda _: hold

    def _median_path(self, policy: Policy) -> tuple[FloatArray, FloatArray]:
        optimizer = json.dumps(_described(policy.optimizer, recorded=True), sort_keys=True)
        mark = hashlib.sha256(optimizer.encode()).hexdigest()[:16]
        name = f"replay {PROTOCOL} {policy.digest} {mark}"
        held = self.results.get(name)
        if held is None:
            progress, path = median_path(policy)
            held = {"progress": progress.tolist(), "path": path.tolist()}
            self.results.put(name, held)
        return np.array(held["progress"]), np.array(held["path"])


def batched(
    entry: Entry,
    optimizer: str,
    schedule: Schedule,
    make: Callable[[Episode], Controller],
    seeds: Sequence[int],
    rates: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Final losses on `outer_valid` and `test`, `(K,)` each, in the batched environment.

    Every value but the learning rate starts where the torch optimizer's default stands.
    """
    episodes: list[Episode] = []

    def keep(episode: Episode) -> Controller:
        episodes.append(episode)
        return make(episode)

    starts = {
        name: np.full(len(seeds), value) for name, value in real.default_values(optimizer).items()
    }
    starts["learning_rate"] = np.asarray(rates, np.float64)
    config = EnvConfig(optimizer=optimizer, schedule=schedule)
    result = run_batched(entry, config, keep, seeds=seeds, starts=starts, n_intervals=DECISIONS)
    return result.final_loss, episodes[0].runs.evaluate("test")


def median_path(
    policy: Policy, tasks: Sequence[InnerTask] | None = None, steps: int = REPLAY_STEPS
) -> tuple[FloatArray, FloatArray]:
    """A policy's own schedule, without its eyes: the median of its summed deltas by progress.

    Recorded where it was trained (the default tasks of the training families that need no
    download), from the middle of its starting rates.

    Returns:
        Progress `(n,)` and summed deltas `(n, all controls)`, as `open_loop` takes them.
    """
    if tasks is None:
        there = {family.name: family for family in families(available_only=True)}
        tasks = [
            there[name].default()
            for name in TRAIN_FAMILIES
            if name in there and not there[name].data_files
        ]
    config = EnvConfig(optimizer=policy.optimizer, schedule=policy.schedule, noise_scale=0.0)
    start = np.full((len(REPLAY_SEEDS), N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    paths = []
    for task in tasks:
        drawn = Draw(REPLAY_SEEDS, start.copy(), DECISIONS, reports_valid=False)
        episode = Episode(task, steps, config, drawn)
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


def _described(name: str, *, recorded: bool = False) -> dict[str, Any]:
    """What a row owes to its optimizer; a recorded path also to where training runs start."""
    steered = get_optimizer(name)
    described: dict[str, Any] = {
        "rule": asdict(steered.rule),
        "defaults": real.default_values(name),
    }
    return {**described, "start": dict(steered.start)} if recorded else described


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
