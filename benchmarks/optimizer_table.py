"""`lhopt bench optimizers`: every optimizer at its defaults, and with a bundled policy on top.

The held-out tasks of `lhopt bench`, the same data order for everybody and the same initial weights
but where an optimizer brings its own initialisation (AGD), each optimizer as `lhopt optimizers`
lists it: no rate is chosen. Alone it runs at a constant rate; steered, the
policy's schedule and decisions come on top of the same start.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from .. import __version__
from ..client import Tuner
from ..core.adapters import adapter_for
from ..core.errors import ConfigurationError
from ..inner_tasks.base import Batch, InnerTask
from ..inner_tasks.engine import BatchOrder, initial_params
from ..inner_tasks.module import TaskModule
from ..optimizers.catalogue import ENTRIES, Entry
from ..optimizers.local_sgd import LocalSGD, unstack_workers
from ..policy import bundled
from ..policy.artifact import Policy
from . import records
from .bootstrap import READINGS, estimate, resample, tabulate, task_means
from .frontier import BenchTask as Task
from .real import DECISIONS, evaluate
from .records import Results, evaluation_steps

#: Changes whenever a run would come out differently, so that old rows are not read.
PROTOCOL = 2
QUICK_SEEDS, FULL_SEEDS = (0,), (0, 1, 2)
#: Speeds are read up to 4, on the stronger baseline's frontier.
READING = next(reading for reading in READINGS if reading.name == "wide")
RESAMPLES = 2000
#: What the CPU time of a step is given in units of.
UNIT = "adamw"


@dataclass(frozen=True)
class Row:
    """One finished run.

    Attributes:
        optimizer: Name in the catalogue.
        policy: Name of the policy on top; empty if none.
        task: Name of the task.
        seed: Of weights and data order.
        loss: Final `outer_valid` loss; None if the run diverged.
        cpu_ms: CPU milliseconds per step of the whole loop.
        refused: Why the optimizer cannot train this task; empty if it can.
    """

    optimizer: str
    policy: str
    task: str
    seed: int
    loss: float | None
    cpu_ms: float
    refused: str = ""


class _Job:
    """One run: the model in as many copies as the optimizer has workers, data, and optimizer."""

    def __init__(self, entry: Entry, task: InnerTask, seed: int) -> None:
        self.entry, self.task = entry, task
        self.model = TaskModule(task, initial_params(task, seed))
        if entry.prepare is not None:
            torch.manual_seed(seed)
            entry.prepare(self.model)
        self.weights: dict[str, nn.Parameter] = self.model.weights
        if entry.workers > 1:
            self.weights = {
                name: nn.Parameter(p.detach().expand(entry.workers, *p.shape).clone())
                for name, p in self.model.weights.items()
            }
            self.optimizer = entry.make(nn.ParameterList(self.weights.values()))
        else:
            self.optimizer = entry.make(self.model)

    def loss(self, batch: Batch) -> Tensor:
        """What backward starts from; workers share the batch out."""
        workers = self.entry.workers
        if workers == 1:
            out: Tensor = self.model(batch)
            return out
        each = len(batch[0]) // workers
        shares = tuple(a[: each * workers].reshape(workers, each, *a.shape[1:]) for a in batch)
        losses: Tensor = vmap(self.task.loss)(self.weights, shares)
        return losses.sum()  # so that each worker's gradient is its own loss's

    def loss_now(self) -> float:
        """On `outer_valid` on the way, workers averaged."""
        with self.entry.deployed(self.optimizer), torch.no_grad():
            weights: Mapping[str, Tensor] = self.weights
            if self.entry.workers > 1:
                weights = {name: p.mean(0) for name, p in self.weights.items()}
            return evaluate(self.task, weights, "outer_valid")

    def final_loss(self) -> float:
        """On `outer_valid`, with the weights that are meant to be used."""
        if isinstance(self.optimizer, LocalSGD):
            self.optimizer.finalize()
        with self.entry.deployed(self.optimizer), torch.no_grad():
            weights = self.weights
            if self.entry.workers > 1:
                return evaluate(self.task, unstack_workers(weights), "outer_valid")
            return evaluate(self.task, weights, "outer_valid")


def policy_for(entry: Entry) -> Policy:
    """The policy trained for this optimizer, else the default one, suited or not."""
    if not suited(entry):  # known to do harm; the table shows how much
        return bundled.bundled(bundled.DEFAULT)
    return bundled.for_optimizer(adapter_for(entry.make(entry.model())).name)


def suited(entry: Entry) -> bool:
    """Whether a Tuner takes a policy for this optimizer unasked."""
    return adapter_for(entry.make(entry.model())).name not in bundled.UNSUITED


def train(entry: Entry, task: InnerTask, steps: int, seed: int, policy: Policy | None) -> Row:
    """One run of one optimizer on one task; what the optimizer refuses is in the row."""
    try:
        return _train(entry, task, steps, seed, policy)
    except ConfigurationError as error:
        name = policy.name if policy else ""
        return Row(entry.name, name, task.name, seed, None, 0.0, str(error))


def _train(entry: Entry, task: InnerTask, steps: int, seed: int, policy: Policy | None) -> Row:
    name = policy.name if policy else ""
    job = _Job(entry, task, seed)
    arrays = task.arrays("train")
    rows = torch.from_numpy(BatchOrder(seed, len(arrays[0]), task.batch_size).take(steps))
    optimizer = job.optimizer
    tuner = Tuner(optimizer, steps, decisions=DECISIONS, policy=policy) if policy else None
    finite, taken, seconds, best = True, 0, 0.0, math.inf
    scored = task.selection == "best"
    stops = sorted({*evaluation_steps(steps), steps}) if scored else [steps]
    for stop in stops:
        began = time.process_time()
        while finite and taken < stop:
            index = rows[taken]
            taken += 1
            batch = tuple(array.index_select(0, index) for array in arrays)
            optimizer.zero_grad()
            loss = job.loss(batch)
            finite = math.isfinite(loss.item())
            if finite:
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if tuner:
                    tuner.report(loss / entry.workers)
        if tuner and (stop == steps or not finite):
            tuner.close()
        seconds += time.process_time() - began
        if not finite:
            break
        if scored and stop < steps:
            best = min(best, job.loss_now())
    final = job.final_loss() if finite else math.inf
    return Row(
        entry.name,
        name,
        task.name,
        seed,
        min(final, best) if math.isfinite(final) else None,
        1e3 * seconds / taken,
    )


class OptimizerBench:
    """Trains what is not in the results yet.

    Args:
        tasks: With their frontiers.
        results: Where finished runs go.
        seeds: Runs per task.
        optimizers: Which.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        results: Results,
        *,
        seeds: Sequence[int] = FULL_SEEDS,
        optimizers: Sequence[Entry] = ENTRIES,
    ) -> None:
        self.tasks, self.results, self.seeds = tasks, results, tuple(seeds)
        self.optimizers = optimizers

    @property
    def total(self) -> int:
        """Runs altogether."""
        return 2 * len(self.tasks) * len(self.seeds) * len(self.optimizers)

    def run(self) -> Iterator[Row]:
        """Every run, finished ones read back."""
        for task in self.tasks:
            for entry in self.optimizers:
                policy = policy_for(entry)
                for seed in self.seeds:
                    for steered in (None, policy):
                        yield self._one(entry, task, seed, steered)

    def _one(self, entry: Entry, task: Task, seed: int, policy: Policy | None) -> Row:
        stamp = {
            "protocol": PROTOCOL,
            "version": __version__,
            "optimizer": [entry.name, entry.title],
            "task": [task.spec.task, task.spec.steps, getattr(task.task, "config", None)],
            "seed": seed,
            "policy": policy.digest if policy else None,
        }
        text = json.dumps(stamp, sort_keys=True, default=str)
        name = f"optimizer {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        held = self.results.get(name)
        if held is None:
            row = train(entry, task.task, task.spec.steps, seed, policy)
            if not row.refused:  # quick to find again, and its reason may be mended meanwhile
                self.results.put(name, asdict(row))
            return row
        return Row(**held)


@dataclass(frozen=True)
class Line:
    """One optimizer's line of the table; h* as in `report`.

    Attributes:
        entry: Which optimizer.
        alone: h* at its defaults, and the ends of its 95% interval.
        steered: The same with the policy on top.
        ratio: Geometric mean of steered over alone, run by run.
        better: Share of tasks on which the steered runs end lower.
        policy: Whose policy.
        diverged: Runs that diverged alone and steered.
        runs: Runs of each kind.
        cpu: CPU time of a step alone and steered, in units of plain AdamW's.
        refused: Tasks that it cannot train, and why.
    """

    entry: Entry
    alone: tuple[float, float, float]
    steered: tuple[float, float, float]
    ratio: float
    better: float
    policy: str
    diverged: tuple[int, int]
    runs: int
    cpu: tuple[float, float]
    refused: Mapping[str, str]


def summarise(rows: Sequence[Row], tasks: Sequence[Task]) -> list[Line]:
    """One line per optimizer, in the catalogue's order."""
    # refused by one run, by both kinds: alone and steered are compared on the same tasks
    unfit = {(row.optimizer, row.task) for row in rows if row.refused}
    trained = [row for row in rows if (row.optimizer, row.task) not in unfit]
    entries = [e for e in ENTRIES if any(row.optimizer == e.name for row in trained)]
    names = [f"{entry.name} {kind}" for entry in entries for kind in ("alone", "steered")]
    pairs = [(f"{entry.name} steered", f"{entry.name} alone") for entry in entries]
    tables = []
    for task in tasks:
        own = [_run(row, task) for row in trained if row.task == task.task.name]
        if own:
            tables.append(tabulate(own, task, names))
    if not tables:
        return []
    draws = resample(tables, [READING], pairs, resamples=RESAMPLES)[READING.name]
    means = [task_means(table, READING, pairs) for table in tables]
    speeds, gaps = (np.stack(part) for part in zip(*means, strict=True))

    def found(i: int) -> tuple[float, float, float]:
        estimated = estimate(speeds[:, i], draws.arms[:, i])
        assert estimated is not None, "an optimizer with rows has speeds"
        return estimated.value, estimated.low, estimated.high

    lines = []
    for i, entry in enumerate(entries):
        own_rows = [row for row in trained if row.optimizer == entry.name]
        losses: dict[tuple[str, bool], list[float]] = {}
        for row in own_rows:
            loss = math.inf if row.loss is None else row.loss
            losses.setdefault((row.task, bool(row.policy)), []).append(loss)
        ends_lower = [
            _mean_log(losses[task, True]) < _mean_log(losses[task, False])
            for task in dict.fromkeys(row.task for row in own_rows)
        ]
        lines.append(
            Line(
                entry=entry,
                alone=found(2 * i),
                steered=found(2 * i + 1),
                ratio=float(np.exp(np.nanmean(gaps[:, i]))),
                better=float(np.mean(ends_lower)),
                policy=next(row.policy for row in own_rows if row.policy),
                diverged=(
                    sum(row.loss is None for row in own_rows if not row.policy),
                    sum(row.loss is None for row in own_rows if row.policy),
                ),
                runs=sum(not row.policy for row in own_rows),
                cpu=(
                    _cpu(trained, entry.name, steered=False),
                    _cpu(trained, entry.name, steered=True),
                ),
                refused={
                    row.task: row.refused
                    for row in rows
                    if row.refused and row.optimizer == entry.name
                },
            )
        )
    return lines


def _run(row: Row, task: Task) -> records.Row:
    """As the bootstrap reads it; nothing but the final loss counts."""
    return records.Row(
        arm=f"{row.optimizer} {'steered' if row.policy else 'alone'}",
        tier=task.tier,
        task=task.spec.task,
        steps=task.spec.steps,
        seed=row.seed,
        offset=None,
        rate=None,
        loss=row.loss,
        test_loss=None,
        curve=(),
        cpu_ms=None,
        plain_ms=None,
        stamp="",
    )


def _mean_log(losses: Sequence[float]) -> float:
    return float(np.log(np.clip(losses, 1e-12, 1e12)).mean())


def _cpu(rows: Sequence[Row], optimizer: str, *, steered: bool) -> float:
    """CPU time over that of `UNIT` alone, on the runs that both have."""

    def times(optimizer: str, steered: bool) -> dict[tuple[str, int], float]:
        return {
            (row.task, row.seed): row.cpu_ms
            for row in rows
            if row.optimizer == optimizer and bool(row.policy) == steered
        }

    own, unit = times(optimizer, steered), times(UNIT, False)
    both = own.keys() & unit.keys()
    return sum(own[run] for run in both) / sum(unit[run] for run in both) if both else math.nan


def _speed(value: float) -> str:
    """h*, or the end of what a frontier can tell on which it lies."""
    low, high = READING.bounds
    if value <= low * (1 + 1e-9):
        return f"< {low:.2f}"
    return f"> {high:.2f}" if value >= high * (1 - 1e-9) else f"{value:.2f}"


def _interval(found: tuple[float, float, float], runs: int) -> str:
    """The interval, if there is more than one run to make it of."""
    return f"{_speed(found[1])} - {_speed(found[2])}" if runs > 1 else "-"


def table(lines: Sequence[Line]) -> str:
    """The table as text."""
    header = (
        "optimizer", "alone: h*", "95%", "with policy: h*", "95%", "ratio", "ends lower",
        "diverged", "CPU/step", "policy",
    )  # fmt: skip
    cells = [header]
    for line in lines:
        policy = line.policy if suited(line.entry) else f"{line.policy} (unasked)"
        cells.append(
            (
                line.entry.name + ("+" if line.refused else ""),
                _speed(line.alone[0]),
                _interval(line.alone, line.runs),
                _speed(line.steered[0]),
                _interval(line.steered, line.runs),
                f"x{line.ratio:.2f}",
                f"{line.better:.0%} of tasks",
                f"{line.diverged[0]}, {line.diverged[1]} of {line.runs}",
                f"x{line.cpu[0]:.1f}, x{line.cpu[1]:.1f}",
                policy,
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rows = [
        "  ".join(
            cell.ljust(w) if i in (0, 9) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


def run_bench(
    tasks: Sequence[Task],
    output: Path,
    *,
    seeds: Sequence[int] = FULL_SEEDS,
    optimizers: Sequence[Entry] = ENTRIES,
) -> list[Line]:
    """Run what is not finished yet, and print the table.

    Args:
        tasks: Held-out tasks with their frontiers.
        output: Folder of the raw rows.
        seeds: Runs per task.
        optimizers: Which.
    """
    from tqdm import tqdm

    torch.set_num_threads(1)
    began = time.monotonic()
    results = Results(output / "optimizers.jsonl")
    bench = OptimizerBench(tasks, results, seeds=seeds, optimizers=optimizers)
    rows = []
    with tqdm(total=bench.total, unit="run", smoothing=0.05) as bar:
        for row in bench.run():
            rows.append(row)
            bar.update()
            bar.set_postfix_str(f"{row.task} {row.optimizer}", refresh=False)
    lines = summarise(rows, tasks)
    print(f"\n{table(lines)}\n\n{footnote(rows, len(tasks), len(seeds))}")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(rows)} runs, {minutes:.1f} minutes; rows in {results.path}")
    return lines


def footnote(rows: Sequence[Row], n_tasks: int, n_seeds: int) -> str:
    """What the figures mean, and what is not measured."""
    out = [
        "h*: budget, in units of ours, at which the tuned AdamW with a cosine (24 to 72 trials) "
        "reaches our final loss, read within 0.25 to 4;",
        f"geometric mean over {n_tasks} held-out tasks, {n_seeds} run{'s' * (n_seeds > 1)} each. "
        "Nothing is tuned: alone is the optimizer's own default at a constant rate,",
        "with policy is the same start with the bundled policy's schedule and decisions on top. "
        "diverged: alone, steered. CPU/step: of the",
        f"whole loop alone and steered, in units of {UNIT} alone.",
    ]
    own = [e.name for e in ENTRIES if e.prepare and any(r.optimizer == e.name for r in rows)]
    if own:
        out.append(f"All start from the same weights, but {', '.join(own)} from its own.")
    refused: dict[tuple[str, str], list[str]] = {}
    for row in rows:  # of an optimizer that is refused everywhere there is no line
        if row.refused:
            tasks = refused.setdefault((row.optimizer, row.refused), [])
            if row.task not in tasks:
                tasks.append(row.task)
    for (name, reason), tasks in refused.items():
        out.append(f"+ {name} is not measured on {', '.join(tasks)}: {reason}")
    return "\n".join(out)
