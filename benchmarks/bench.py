"""`lhopt bench`: run the arms of a tier, keep the raw rows, hand them to the report."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.averages import LONG, MIXES, SHORT, UPDATES
from ..core.errors import ConfigurationError, UnknownNameError
from ..env.config import get_optimizer
from ..env.pool import TaskSpec
from ..policy import artifact, bundled
from ..policy.artifact import Policy
from . import loop_arms, real, replay, report
from .arms import (
    ADAMW,
    ARMS,
    IMITATION_FILE,
    SERVED,
    STEERABLE,
    Arm,
    Tier,
    adamw_setting,
    get_tier,
)
from .frontier import BenchTask
from .frontier import Tier as FrontierTier
from .frontier_files import bench_task, data_digest, tasks_of
from .jobs import ArmJob, Job, ReplayJob, ScanJob, loop_seconds, work
from .records import Results, Row

#: Changes whenever an arm does, so that old rows are not read.
PROTOCOL = 3


def find_policies(paths: Sequence[Path] = ()) -> dict[str, Policy]:
    """Policies by the optimizer they steer: those of `paths`, the bundled one for the others.

    A path replaces the bundled policy of its own optimizer alone.

    Raises:
        ConfigurationError: There is none, two files steer the same optimizer, or one steers an
            optimizer that the bench has no arms for.
    """
    found: dict[str, Policy] = {}
    given: dict[str, Path] = {}
    for path in paths:
        policy = artifact.load(path)
        if policy.optimizer not in (ADAMW, STEERABLE):
            raise ConfigurationError(
                f"{path} steers {policy.optimizer}, which the bench has no arms for; give a policy "
                f"of {ADAMW} or {STEERABLE}."
            )
        if policy.optimizer in given:
            raise ConfigurationError(
                f"{given[policy.optimizer]} and {path} both steer {policy.optimizer}; give one "
                "policy per optimizer."
            )
        given[policy.optimizer] = path
        found[policy.optimizer] = policy
    for optimizer in (ADAMW, STEERABLE):
        if optimizer not in found and bundled.names():
            policy = bundled.for_optimizer(optimizer)
            if policy.optimizer == optimizer:
                found[optimizer] = policy
    if not found:
        raise ConfigurationError(
            "No policy to bench: none is bundled. Give one with --policy FOLDER/NAME.json."
        )
    return found


def chosen(tier: str, names: Sequence[str] = ()) -> list[tuple[TaskSpec, FrontierTier]]:
    """The tasks of a tier with these names or families, all if none is named.

    Each comes with the tier that its frontier belongs to.

    Raises:
        UnknownNameError: A name that is no task or family of the tier.
    """
    there = tasks_of(tier)
    known = {name for spec, _ in there for name in (spec.task, spec.family)}
    for name in names:
        if name not in known:
            raise UnknownNameError(f"task of tier {tier!r}", name, known)
    return [
        (spec, of) for spec, of in there if not names or spec.task in names or spec.family in names
    ]


def choose(tier: str, names: Sequence[str] = ()) -> list[BenchTask]:
    """The same with their frontiers, which are measured where they are missing."""
    return [bench_task(spec, of, report=print) for spec, of in chosen(tier, names)]


def left_out(arm: Arm, policies: Mapping[str, Policy]) -> str | None:
    """Why an arm cannot run; None if it can."""
    if arm.kind == "imitation" and not IMITATION_FILE.exists():
        return f"there is no {IMITATION_FILE.name} of the policy after imitation alone"
    if arm.wants_policy and arm.kind != "imitation" and arm.optimizer not in policies:
        return f"there is no policy for {arm.optimizer}"
    module = loop_arms.missing(arm.name)
    return f"{module} is not installed: pip install 'lhopt[optimizers]'" if module else None


class Bench:
    """The runs of a tier; what is finished already is read back.

    Args:
        tier: Which.
        tasks: Its tasks, with their frontiers.
        policies: By the optimizer that they steer.
        results: Where finished runs go.
        quick: Whether to run fewer seeds.
        arms: Which arms, of those that the tier has.
    """

    def __init__(
        self,
        tier: Tier,
        tasks: Sequence[BenchTask],
        policies: Mapping[str, Policy],
        results: Results,
        *,
        quick: bool = False,
        arms: Sequence[Arm] = ARMS,
    ) -> None:
        self.tier, self.tasks, self.policies, self.results = tier, tasks, policies, results
        of_tier = [arm for arm in arms if arm.name in tier.seeds]
        self.missing = {a.name: why for a in of_tier if (why := left_out(a, policies))}
        self.arms = [arm for arm in of_tier if arm.name not in self.missing]
        self._quick = quick
        self._digests = {task.spec.task: data_digest(task.task) for task in tasks}

    @property
    def rows(self) -> list[Row]:
        """Finished runs, arm by arm."""
        held = [
            self.results.get(name)
            for arm in self.arms
            for task in self.tasks
            for name, _, _ in self._wanted(arm, task)
        ]
        return [Row.from_json(value) for value in held if value is not None]

    @property
    def paths(self) -> dict[str, Any]:
        """Paths of the hyperparameters, as the raw results name them."""
        names = [
            f"path {arm.name} {task.spec.task} {self._seeds(arm)[0]} {offset}"
            for arm in self.arms
            if arm.kind == "tuner"
            for task in self.tasks
            for offset in arm.offsets
        ]
        return {name: value for name in names if (value := self.results.get(name)) is not None}

    @property
    def served(self) -> dict[str, tuple[int, int]]:
        """Decisions of each arm that asks a server, and those of them that it had to hold."""
        found: dict[str, tuple[int, int]] = {}
        for arm in self.arms:
            if arm.kind not in SERVED:
                continue
            names = [
                f"service {arm.name} {task.spec.task} {seed} {offset}"
                for task in self.tasks
                for seed in self._seeds(arm)
                for offset in arm.offsets
            ]
            values = [value for name in names if (value := self.results.get(name)) is not None]
            found[arm.name] = (
                sum(value["decisions"] for value in values),
                sum(value["held"] for value in values),
            )
        return found

    @property
    def total(self) -> int:
        """Runs of all arms together."""
        return len(self.tasks) * sum(len(self._seeds(arm)) * len(arm.offsets) for arm in self.arms)

    def _seeds(self, arm: Arm) -> tuple[int, ...]:
        n = self.tier.seeds[arm.name]
        return tuple(range(min(n, self.tier.quick) if self._quick else n))

    def _wanted(self, arm: Arm, task: BenchTask) -> list[tuple[str, int, int | None]]:
        start = f"run {arm.name} {self.tier.name} {task.spec.task} {task.spec.steps}"
        stamp = self._stamp(arm, task)
        return [
            (f"{start} {seed} {offset} {stamp}", seed, offset)
            for seed in self._seeds(arm)
            for offset in arm.offsets
        ]

    def _policy(self, arm: Arm) -> Policy | None:
        if arm.kind == "imitation":
            return artifact.load(IMITATION_FILE)
        return self.policies[arm.optimizer] if arm.wants_policy else None

    def _stamp(self, arm: Arm, task: BenchTask) -> str:
        """Names everything that a row depends on besides arm, task, seed and start."""
        policy = self._policy(arm)
        described: dict[str, Any] = {
            "protocol": PROTOCOL,
            "steps": task.spec.steps,
            "config": getattr(task.task, "config", None),
            "data": self._digests[task.spec.task],
            "selection": task.selection,
            "loops": self.tier.loops,
            "torch": torch.__version__,
        }
        if policy is not None:
            described |= {"policy": policy.digest, "optimizer": _described(arm.optimizer)}
        if arm.averages:
            described["averages"] = [SHORT, LONG, UPDATES, "all of inner_valid", *MIXES]
        if arm.kind == "cosine":
            described["setting"] = dict(adamw_setting(arm))
        if arm.kind == "random":  # one generator draws for the whole batch
            described["batch"] = self._seeds(arm)
        if arm.kind == "replay":
            assert policy is not None
            described["path"] = self._replay_name(policy)
        if arm.kind == "library":
            described["recipe"] = loop_arms.RECIPES[arm.name]
            if arm.name in loop_arms.PACKAGES:
                described["version"] = version(loop_arms.PACKAGES[arm.name])
        if arm.kind == "tuned":
            described |= {"setting": dict(task.k24.setting), "runs": task.k24.runs.tolist()}
        return _hash(described)

    def run(self, processes: int, note: Callable[[Job], None]) -> None:
        """Everything that is not finished, best rates and paths first.

        Args:
            processes: Workers; 1 is this process.
            note: Called with each job once its lines are kept.
        """
        for arm in self.arms:
            if arm.kind == "tuned":
                self._read_baseline(arm)
        pending = [
            (arm, task, missing)
            for arm in self.arms
            for task in self.tasks
            if arm.kind != "tuned" and (missing := self._missing(arm, task))
        ]
        seconds = {
            task.spec: loop_seconds(task.task, task.spec.steps)
            for task in self.tasks
            if any(task is t for _, t, _ in pending)
        }
        first: dict[str, Job] = {}
        for arm, task, _ in pending:
            for job in self._preparations(arm, task, seconds[task.spec]):
                if self.results.get(job.name) is None:
                    first[job.name] = job
        self._work(list(first.values()), processes, note)
        jobs: list[Job] = []
        for arm, task, missing in pending:
            jobs += self._jobs(arm, task, missing, seconds[task.spec])
        self._work(jobs, processes, note)

    def _missing(self, arm: Arm, task: BenchTask) -> list[tuple[str, int, int | None]]:
        wanted = self._wanted(arm, task)
        missing = [run for run in wanted if not self._held(arm, task, run)]
        return wanted if missing and arm.kind == "random" else missing

    def _held(self, arm: Arm, task: BenchTask, run: tuple[str, int, int | None]) -> bool:
        name, seed, offset = run
        row = self.results.get(name)
        if row is None or arm.kind != "tuner" or seed != self._seeds(arm)[0]:
            return row is not None
        path = self.results.get(f"path {arm.name} {task.spec.task} {seed} {offset}")
        return path is not None and path["stamp"] == row["stamp"]

    def _preparations(
        self, arm: Arm, task: BenchTask, step_seconds: float
    ) -> Iterator[ScanJob | ReplayJob]:
        policy = self._policy(arm)
        if policy is None or arm.offsets == (None,):
            return
        yield ScanJob(
            self._scan_name(arm, task), arm.optimizer, policy.schedule, task.spec, step_seconds
        )
        if arm.kind == "replay":
            yield ReplayJob(self._replay_name(policy), policy)

    def _scan_name(self, arm: Arm, task: BenchTask) -> str:
        policy = self._policy(arm)
        assert policy is not None
        described = {
            "protocol": PROTOCOL,
            "task": task.spec.task,
            "config": getattr(task.task, "config", None),
            "data": self._digests[task.spec.task],
            "steps": task.spec.steps,
            "schedule": policy.schedule.to_json(),
            "optimizer": _described(arm.optimizer),
        }
        return f"scan {arm.optimizer} {_hash(described)}"

    def _replay_name(self, policy: Policy) -> str:
        start = dict(get_optimizer(policy.optimizer).start)
        described = {
            "start": start,
            "optimizer": _described(policy.optimizer),
            "recorded": [*replay.recorded(), replay.STEPS, *replay.SEEDS],
        }
        return f"replay {PROTOCOL} {policy.digest} {_hash(described)}"

    def _jobs(
        self,
        arm: Arm,
        task: BenchTask,
        missing: Sequence[tuple[str, int, int | None]],
        step_seconds: float,
    ) -> Iterator[Job]:
        policy = self._policy(arm)
        best, path = None, None
        if arm.offsets != (None,):
            best = float(self._kept(self._scan_name(arm, task))["best"])
        if arm.kind == "replay":
            assert policy is not None
            held = self._kept(self._replay_name(policy))
            path = np.array(held["progress"]), np.array(held["path"])
        loop = self.tier.loops or not arm.has_twin
        # loops go out seed by seed; a batch, and the runs that share a server, together
        groups = [list(missing)]
        if loop and arm.kind != "http":
            seeds = dict.fromkeys(seed for _, seed, _ in missing)
            groups = [[run for run in missing if run[1] == seed] for seed in seeds]
        for group in groups:
            yield ArmJob(
                arm=arm,
                spec=task.spec,
                tier=self.tier.name,
                wanted=tuple(group),
                stamp=self._stamp(arm, task),
                policy=policy,
                best=best,
                path=path,
                loop=loop,
                step_seconds=step_seconds,
                paths_of=self._seeds(arm)[0] if arm.kind == "tuner" else None,
            )

    def _kept(self, name: str) -> Any:
        value = self.results.get(name)
        assert value is not None, name
        return value

    def _read_baseline(self, arm: Arm) -> None:
        """The baseline's own runs at horizon 1 as rows; nothing is trained, so no curve."""
        for task in self.tasks:
            frontier = task.k24
            at = frontier.horizons.index(1.0)
            for name, seed, offset in self._wanted(arm, task):
                if self.results.get(name) is not None:
                    continue
                column = frontier.seeds.index(seed)
                loss, test = frontier.runs[at, column], frontier.test_runs[at, column]
                row = Row(
                    arm=arm.name,
                    tier=self.tier.name,
                    task=task.spec.task,
                    steps=task.spec.steps,
                    seed=seed,
                    offset=offset,
                    rate=float(frontier.setting["learning_rate"]),
                    loss=float(loss) if np.isfinite(loss) else None,
                    test_loss=float(test) if np.isfinite(loss) else None,
                    curve=(),
                    cpu_ms=None,
                    plain_ms=None,
                    stamp=self._stamp(arm, task),
                )
                self.results.put(name, row.to_json())

    def _work(self, jobs: Sequence[Job], processes: int, note: Callable[[Job], None]) -> None:
        ordered = sorted(jobs, key=lambda job: -job.cost)
        for job, lines in _done(ordered, processes):
            for name, value in lines:
                self.results.put(name, value)
            note(job)


def _done(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, list[tuple[str, Any]]]]:
    """Jobs with their lines, as they are finished."""
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, work(job)
        return
    context = multiprocessing.get_context("spawn")
    ours = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    try:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - ours:
            child.terminate()
        raise
    pool.shutdown()


def _begin() -> None:
    """A worker: the parent alone hears Ctrl-C, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def run_bench(
    tier: str,
    policies: Mapping[str, Policy],
    output: Path,
    *,
    tasks: Sequence[BenchTask] | None = None,
    names: Sequence[str] = (),
    quick: bool = False,
    processes: int = 2,
    arms: Sequence[Arm] = ARMS,
    resamples: int | None = None,
) -> report.Report:
    """Run what is not finished yet, then print and write the report.

    Args:
        tier: Which.
        policies: By optimizer.
        output: Folder of raw rows, summary and pictures.
        tasks: Tasks with their frontiers, instead of the tier's.
        names: Only tasks of these names or families.
        quick: Fewer seeds.
        processes: Workers, one thread each; 1 is this process.
        arms: Which arms, of those that the tier has.
        resamples: Of the bootstrap, instead of the report's own number.

    Raises:
        ConfigurationError: No process, or no arm is left.
    """
    from tqdm import tqdm

    if processes < 1:
        raise ConfigurationError(f"processes is {processes}; it must be at least 1.")
    torch.set_num_threads(1)
    began = time.monotonic()
    ready = list(tasks) if tasks is not None else choose(tier, names)
    results = Results(output / f"{tier}.jsonl")
    bench = Bench(get_tier(tier), ready, policies, results, quick=quick, arms=arms)
    for optimizer, policy in policies.items():
        print(f"policy for {optimizer}: {policy.name} {policy.digest[:12]}")
    for name, why in bench.missing.items():
        print(f"LEFT OUT: {name}, because {why}")
    if not bench.arms:
        raise ConfigurationError(f"No arm of tier {tier!r} can run; see the reasons above.")
    with tqdm(total=bench.total, initial=len(bench.rows), unit="run", smoothing=0.05) as bar:

        def note(job: Job) -> None:
            bar.update(job.n_rows)
            bar.set_postfix_str(job.title, refresh=True)

        bench.run(processes, note)
    given = {} if resamples is None else {"resamples": resamples}
    made = report.build(bench.rows, ready, paths=bench.paths, policies=policies, **given)
    print(f"\n{made.text()}")
    made.write(output)
    for name, (decisions, held) in bench.served.items():
        print(f"{name}: {decisions:,} decisions asked of a server, {held:,} of them held")
    minutes = (time.monotonic() - began) / 60
    print(f"{len(bench.rows)} runs, {minutes:.1f} minutes; rows and pictures in {output}/")
    return made


def _described(name: str) -> dict[str, Any]:
    """What a row owes to its optimizer."""
    rule = get_optimizer(name).rule
    return {"rule": asdict(rule), "defaults": real.default_values(name), **rule.meaning()}


def _hash(described: Mapping[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
