"""Frontiers of the held-out tasks: measured once, kept as files, and refused when they do not fit.

A file says everything that its numbers depend on. One that was made for another configuration,
other data or another protocol is not read; the frontier is then measured anew into the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import ConfigurationError, FrontierError
from ..core.types import FloatArray
from ..env.frontier import cache_folder
from ..env.pool import TaskSpec
from ..inner_tasks.base import SPLITS, InnerTask
from ..inner_tasks.registry import get_task
from .finished_runs import Run, train
from .frontier import HORIZONS, PROTOCOL_HORIZONS, BenchFrontier, BenchTask, Strength, Tier
from .tuning import Protocol, Setting, Tuned, choose, tune, with_seeds

#: Changes whenever what is measured does, so that older files are not read.
PROTOCOL = 4
#: Frontiers that ship with the package.
SHIPPED = Path(__file__).parent / "frontiers"

#: Of a trial: losses on the tuning seeds, and of a finalist those on the final seeds.
_LOSSES = ("losses", "final_losses")

Report = Callable[[str], None]


def protocol_of(tier: Tier) -> Protocol:
    """Ten seeds and nine horizons; the real tiers have five seeds and the protocol's seven."""
    if tier in ("real", "real-long"):
        return with_seeds(Protocol(), 5, PROTOCOL_HORIZONS)
    return with_seeds(Protocol(), 10, HORIZONS)


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


def describe(task: InnerTask, steps: int, protocol: Protocol) -> dict[str, Any]:
    """Everything that a task's frontiers depend on, as a JSON object."""
    described = {
        "protocol": PROTOCOL,
        "task": task.name,
        "config": getattr(task, "config", None),
        "batch_size": task.batch_size,
        "selection": task.selection,
        "data_sha256": data_digest(task),
        "steps": steps,
        "baseline": asdict(protocol),
    }
    row: dict[str, Any] = json.loads(json.dumps(described, default=str))
    return row


def file_name(spec: TaskSpec) -> str:
    """Name of a task's file among the shipped frontiers."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', spec.task)}-{spec.steps}.json"


@dataclass(frozen=True)
class Pair:
    """Both frontiers of one task."""

    k24: BenchFrontier
    five_by_seven: BenchFrontier


def measure(
    task: InnerTask,
    steps: int,
    protocol: Protocol,
    *,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> Pair:
    """Tune both baselines, then train both to the end at every horizon on the evaluation seeds.

    Args:
        task: What is trained.
        steps: Inner steps of horizon 1.
        protocol: How.
        progress: Called with the number of inner steps that were done since the last call.
        device: Where the runs live.

    Raises:
        FrontierError: Every trial diverged.
    """

    def attempt(settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
        runs = [Run(s, seed, steps) for s in settings for seed in seeds]
        losses = train(task, runs, progress=progress, device=device)[:, 0]
        return losses.reshape(len(settings), len(seeds))

    return frontiers_of(
        task, steps, protocol, tune(attempt, protocol), choose(attempt, protocol), progress, device
    )


def frontiers_of(
    task: InnerTask,
    steps: int,
    protocol: Protocol,
    k24: Tuned,
    five_by_seven: Tuned,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> Pair:
    """The frontiers of two settings that are tuned already, trained side by side."""
    lengths = [max(2, round(h * steps)) for h in protocol.horizons]
    runs = [
        Run(tuned.setting, seed, length)
        for tuned in (k24, five_by_seven)
        for length in lengths
        for seed in protocol.seeds
    ]
    losses = train(task, runs, progress=progress, device=device)
    table = losses.reshape(2, len(lengths), len(protocol.seeds), 2)

    def frontier(strength: Strength, tuned: Tuned, losses: FloatArray) -> BenchFrontier:
        trials = tuple(
            {"setting": setting.to_json(), "losses": row.tolist()}
            | ({} if np.isnan(final).any() else {"final_losses": final.tolist()})
            for setting, row, final in zip(tuned.trials, tuned.losses, tuned.finals, strict=True)
        )
        return BenchFrontier(
            task=task.name,
            steps=steps,
            strength=strength,
            horizons=protocol.horizons,
            seeds=protocol.seeds,
            runs=losses[..., 0],
            test_runs=losses[..., 1],
            setting=tuned.setting.to_json(),
            trials=trials,
            edge=tuned.edge,
            rounds=tuned.rounds,
        )

    return Pair(frontier("k24", k24, table[0]), frontier("5x7", five_by_seven, table[1]))


def to_json(frontier: BenchFrontier) -> dict[str, Any]:
    """As a JSON object; null where a run diverged."""
    row = {**frontier.__dict__, "setting": dict(frontier.setting)}
    row["runs"], row["test_runs"] = _nulls(frontier.runs), _nulls(frontier.test_runs)
    row["trials"] = [
        {k: _nulls(np.asarray(v)) if k in _LOSSES else v for k, v in trial.items()}
        for trial in frontier.trials
    ]
    return row


def from_json(row: dict[str, Any]) -> BenchFrontier:
    """The frontier that `to_json` wrote.

    Raises:
        FrontierError: Something is missing or misshapen.
    """
    try:
        return BenchFrontier(
            task=str(row["task"]),
            steps=int(row["steps"]),
            strength=row["strength"],
            horizons=tuple(row["horizons"]),
            seeds=tuple(row["seeds"]),
            runs=_numbers(row["runs"]),
            test_runs=_numbers(row["test_runs"]),
            setting=row["setting"],
            trials=tuple(
                {k: _numbers(v).tolist() if k in _LOSSES else v for k, v in trial.items()}
                for trial in row["trials"]
            ),
            edge=bool(row["edge"]),
            rounds=int(row["rounds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrontierError(
            f"A stored frontier cannot be read ({error!r}); delete it, it is made again."
        ) from error


def _nulls(values: FloatArray) -> Any:
    table = values.astype(object)
    table[~np.isfinite(values)] = None
    return table.tolist()


def _numbers(values: Any) -> FloatArray:
    """Numbers with null read as infinite."""
    table = np.array(values, dtype=object)
    table[np.asarray([value is None for value in table.flat]).reshape(table.shape)] = np.inf
    return table.astype(np.float64)


def load(path: Path, wanted: dict[str, Any]) -> Pair | None:
    """What a file holds; None where there is none, or one of another task or protocol.

    Raises:
        FrontierError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        row = json.loads(path.read_text())
        if row["measured"] != wanted:
            return None
        return Pair(from_json(row["k24"]), from_json(row["five_by_seven"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FrontierError(f"{path} cannot be read ({error!r}); delete it.") from error


def save(path: Path, measured: dict[str, Any], pair: Pair, device: str = "cpu") -> None:
    """Write both frontiers and where they come from."""
    where = torch.device(device)
    on = "" if where.type == "cpu" else f" --device {where.type}"
    row = {
        "made_by": f"lhopt bench frontiers --fresh --task {measured['task']}{on}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "measured": measured,
        "k24": to_json(pair.k24),
        "five_by_seven": to_json(pair.five_by_seven),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(_compact(json.dumps(row, indent=1, allow_nan=False)) + "\n")
    temporary.replace(path)


def _compact(text: str) -> str:
    """Lists of plain values on one line each: a file that people can read and compare."""

    def join(found: re.Match[str]) -> str:
        return "[" + ", ".join(part.strip() for part in found[1].split(",")) + "]"

    return re.sub(r"\[\s*([^\[\]{}\"]*?)\s*\]", join, text)


def bench_task(
    spec: TaskSpec,
    tier: Tier,
    *,
    protocol: Protocol | None = None,
    fresh: bool = False,
    ship: bool = False,
    shipped: Path = SHIPPED,
    report: Report | None = None,
    progress: Callable[[int], None] | None = None,
    device: str = "cpu",
) -> BenchTask:
    """A task with its frontiers: shipped, else from the cache, else measured now.

    Args:
        spec: Which task and length.
        tier: Decides seeds and horizons.
        protocol: Instead of the tier's.
        fresh: Measure even what is there, and write it to `shipped`.
        ship: Write to `shipped` what is measured or was found in the cache alone.
        shipped: Folder of the shipped frontiers.
        report: Called with a line before a measurement, which takes minutes.
        progress: Called with the number of inner steps done since the last call.
        device: Where a measurement's runs live; what is there already is taken from any device.
    """
    protocol = protocol or protocol_of(tier)
    task = get_task(spec.task)
    wanted = describe(task, spec.steps, protocol)
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]
    ours, cached = shipped / file_name(spec), cache_folder() / "bench" / f"{key}.json"
    found = None if fresh else load(ours, wanted)
    if found is not None:
        return BenchTask(spec, task, tier, found.k24, found.five_by_seven, task.selection)
    found = None if fresh else load(cached, wanted)
    if found is None:
        if report:
            why = "" if fresh or not ours.exists() else _difference(ours, wanted)
            report(f"measuring the baselines of {spec.task}, {spec.steps} steps{why}")
        found = measure(task, spec.steps, protocol, progress=progress, device=device)
        save(cached, wanted, found, device)
    if fresh or ship:
        ours.parent.mkdir(parents=True, exist_ok=True)
        # as it lies in the cache, which knows where it was measured
        shutil.copyfile(cached, ours)
    return BenchTask(spec, task, tier, found.k24, found.five_by_seven, task.selection)


def _difference(path: Path, wanted: dict[str, Any]) -> str:
    measured = json.loads(path.read_text()).get("measured") or {}
    keys = [name for name in wanted if measured.get(name) != wanted[name]]
    return f": {path.name} was made with another {', '.join(keys) or 'layout'}"


def tasks_of(tier: str) -> tuple[tuple[TaskSpec, Tier], ...]:
    """The tasks of a tier, each with the tier that its frontier belongs to.

    Args:
        tier: "small", "long", "real", "real-long", "smoke" (three of the small ones) or "all".

    Raises:
        ConfigurationError: No such tier.
    """
    from . import tasks

    tiers: dict[Tier, tuple[TaskSpec, ...]] = {
        "small": tasks.HELD_OUT,
        "long": tasks.LONG,
        "real": tasks.REAL,
        "real-long": tasks.REAL_LONG,
    }
    if tier == "all":
        return tuple((spec, name) for name, specs in tiers.items() for spec in specs)
    if tier == "smoke":
        smoke = ("digits-mlp", "digits-cnn", "ill-conditioned-regression")
        return tuple((spec, "small") for spec in tasks.HELD_OUT if spec.family in smoke)
    if tier not in tiers:
        raise ConfigurationError(
            f"tier is {tier!r}; it must be one of all, smoke, {', '.join(tiers)}."
        )
    return tuple((spec, name) for name, specs in tiers.items() if name == tier for spec in specs)


def lines(task: BenchTask) -> str:
    """What `lhopt bench frontiers` prints about a task: both baselines and their losses."""
    out = [f"{task.spec.task}, {task.spec.steps} steps, scored by its {task.selection} loss"]
    for name, frontier in (("K=24", task.k24), ("5x7", task.five_by_seven)):
        edge = ", ON AN EDGE" if frontier.edge else ""
        losses = "  ".join(
            f"{h:g}T {loss:.4g}"
            for h, loss in zip(frontier.horizons, frontier.losses(), strict=True)
        )
        out.append(
            f"  {name}: {Setting(**frontier.setting)}; {len(frontier.trials)} trials in "
            f"{frontier.rounds} rounds{edge}\n    {losses}"
        )
    return "\n".join(out)
