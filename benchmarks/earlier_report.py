"""From raw rows to the table: speeds, intervals, harm, verdicts.

A speed is h*: the budget, in units of ours, at which the tuned baseline's frontier reaches our
final loss. 2.0 is "the tuned baseline needs twice the steps"; 0.5 is "half of them do".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.types import FloatArray
from ..env.frontier import SPEED_BOUNDS, Frontier
from .arms import ARMS, Arm, Row
from .baseline import DESCRIPTION, BaselineConfig, BenchFrontier

__all__ = [
    "Summary",
    "by_task",
    "footnote",
    "geometric_mean",
    "intervals",
    "summarise",
    "table",
    "verdicts",
]

RESAMPLES = 2000
#: A run slower than this has been harmed.
HARM = 0.7
#: The arm that everybody would have without us.
RIVAL = "adamw-cosine"
#: The baseline's own runs on the arms' seeds.
TUNED = "adamw-tuned"


@dataclass(frozen=True)
class Bar:
    """What an arm must reach.

    Attributes:
        arm: Its name.
        speed: Geometric-mean h*.
        beaten: Share of tasks on which it must beat `RIVAL`.
    """

    arm: str
    speed: float
    beaten: float = 0.9


BARS: tuple[Bar, ...] = (Bar("adamw-policy", 1.0), Bar("steerable-policy", 1.3))


@dataclass(frozen=True)
class Summary:
    """One line of the table.

    Attributes:
        arm: Which arm.
        speed: Geometric mean of h* over tasks of the geometric mean over runs.
        low: Lower end of the 95% interval.
        high: Its upper end.
        by_task: Geometric-mean h* of each task.
        harm: Share of runs with h* < 0.7.
        diverged: Runs whose loss is not finite.
        clipped: Runs whose h* lies on an end of what can be read.
        runs: Runs in all.
        paired: Geometric mean of h* over that of the tuned baseline's run with the same seed:
            free of what makes a seed lucky for both; nan where those runs are missing.
        beaten: Share of tasks with a lower mean log loss than `RIVAL`; nan for the rival itself.
        cpu: CPU time per step in units of plain AdamW's; None where no real loop ran.
    """

    arm: Arm
    speed: float
    low: float
    high: float
    by_task: Mapping[str, float]
    harm: float
    diverged: int
    clipped: int
    runs: int
    paired: float
    beaten: float
    cpu: float | None

    @property
    def worst(self) -> tuple[str, float]:
        """The slowest task and its speed."""
        name = min(self.by_task, key=lambda task: self.by_task[task])
        return name, self.by_task[name]


def losses(rows: Sequence[Row]) -> dict[str, dict[str, FloatArray]]:
    """Final losses by arm and task; infinite where a run diverged."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row.arm][row.task].append(math.inf if row.loss is None else row.loss)
    return {
        arm: {task: np.array(values) for task, values in tasks.items()}
        for arm, tasks in found.items()
    }


def geometric_mean(log2_speeds: Sequence[FloatArray]) -> float:
    """Geometric mean over tasks of that over runs; every task weighs the same."""
    return float(2.0 ** np.mean([speeds.mean() for speeds in log2_speeds]))


def intervals(
    by_arm: Mapping[str, Mapping[str, FloatArray]],
    frontiers: Mapping[str, Frontier],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95% intervals of the geometric mean by arm, from a hierarchical bootstrap.

    Tasks are drawn with replacement, then each task's runs; the frontier is drawn again too, from
    the runs it was measured with, since a lucky baseline is as misleading as a lucky arm. All arms
    share the drawn tasks and frontiers.

    Args:
        by_arm: Losses by arm and task; every arm has every task.
        frontiers: By task.
        resamples: How often.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    tasks = list(frontiers)
    means = {arm: np.empty(resamples) for arm in by_arm}
    for b in range(resamples):
        total = dict.fromkeys(by_arm, 0.0)
        for i in rng.integers(0, len(tasks), len(tasks)):
            frontier = frontiers[tasks[i]]
            if isinstance(frontier, BenchFrontier):
                frontier = frontier.resampled(rng)
            drawn = []
            for runs in by_arm.values():
                values = runs[tasks[i]]
                drawn.append(values[rng.integers(0, len(values), len(values))])
            # one look-up for all arms: the interpolation's fixed cost is the bootstrap's
            speeds = frontier.log2_speed(np.concatenate(drawn))
            ends = np.cumsum([len(d) for d in drawn])[:-1]
            for arm, part in zip(by_arm, np.split(speeds, ends), strict=True):
                total[arm] += float(part.mean())
        for arm, value in total.items():
            means[arm][b] = 2.0 ** (value / len(tasks))
    low, high = 2.5, 97.5
    return {
        arm: (float(np.percentile(v, low)), float(np.percentile(v, high)))
        for arm, v in means.items()
    }


def summarise(
    rows: Sequence[Row], frontiers: Mapping[str, Frontier], *, resamples: int = RESAMPLES
) -> list[Summary]:
    """One summary per arm that has rows, in the order of `ARMS`."""
    by_arm = losses(rows)
    ends = intervals(by_arm, frontiers, resamples=resamples)
    out = []
    for arm in ARMS:
        if arm.name not in by_arm:
            continue
        runs = by_arm[arm.name]
        speeds = {task: frontiers[task].log2_speed(values) for task, values in runs.items()}
        every = np.concatenate(list(speeds.values()))
        own = [row for row in rows if row.arm == arm.name]
        out.append(
            Summary(
                arm=arm,
                speed=geometric_mean(list(speeds.values())),
                low=ends[arm.name][0],
                high=ends[arm.name][1],
                by_task={task: float(2.0 ** values.mean()) for task, values in speeds.items()},
                harm=float((2.0**every < HARM).mean()),
                diverged=sum(row.loss is None for row in own),
                clipped=int(np.isin(every, SPEED_BOUNDS).sum()),
                runs=len(own),
                paired=paired(own, rows, frontiers),
                beaten=beaten(runs, by_arm.get(RIVAL, {})) if arm.name != RIVAL else math.nan,
                cpu=_cpu(own),
            )
        )
    return out


def paired(ours: Sequence[Row], rows: Sequence[Row], frontiers: Mapping[str, Frontier]) -> float:
    """Geometric mean of the ratio of h* to the tuned baseline's on the same task and seed."""

    def log2_speed(row: Row) -> float:
        loss = math.inf if row.loss is None else row.loss
        return float(frontiers[row.task].log2_speed(loss))

    tuned = {(row.task, row.seed): log2_speed(row) for row in rows if row.arm == TUNED}
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in ours:
        if (row.task, row.seed) not in tuned:
            return math.nan
        ratios[row.task].append(log2_speed(row) - tuned[row.task, row.seed])
    return float(2.0 ** np.mean([np.mean(values) for values in ratios.values()]))


def beaten(ours: Mapping[str, FloatArray], rival: Mapping[str, FloatArray]) -> float:
    """Share of tasks on which our mean log loss is lower; nan without a rival.

    By loss and not by speed, which has a floor that both may lie on.
    """
    tasks = [task for task in ours if task in rival]
    if not tasks:
        return math.nan
    return float(np.mean([_mean_log(ours[t]) < _mean_log(rival[t]) for t in tasks]))


def _mean_log(values: FloatArray) -> float:
    return float(np.log(np.maximum(values, 1e-12)).mean())


def _cpu(rows: Sequence[Row]) -> float | None:
    ours = [row.cpu_ms for row in rows if row.cpu_ms is not None]
    plain = [row.plain_ms for row in rows if row.plain_ms is not None]
    return float(np.sum(ours) / np.sum(plain)) if ours and plain else None


def table(summaries: Sequence[Summary]) -> str:
    """The table as text."""
    header = (
        "arm", "h*", "95% interval", "paired", "worst task", "harm", "diverged", "clipped",
        "beats 1e-3 cos.", "CPU/step",
    )  # fmt: skip
    lines = [header]
    for s in summaries:
        task, speed = s.worst
        lines.append(
            (
                s.arm.label,
                f"{s.speed:.2f}",
                f"{s.low:.2f} - {s.high:.2f}",
                "-" if math.isnan(s.paired) else f"{s.paired:.2f}",
                f"{speed:.2f} {task}",
                f"{s.harm:.0%}",
                f"{s.diverged}/{s.runs}",
                f"{s.clipped}/{s.runs}",
                "-" if math.isnan(s.beaten) else f"{s.beaten:.0%} of tasks",
                "-" if s.cpu is None else f"x{s.cpu:.2f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = {0, 4}
    rows = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])


def by_task(summaries: Sequence[Summary]) -> str:
    """Geometric-mean h* of every arm on every task."""
    tasks = list(summaries[0].by_task) if summaries else []
    width = max((len(s.arm.label) for s in summaries), default=0)
    lines = [" " * width + "".join(f"  {task}" for task in tasks)]
    lines += [
        s.arm.label.ljust(width) + "".join(f"  {s.by_task[task]:>{len(task)}.2f}" for task in tasks)
        for s in summaries
    ]
    return "\n".join(lines)


def footnote(
    frontiers: Mapping[str, Frontier],
    summaries: Sequence[Summary],
    config: BaselineConfig | None = None,
) -> str:
    """What the figures mean, and what the baseline cost."""
    config = config or BaselineConfig()
    low, high = (2.0**bound for bound in SPEED_BOUNDS)
    budgets = ", ".join(f"{b:g}" for b in config.budgets)
    steps = sorted(frontier.steps for frontier in frontiers.values())
    edges = sum(frontier.edge for frontier in frontiers.values())
    inside = "all optima inside the grid" if not edges else f"{edges} optima ON THE GRID'S EDGE"
    resolution = max(frontier.resolution for frontier in frontiers.values())
    replayed = any(s.arm.kind == "replay" for s in summaries)
    lines = [
        "h*: budget, in units of ours, at which the tuned baseline reaches our final loss; "
        f"read within {low:g} to {high:g} (clipped runs lie on an end).",
        f"Baseline: {DESCRIPTION}; at each of {len(config.budgets)} budgets ({budgets}) the best "
        f"of {len(config.rates)} rates from {min(config.rates):g} to {max(config.rates):g}, "
        f"chosen on {len(config.tuning_seeds)} seeds ({inside}), measured on "
        f"{len(config.seeds)} others.",
        f"{len(frontiers)} held-out tasks of {steps[0]} to {steps[-1]} steps, equal weight; "
        "interval: 95%, bootstrap over tasks, runs and the baseline's own runs. "
        f"Bluntest frontier: {resolution:.2f} octaves (standard error).",
        "Paired: h* over that of the tuned baseline's run with the same weights and data order.",
        "Steered arms start a decade above and a decade below their optimizer's best rate. "
        f"Harm: runs with h* < {HARM}.",
        "CPU/step: of the whole loop with the Tuner, in units of plain torch.optim.AdamW.",
    ]
    if replayed:
        lines.append(
            "Replay: the policy's median path on its training families' default tasks, applied "
            "blindly by progress."
        )
    return "\n".join(lines)


def verdicts(summaries: Sequence[Summary]) -> list[str]:
    """One line per bar: reached, or by how much it is missed."""
    known = {s.arm.name: s for s in summaries}
    lines = []
    for bar in BARS:
        s = known.get(bar.arm)
        if s is None:
            continue
        lines.append(
            _verdict(f"{s.arm.label}: geometric-mean h* {s.speed:.2f}", s.speed, bar.speed, "x")
        )
        lines.append(
            f"{'reached' if s.diverged == 0 else 'MISSED '}  {s.arm.label}: {s.diverged} of "
            f"{s.runs} runs diverged (bar: 0)"
        )
        if not math.isnan(s.beaten):
            text = f"{s.arm.label}: beats AdamW 1e-3 cosine on {s.beaten:.0%} of tasks"
            lines.append(_verdict(text, s.beaten, bar.beaten, "share"))
        lines.append(f"         {s.arm.label}: {permitted(s)}")
    return lines


def permitted(s: Summary) -> str:
    """What may be said about an arm: "faster" needs an interval above 1 and harm below 10%."""
    if s.low > 1.0 and s.harm < 0.1:
        return f"faster than the tuned baseline (interval from {s.low:.2f}, harm {s.harm:.0%})"
    if s.low >= 0.9:
        return f"matches the tuned baseline without tuning (interval from {s.low:.2f})"
    return (
        f"no claim against the tuned baseline (interval {s.low:.2f} - {s.high:.2f}, harm "
        f"{s.harm:.0%}; 'faster' needs a lower end above 1 and harm below 10%)"
    )


def _verdict(text: str, value: float, bar: float, unit: str) -> str:
    wanted = f"{bar:.2f}" if unit == "x" else f"{bar:.0%}"
    if value >= bar:
        return f"reached  {text} (bar: {wanted})"
    missing = f"{1.0 - value / bar:.0%}" if unit == "x" else f"{100 * (bar - value):.0f} points"
    return f"MISSED   {text} (bar: {wanted}, missed by {missing})"
