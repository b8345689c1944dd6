"""The pool of tasks that episodes are drawn from, each with its length and frontier."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np
import torch

from ..core.errors import ConfigurationError, FrontierError
from ..core.types import FloatArray
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns
from ..inner_tasks.registry import family_of, get_task, parse
from ..optimizers.update import StepRule
from .frontier import Frontier, FrontierConfig, get_frontier
from .workers import check_processes, each

logger = logging.getLogger("lhopt")

#: A task whose baseline noise exceeds this many octaves of speed teaches and shows nothing.
MAX_RESOLUTION = 0.4
#: Steps that are timed to tell a task's cost.
TIMED_STEPS = 24


@dataclass(frozen=True)
class TaskSpec:
    """A task and how long its runs are.

    Attributes:
        task: Name as `get_task` takes it, e.g. "digits-mlp/17".
        steps: Inner steps of a run.
    """

    task: str
    steps: int

    @property
    def family(self) -> str:
        """The family's name."""
        return family_of(self.task)


class Entry:
    """A pool's task.

    Args:
        spec: Name and length.
        task: What is trained; None makes it by its name when it is first asked for, since a broad
            pool is mostly tasks that are never drawn here, and each has data to make.
        frontier: Its yardstick.
        cost: Seconds of one inner step of one run among the runs of a bucket.
    """

    def __init__(
        self, spec: TaskSpec, task: InnerTask | None, frontier: Frontier, cost: float = 1.0
    ) -> None:
        self.spec, self.frontier, self.cost = spec, frontier, cost
        self._task = task

    @property
    def name(self) -> str:
        """The task's own name, which is the one in `spec` but for ways of writing a number."""
        if self._task is not None:
            return self._task.name
        part = parse(self.spec.task)
        return self.spec.task if part.seed is None else f"{part.family}/{part.seed}"

    @property
    def task(self) -> InnerTask:
        """What is trained."""
        if self._task is None:
            self._task = get_task(self.spec.task)
        return self._task


class TaskPool:
    """Tasks to draw from, with weights that even out families and their cost.

    Args:
        entries: Ready tasks.
        steps_power: Weight of a task within its family is steps ** -steps_power: 1 gives long
            runs the same share of the compute as short ones, 0 the same share of the episodes.
        cost_power: Weight of a family is its mean cost of an episode to the power -cost_power: 1
            gives every family the same share of the compute, 0 the same share of the episodes.
        family_weights: Factors on the weights of families, relative to the others: above 0, and 1
            where a family is not named.

    Attributes:
        weights: Probability of each entry.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        steps_power: float = 0.5,
        cost_power: float = 0.0,
        family_weights: Mapping[str, float] | None = None,
    ) -> None:
        if not entries:
            raise ConfigurationError("The task pool is empty; give at least one task.")
        self.entries = tuple(entries)
        families = [e.spec.family for e in entries]
        weights = np.array([e.spec.steps**-steps_power for e in entries])
        seconds = np.array([e.spec.steps * e.cost for e in entries])
        for family in set(families):
            mask = np.array([f == family for f in families])
            weights[mask] /= weights[mask].sum()
            weights[mask] *= (weights[mask] @ seconds[mask]) ** -cost_power
            weights[mask] *= (family_weights or {}).get(family, 1.0)
        self.weights: FloatArray = weights / weights.sum()

    def sample(self, rng: np.random.Generator) -> Entry:
        """Draw one task."""
        return self.entries[int(rng.choice(len(self.entries), p=self.weights))]

    def weighted(self, weights: FloatArray) -> TaskPool:
        """The same tasks with other weights, `(tasks,)`."""
        other = copy.copy(self)
        other.weights = np.array(weights)
        return other

    def __len__(self) -> int:
        return len(self.entries)


def seconds_per_run_step(
    task: InnerTask, rule: StepRule, n_runs: int, *, device: str = "cpu"
) -> float:
    """Seconds of one inner step of one run, in a bucket of `n_runs`: the quickest of many steps.

    CPU time where the runs are on the CPU. On a busy machine that too is charged with what the
    neighbours do: the mean of 300 steps was seen at 14 times their median, and the quickest 17%
    below it. One torch thread, whatever the process has otherwise, and a gradient that is not
    recorded (`inner_tasks/tracing.py`), whatever was done with the task before.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two, on a machine that is busy, take ten times the CPU time
    try:
        return _quickest(copy.copy(task), rule, n_runs, device) / n_runs
    finally:
        torch.set_num_threads(threads)


def _quickest(task: InnerTask, rule: StepRule, n_runs: int, device: str) -> float:
    """Seconds of the quickest of `TIMED_STEPS` inner steps of a bucket."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    runs = BatchedRuns(task, range(n_runs), rule=rule, device=device)
    runs.advance(2)
    tries = []
    for _ in range(TIMED_STEPS):
        start = clock()
        runs.advance(1)
        tries.append(clock() - start)
    return min(tries)


def draw_specs(
    families: Iterable[str], per_family: int, steps: tuple[int, int], seed: int = 0
) -> list[TaskSpec]:
    """Specs of several tasks per family; same seed, same specs.

    Args:
        families: Names.
        per_family: Tasks of each.
        steps: Least and most; lengths are log-uniform between, to ten steps where that stays there.
        seed: Of tasks and lengths.

    Raises:
        ConfigurationError: Fewer than 2 steps, or the larger first.
    """
    if not 2 <= steps[0] <= steps[1]:
        raise ConfigurationError(
            f"steps is {steps}; two numbers of at least 2 are wanted, the smaller first."
        )
    specs = []
    for family in families:
        rng = np.random.default_rng([seed, crc32(family.encode())])
        for i in range(per_family):
            length = np.exp(rng.uniform(np.log(steps[0]), np.log(steps[1])))
            whole = min(max(int(10 * round(length / 10)), steps[0]), steps[1])
            specs.append(TaskSpec(f"{family}/{seed * 1000 + i}", whole))
    return specs


def _ready(spec: TaskSpec, config: FrontierConfig) -> Frontier | str:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return get_frontier(get_task(spec.task), spec.steps, config)
    except FrontierError as error:
        return str(error)
    finally:
        torch.set_num_threads(threads)


def _cost(name: str, cost: Callable[[InnerTask], float]) -> float:
    return cost(get_task(name))


def build_pool(
    specs: Sequence[TaskSpec],
    *,
    config: FrontierConfig | None = None,
    processes: int = 1,
    max_resolution: float = MAX_RESOLUTION,
    keep_blunt: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    cost: Callable[[InnerTask], float] | None = None,
    cost_processes: int = 1,
    steps_power: float = 0.5,
    cost_power: float = 0.0,
    family_weights: Mapping[str, float] | None = None,
) -> TaskPool:
    """A pool of those specs whose frontier is sharp, measuring frontiers that no cache holds.

    Every frontier is read no finer than its noise allows: `Frontier.steadied`, then `sharpened`.

    Args:
        specs: Candidates.
        config: How frontiers are measured.
        processes: Frontiers measured at once.
        max_resolution: Tasks with a blunter frontier (octaves) or an optimum on the edge of the
            rates are left out, and named in the log.
        keep_blunt: Keep the blunter ones too.
        progress: Called with done, total and the task's name; with "cost of ..." once all are done.
        cost: Gives `Entry.cost`; picklable, if more than one process asks it.
        cost_processes: Costs measured at once: 1 where each needs the accelerator for itself.
        steps_power: As in `TaskPool`, like the next.
        cost_power: Of the families.
        family_weights: Likewise.

    Raises:
        ConfigurationError: No task is left; the message says why. Or no process is to work.
    """
    check_processes(min(processes, cost_processes))
    config = config or FrontierConfig()
    work = partial(_ready, config=config)
    frontiers: list[Frontier | str] = []
    with closing(each(work, specs, min(processes, len(specs) or 1))) as results:
        for spec, found in zip(specs, results, strict=True):
            frontiers.append(found)
            if progress:
                progress(len(frontiers), len(specs), spec.task)
    entries, left_out = [], []
    for spec, found in zip(specs, frontiers, strict=True):
        if isinstance(found, str):
            left_out.append(f"{spec.task}: {found}")
        elif (found.resolution > max_resolution and not keep_blunt) or found.edge:
            left_out.append(
                f"{spec.task}: resolution {found.resolution:.2f} octaves, best rate "
                f"{found.best_rates[found.budgets.index(1.0)]:g} of {min(found.rates):g} to "
                f"{max(found.rates):g}"
            )
        else:
            # between two budgets even a frontier that is sharp where it is judged may be flat: a
            # loss that differs by a hair would there be an octave ahead, or behind
            read = found.steadied().sharpened(max_resolution)
            entries.append(Entry(spec, None, read))
    for line in left_out:
        logger.info("task left out: %s", line)
    if left_out and not entries:
        raise ConfigurationError(
            f"No task is left of {len(specs)}: a frontier must be sharper than {max_resolution:g} "
            f"octaves, and its best rate inside the grid ({'; '.join(left_out[:3])}"
            f"{'; ...' if len(left_out) > 3 else ''}). Draw more tasks, or longer runs."
        )
    if cost:
        jobs = [entry.spec.task for entry in entries]
        # CPU time, the quickest of many steps: neighbours that do the same hardly show in it
        costs = each(partial(_cost, cost=cost), jobs, min(cost_processes, len(jobs) or 1))
        for entry, seconds in zip(entries, costs, strict=True):
            entry.cost = seconds
            if progress:
                progress(len(specs), len(specs), f"cost of {entry.spec.task}")
    return TaskPool(
        entries, steps_power=steps_power, cost_power=cost_power, family_weights=family_weights
    )
