"""The baseline that speeds are read against: AdamW with a tuned, finished cosine at every budget.

The frontier of `env/frontier.py`, with one difference: a rate is chosen on the tuning seeds, and
the loss at that rate is measured on other seeds. A loss that was picked as the smallest of thirteen
noisy means is too good; one that is measured again is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import FrontierError
from ..core.types import FloatArray
from ..env.frontier import (
    PROTOCOL,
    Frontier,
    FrontierConfig,
    cache_folder,
    cosine,
    measure_frontier,
)
from ..env.pool import Entry, TaskSpec
from ..inner_tasks.base import SPLITS, InnerTask
from ..inner_tasks.engine import BatchedRuns, Settings
from ..inner_tasks.registry import get_task

#: Frontiers that ship with the package.
SHIPPED = Path(__file__).parent / "frontiers"
#: The words under a table that say what the baseline is.
DESCRIPTION = "AdamW, weight decay 0.01, 5% warm-up, cosine to 0 over the run's own budget"


@dataclass(frozen=True)
class BaselineConfig:
    """How the baseline is tuned and measured.

    Attributes:
        budgets: In units of the run's own length; ascending, 1 among them.
        rates: Learning rates tried at every budget.
        tuning_seeds: Runs per rate and budget that choose the rate, by their mean.
        seeds: Runs at the chosen rate that give the frontier's losses.
    """

    budgets: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    rates: tuple[float, ...] = tuple(float(10.0 ** (k / 3.0)) for k in range(-12, 1))
    tuning_seeds: tuple[int, ...] = (100, 101)
    seeds: tuple[int, ...] = tuple(range(200, 208))


@dataclass(frozen=True)
class BenchFrontier(Frontier):
    """A frontier whose losses were measured on other seeds than its rates were chosen on.

    `grid` holds the tuning runs; `noise` is the standard error of log loss over the runs at
    budget 1 behind `losses`.

    Attributes:
        runs: `(budgets, seeds)` final loss of every run behind `losses`.
    """

    runs: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    @property
    def best_rate(self) -> float:
        """The rate chosen at budget 1."""
        return self.best_rates[self.budgets.index(1.0)]

    def resampled(self, rng: np.random.Generator) -> Frontier:
        """The frontier of as many runs, drawn with replacement from its own: for a bootstrap."""
        table = np.asarray(self.runs)
        if not table.size:
            return self
        picked = rng.integers(0, table.shape[1], table.shape)
        losses = np.take_along_axis(table, picked, axis=1).mean(axis=1)
        return replace(self, losses=tuple(losses.tolist()))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> BenchFrontier:
        """The frontier that `to_json` wrote."""
        plain = Frontier.from_json(row)
        try:
            runs = tuple(tuple(float(v) for v in line) for line in row["runs"])
        except (KeyError, TypeError, ValueError) as error:
            raise FrontierError(
                f"A stored frontier has no runs ({error!r}); delete it, it is made again."
            ) from error
        return cls(**plain.__dict__, runs=runs)


def measure_baseline(
    task: InnerTask, steps: int, config: BaselineConfig | None = None
) -> BenchFrontier:
    """Tune the baseline at every budget, then train it at the chosen rates on other seeds.

    Raises:
        FrontierError: Every rate diverged at some budget, or a chosen one did on the other seeds.
    """
    config = config or BaselineConfig()
    tuned = measure_frontier(
        task, steps, FrontierConfig(config.budgets, config.rates, config.tuning_seeds)
    )
    lengths = [max(2, round(b * steps)) for b in config.budgets]
    table = train_cosine(task, lengths, tuned.best_rates, config.seeds)
    if not np.isfinite(table).all():
        raise FrontierError(
            f"The baseline of {task.name!r} diverged at the rates chosen for it "
            f"({tuned.best_rates}); the task is too unstable to measure a speed on."
        )
    at_one = np.log(np.maximum(table[config.budgets.index(1.0)], 1e-12))
    n = len(at_one)
    own = {
        **tuned.__dict__,
        "losses": tuple(table.mean(axis=1).tolist()),
        "noise": float(at_one.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
    }
    return BenchFrontier(**own, runs=tuple(tuple(row) for row in table.tolist()))


def train_cosine(
    task: InnerTask, lengths: Sequence[int], rates: Sequence[float], seeds: Sequence[int]
) -> FloatArray:
    """Final `outer_valid` losses `(lengths, seeds)` of the baseline, one rate per length."""
    rows = [
        cosine_runs(task, length, peak, seeds).evaluate(averaged=False)
        for length, peak in zip(lengths, rates, strict=True)
    ]
    return np.stack(rows)


def cosine_runs(task: InnerTask, steps: int, peak: float, seeds: Sequence[int]) -> BatchedRuns:
    """Finished runs of AdamW with warm-up and cosine to 0, one per seed."""
    runs = BatchedRuns(task, list(seeds), Settings(learning_rate=peak))
    rate, total = np.full(len(seeds), peak), np.full(len(seeds), steps)
    for start in range(0, steps, 256):
        stop = min(start + 256, steps)
        runs.advance(stop - start, learning_rates=cosine(rate, total, start, stop))
    return runs


def data_digest(task: InnerTask) -> str:
    """SHA-256 over the bytes of all four splits.

    A name does not fix the data: the text of the character models is the running Python's library.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        for tensor in task.arrays(split):
            array = tensor.contiguous().numpy()
            digest.update(f"{split} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def describe(task: InnerTask, steps: int, config: BaselineConfig) -> dict[str, Any]:
    """Everything that a baseline's frontier depends on, as a JSON object."""
    described = {
        "protocol": PROTOCOL,
        "task": task.name,
        "config": getattr(task, "config", None),
        "batch_size": task.batch_size,
        "data_sha256": data_digest(task),
        "steps": steps,
        "baseline": asdict(config),
    }
    row: dict[str, Any] = json.loads(json.dumps(described, default=str))
    return row


def key(described: dict[str, Any]) -> str:
    """A name for what `describe` says."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]


def file_name(spec: TaskSpec) -> str:
    """Name of a task's file among the shipped frontiers."""
    return f"{spec.task.replace('/', '-')}-{spec.steps}.json"


def load(path: Path, wanted: dict[str, Any]) -> BenchFrontier | None:
    """The frontier in a file; None where there is none, or one of another task or protocol."""
    if not path.exists():
        return None
    try:
        row = json.loads(path.read_text())
        if row["measured"] != wanted:
            return None
        return BenchFrontier.from_json(row["frontier"])
    except (ValueError, KeyError, TypeError) as error:
        raise FrontierError(f"{path} cannot be read ({error!r}); delete it.") from error


def save(path: Path, described: dict[str, Any], frontier: BenchFrontier) -> None:
    """Write a frontier and where it comes from."""
    row = {
        "made_by": f"lhopt bench frontiers --fresh --task {described['task']}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "measured": described,
        "frontier": frontier.to_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(row, indent=1) + "\n")
    temporary.replace(path)


def entries(
    specs: Iterable[TaskSpec],
    config: BaselineConfig | None = None,
    *,
    fresh: bool = False,
    shipped: Path = SHIPPED,
    report: Callable[[str], None] | None = None,
) -> list[Entry]:
    """Tasks with their frontiers: shipped, else from the cache, else measured now.

    Args:
        specs: Which tasks.
        config: The baseline's protocol.
        fresh: Measure even what is there, and write it to `shipped`.
        shipped: Folder of the shipped frontiers.
        report: Called with a line before each measurement, which takes up to a minute.
    """
    config = config or BaselineConfig()
    out = []
    for spec in specs:
        task = get_task(spec.task)
        described = describe(task, spec.steps, config)
        cached = cache_folder() / "bench" / f"{key(described)}.json"
        ours = shipped / file_name(spec)
        found = None if fresh else load(ours, described) or load(cached, described)
        if found is None:
            if report:
                n = len(config.rates) * len(config.tuning_seeds) + len(config.seeds)
                report(
                    f"measuring the baseline of {spec.task}: {n} runs at each of "
                    f"{len(config.budgets)} budgets"
                )
            found = measure_baseline(task, spec.steps, config)
            save(ours if fresh else cached, described, found)
        out.append(Entry(spec, task, found))
    return out
