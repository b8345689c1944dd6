"""Pieces of the bench that a worker process does on its own: picklable in, lines to keep out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch

from ..client import Tuner
from ..core.schedules import Schedule
from ..core.types import FloatArray
from ..env.episode import Episode
from ..env.pool import TaskSpec
from ..inner_tasks.base import InnerTask
from ..inner_tasks.registry import get_task
from ..policy.artifact import Policy
from ..policy.evaluate import Controller, closed_loop, hold, open_loop, random_choices
from . import batched_arms, loop_arms, real
from .arms import ADAMW, SERVED, STEERED, Arm, adamw_setting
from .batched_arms import MakeController
from .real import DECISIONS, MakeTuner, Outcome, Recipe
from .records import Row
from .replay import median_path
from .service_arms import serving

#: Rates of a scan, three to a factor of ten and more where the best lies at an end.
SCAN_RATES: dict[str, tuple[float, ...]] = {
    name: tuple(float(rate) for rate in np.geomspace(low, high, 7))
    for name, low, high in (("torch.optim.AdamW", 1e-4, 0.1), ("lhopt.SteerableAdamW", 1e-3, 1.0))
}
SCAN_STEP = math.sqrt(10.0)
SCAN_SEEDS = (100, 101)
#: Steps that are timed where no whole run is, and steps before them that are not.
TIMED_STEPS, WARM_STEPS = 60, 5
#: Seconds that a Tuner waits for the server: a busy machine must not look like a dead server, which
#: refuses at once.
TIMEOUT = 10.0

Line = tuple[str, Any]


class Job(Protocol):
    """Work that needs nothing but itself."""

    @property
    def title(self) -> str:
        """For the progress bar."""

    @property
    def cost(self) -> float:
        """About how many seconds it takes, for the order."""

    @property
    def n_rows(self) -> int:
        """Finished runs among its lines."""

    def run(self) -> list[Line]:
        """Lines for the raw results: name and value."""


@lru_cache(maxsize=8)
def task_named(name: str) -> InnerTask:
    """A task, read once per process."""
    return get_task(name)


def loop_seconds(task: InnerTask, steps: int) -> float:
    """CPU seconds of a step of plain AdamW in a real loop, roughly."""
    plain = real.recipe(ADAMW)
    real.train(task, steps, 0, plain, marks=(), until=2)
    return real.train(task, steps, 0, plain, marks=(), until=10).cpu_seconds / 10


@dataclass(frozen=True)
class ScanJob:
    """Best rate of an optimizer under the no-op policy, on the tuning seeds."""

    name: str
    optimizer: str
    schedule: Schedule
    spec: TaskSpec
    step_seconds: float
    n_rows: int = 0

    @property
    def title(self) -> str:
        """For the progress bar."""
        return f"{self.spec.task} rates of {self.optimizer}"

    @property
    def cost(self) -> float:
        """Two scans' worth: most need no widening."""
        return 0.5 * self.step_seconds * self.spec.steps * 14

    def run(self) -> list[Line]:
        """One line."""
        task, steps = task_named(self.spec.task), self.spec.steps
        losses: dict[float, float] = {}
        rates = list(SCAN_RATES[self.optimizer])
        for _ in range(3):  # at most two widenings: an optimum on the edge is none
            repeated = np.repeat(rates, len(SCAN_SEEDS))
            seeds = list(SCAN_SEEDS) * len(rates)
            found = batched_arms.steered(
                task, steps, self.optimizer, self.schedule, lambda _: hold, seeds, repeated
            )
            means = found.loss.reshape(len(rates), len(SCAN_SEEDS)).mean(axis=1)
            losses.update(zip(rates, means.tolist(), strict=True))
            best = min(losses, key=lambda rate: losses[rate])
            if best == min(losses):
                rates = [best / SCAN_STEP, best / SCAN_STEP**2]
            elif best == max(losses):
                rates = [best * SCAN_STEP, best * SCAN_STEP**2]
            else:
                break
        value = {
            "task": self.spec.task,
            "optimizer": self.optimizer,
            "best": best,
            "losses": {f"{rate:g}": _finite(loss) for rate, loss in sorted(losses.items())},
        }
        return [(self.name, value)]


@dataclass(frozen=True)
class ReplayJob:
    """The median path of a policy on the tasks that it was trained on."""

    name: str
    policy: Policy
    cost: float = 30.0
    n_rows: int = 0

    @property
    def title(self) -> str:
        """For the progress bar."""
        return f"recording the path of {self.policy.name}"

    def run(self) -> list[Line]:
        """One line."""
        progress, path = median_path(self.policy)
        return [(self.name, {"progress": progress.tolist(), "path": path.tolist()})]


@dataclass(frozen=True)
class ArmJob:
    """Runs of one arm on one task.

    Attributes:
        arm: Which.
        spec: The task and its length.
        tier: For the rows.
        wanted: Name in the raw results, seed and offset of each run.
        stamp: For the rows.
        policy: Who steers, or whose schedule counts.
        best: The rate that starts are decades off of; None where there are none.
        path: Progress and path to replay.
        loop: Whether a real loop trains.
        step_seconds: Of a plain step of this task.
        paths_of: Seed whose hyperparameters are kept; None keeps none.
    """

    arm: Arm
    spec: TaskSpec
    tier: str
    wanted: tuple[tuple[str, int, int | None], ...]
    stamp: str
    policy: Policy | None
    best: float | None
    path: tuple[FloatArray, FloatArray] | None
    loop: bool
    step_seconds: float
    paths_of: int | None = None

    @property
    def title(self) -> str:
        """For the progress bar."""
        return f"{self.spec.task} {self.arm.name}"

    @property
    def n_rows(self) -> int:
        """Runs."""
        return len(self.wanted)

    @property
    def cost(self) -> float:
        """A batch takes a fraction of a loop per run."""
        factor = 2.0 if self.loop else 0.5
        return factor * self.step_seconds * self.spec.steps * len(self.wanted)

    @property
    def task(self) -> InnerTask:
        """What is trained."""
        return task_named(self.spec.task)

    def run(self) -> list[Line]:
        """A line per run, and what goes with it."""
        return list(self._loops() if self.loop else self._batch())

    def rate(self, offset: int | None) -> float | None:
        """Starting rate; None where there is none to speak of."""
        if self.best is not None:
            return self.best * 10.0 ** (offset or 0)
        if self.arm.kind == "default" or self.arm.at_default:
            return real.default_values(self.arm.optimizer)["learning_rate"]
        return adamw_setting(self.arm)["learning_rate"] if self.arm.kind == "cosine" else None

    def recipe(self, rate: float | None) -> Recipe:
        """The optimizer and its schedule in a real loop."""
        if self.arm.kind in STEERED:
            return real.recipe(self.arm.optimizer, rate)
        if self.arm.kind == "default":
            return loop_arms.steerable_default(self.arm.optimizer, self._policy.schedule)
        if self.arm.kind == "cosine":
            return loop_arms.adamw_cosine(adamw_setting(self.arm))
        return loop_arms.LIBRARY[self.arm.name]()

    @property
    def _policy(self) -> Policy:
        assert self.policy is not None, "the arm wants a policy"
        return self.policy

    def _tuner(self, url: str | None = None) -> MakeTuner | None:
        if self.arm.kind not in STEERED:
            return None
        steps = self.spec.steps
        epochs, labels = self.task.epochs(steps), self.task.n_labels()
        made = partial(Tuner, total_steps=steps, epochs=epochs, labels=labels, decisions=DECISIONS)
        if url is not None:
            return lambda optimizer, _: made(
                optimizer, url=url, policy=self._policy.digest, timeout=TIMEOUT
            )
        policy = loop_arms.holding(self._policy) if self.arm.kind == "hold" else self._policy
        return lambda optimizer, validate: made(
            optimizer,
            policy=policy,
            validate=validate if self.arm.validates else None,
            averages=self.arm.averages,
        )

    def _plain_ms(self, seed: int) -> float:
        """CPU milliseconds of a step of torch.optim.AdamW alone."""
        return self._timed(seed, real.recipe(ADAMW)).cpu_ms

    def _timed(self, seed: int, recipe: Recipe, tuner: MakeTuner | None = None) -> Outcome:
        steps = self.spec.steps
        real.train(self.task, steps, seed, recipe, marks=(), until=min(WARM_STEPS, steps))
        until = min(TIMED_STEPS, steps)
        return real.train(self.task, steps, seed, recipe, tuner=tuner, marks=(), until=until)

    def _loops(self) -> Iterator[Line]:
        if self.arm.kind == "http":
            with serving(self._policy) as server:
                for name, seed, offset in self.wanted:
                    yield from self._loop(name, seed, offset, server.url, server.cpu_seconds)
            return
        for name, seed, offset in self.wanted:
            if self.arm.kind == "killed":
                with serving(self._policy) as server:
                    yield from self._loop(
                        name, seed, offset, server.url, server.cpu_seconds, server.kill
                    )
            else:
                yield from self._loop(name, seed, offset)

    def _loop(
        self,
        name: str,
        seed: int,
        offset: int | None,
        url: str | None = None,
        served: Callable[[], float | None] | None = None,
        kill: Callable[[], None] | None = None,
    ) -> Iterator[Line]:
        steps, rate = self.spec.steps, self.rate(offset)
        plain_ms = self._plain_ms(seed)
        before = served() if served else 0.0
        after: list[float | None] = []

        def halfway() -> None:
            assert served is not None
            assert kill is not None
            after.append(served())  # nothing can be asked of it later
            kill()

        outcome = real.train(
            self.task,
            steps,
            seed,
            self.recipe(rate),
            tuner=self._tuner(url),
            averages=self.arm.averages,
            halfway=halfway if kill else None,
        )
        used = after[0] if after else served() if served else 0.0
        cpu_ms = outcome.cpu_ms
        if before is None or used is None:
            cpu_ms = math.nan  # the server's share is not known here
        else:
            cpu_ms += 1e3 * (used - before) / outcome.steps
        yield (
            name,
            self._row(
                seed, offset, outcome.loss, outcome.test_loss, outcome.curve, cpu_ms, plain_ms
            ),
        )
        if self.arm.kind in SERVED:
            held = [r.source for r in outcome.history[1:] if r.source != "policy"]
            value = {
                "decisions": len(outcome.history) - 1,
                "held": len(held),
                "causes": sorted(set(held)),
            }
            yield f"service {self._of(seed, offset)}", value
        if seed == self.paths_of:
            yield f"path {self._of(seed, offset)}", self._path(outcome, rate)

    def _of(self, seed: int, offset: int | None) -> str:
        return f"{self.arm.name} {self.spec.task} {seed} {offset}"

    def _path(self, outcome: Outcome, rate: float | None) -> dict[str, Any]:
        start = real.default_values(self.arm.optimizer)
        if rate is not None:
            start["learning_rate"] = rate
        names = [control.name for control in self._policy.controls]
        return {
            "stamp": self.stamp,
            "progress": [record.progress for record in outcome.history],
            "relative": {
                name: [record.values[name] / start[name] for record in outcome.history]
                for name in names
            },
        }

    def _batch(self) -> Iterator[Line]:
        seeds = [seed for _, seed, _ in self.wanted]
        rates = [self.rate(offset) for _, _, offset in self.wanted]
        steps = self.spec.steps
        if self.arm.kind == "cosine":
            found = batched_arms.adamw_cosine(self.task, steps, seeds, adamw_setting(self.arm))
        else:
            found = batched_arms.steered(
                self.task, steps, self.arm.optimizer, self._policy.schedule,
                self._controller(), seeds, np.array(rates, np.float64),
            )  # fmt: skip
        plain_ms = self._plain_ms(seeds[0])
        cpu_ms = self._timed(seeds[0], self.recipe(rates[0]), self._tuner()).cpu_ms
        for i, (name, seed, offset) in enumerate(self.wanted):
            yield (
                name,
                self._row(
                    seed,
                    offset,
                    found.loss[i],
                    found.test_loss[i],
                    found.curve[i],
                    cpu_ms,
                    plain_ms,
                ),
            )

    def _controller(self) -> MakeController:
        policy = self._policy
        if self.arm.kind == "random":
            return partial(_random, policy)
        if self.arm.kind == "imitation":
            return lambda episode: closed_loop(policy, episode.n_runs)
        if self.arm.kind == "replay":
            assert self.path is not None
            progress, path = self.path
            return lambda episode: open_loop(progress, path, episode.n_decisions)
        return lambda _: hold

    def _row(
        self,
        seed: int,
        offset: int | None,
        loss: float,
        test_loss: float,
        curve: FloatArray,
        cpu_ms: float,
        plain_ms: float,
    ) -> dict[str, Any]:
        return Row(
            arm=self.arm.name,
            tier=self.tier,
            task=self.spec.task,
            steps=self.spec.steps,
            seed=seed,
            offset=offset,
            rate=self.rate(offset),
            loss=_finite(loss),
            test_loss=_finite(test_loss),
            curve=tuple(_finite(value) for value in curve),
            cpu_ms=_finite(cpu_ms),
            plain_ms=_finite(plain_ms),
            stamp=self.stamp,
        ).to_json()


def work(job: Job) -> list[Line]:
    """Do a job, on one thread."""
    torch.set_num_threads(1)
    return job.run()


def _random(policy: Policy, episode: Episode) -> Controller:
    return random_choices(policy.controls, episode.drawn.seeds[0])


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
