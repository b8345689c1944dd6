"""The report as text: tables, pairs, times, cost of tuning."""

from __future__ import annotations

from collections.abc import Sequence

from .arms import TIERS, get_tier
from .bootstrap import Estimate
from .frontier import BOUNDS
from .frontier_files import tasks_of
from .profile import Profile
from .summary import COMPARED, HARM, Line, Section
from .verdicts import TASKS_FOR_WORDS, judge, permitted


def grid(cells: Sequence[Sequence[str]], left: frozenset[int] = frozenset({0})) -> str:
    """Aligned columns; the first row is the header, columns in `left` are aligned there."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def table(section: Section) -> str:
    """One line per arm."""
    to = f"to {section.horizon:g}"
    head = (
        "arm", "h*", "95% interval", "one task out", "at ends", to, "5x7", "test", "CPU time",
        "harm", "diverged", "worst task", "tasks", "runs",
    )  # fmt: skip
    cells: list[tuple[str, ...]] = [head]
    for line in section.lines:
        task, speed = line.worst
        found = line.headline
        cells.append(
            (
                line.arm,
                f"{found.value:.2f}",
                f"{found.low:.2f} - {found.high:.2f}",
                "-" if line.without is None else f"{line.without[0]:.2f} - {line.without[1]:.2f}",
                f"{line.at_low} / {line.at_high}",
                *(_value(line.speeds[name]) for name in ("wide", "5x7", "test", "cpu")),
                f"{line.harm:.1%}",
                f"{line.diverged}",
                f"{speed:.2f} {task}",
                f"{len(line.by_task)}",
                f"{line.runs}",
            )
        )
    return grid(cells, frozenset({0, 11}))


def _value(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.2f}"


def _trials(section: Section) -> str:
    """K as it was: more than 24 where a winner lay on an edge."""
    counts = sorted({len(task.k24.trials) for task in section.tasks})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def notes(section: Section) -> str:
    """What the columns mean."""
    low, high = BOUNDS
    return (
        "h*: budget, in units of ours, at which AdamW + warm-up + cosine tuned with K = "
        f"{_trials(section)} trials reaches our final loss; clipped to {low:g} - {high:g}\n"
        "  (at ends: runs on the lower / upper one), geometric mean over tasks of that over "
        "seeds. Interval: 95%, "
        f"{section.resamples:,} hierarchical bootstraps (tasks, seeds, the baseline's own runs).\n"
        f"one task out: lowest and highest h* with one task left out. to {section.horizon:g}: h* "
        f"read up to {section.horizon:g}. Above 1 h* flatters somewhat, and beyond 2 more, because "
        "the baseline keeps the setting that was tuned at our length. 5x7: against the best of 5 "
        "rates x 7 schedules. test: test losses on the test frontier.\n"
        "CPU time: h*, clipped likewise, over the CPU time of a step, in units of plain AdamW's. "
        f"harm: runs with h* < {HARM:g}. Equal weight per task; seeds pair arms and baseline."
        + (
            "\nFlat: the baseline gains less from twice our steps than one of its runs scatters "
            f"by, so that a little loss is much h*, on {', '.join(section.flat)}."
            if section.flat
            else ""
        )
    )


def starts(section: Section) -> str:
    """The policy's arms by start; empty where none has two."""
    cells: list[tuple[str, ...]] = [
        ("by start", "rate", "h*", "95% interval", "harm", "worst task", "runs")
    ]
    for (arm, offset), line in section.starts.items():
        task, speed = line.worst
        found = line.headline
        cells.append(
            (
                arm,
                f"best x {10.0**offset:g}",
                f"{found.value:.2f}",
                f"{found.low:.2f} - {found.high:.2f}",
                f"{line.harm:.1%}",
                f"{speed:.2f} {task}",
                f"{line.runs}",
            )
        )
    return grid(cells, frozenset({0, 5})) if len(cells) > 1 else ""


def tasks(section: Section) -> str:
    """Headline h* of every arm on every task."""
    names = [task.spec.task for task in section.tasks]
    cells = [("h* by task", *names)]
    for line in section.lines:
        cells.append(
            (line.arm, *(f"{line.by_task[n]:.2f}" if n in line.by_task else "-" for n in names))
        )
    return grid(cells)


def costs(section: Section) -> str:
    """CPU time of a step of every arm on every task; empty where none was measured."""
    names = [task.spec.task for task in section.tasks]
    cells = [("CPU time of a step, plain AdamW = 1", *names)]
    for line in section.lines:
        if line.cost:
            cells.append(
                (line.arm, *(f"{line.cost[n]:.2f}" if n in line.cost else "-" for n in names))
            )
    return grid(cells) if len(cells) > 1 else ""


def pairs(section: Section) -> str:
    """Ratios of the policy arms to every other; empty where there is no such arm."""
    first = [arm for arm in COMPARED if section.line(arm)]
    if not first:
        return ""
    cells = [("ratio of h* on the same runs, of", *first)]
    for line in section.lines:
        row = []
        for arm in first:
            pair = section.pairs.get((arm, line.arm))
            row.append(
                "-"
                if pair is None
                else f"{pair.ratio.value:.2f} ({pair.ratio.low:.2f} - {pair.ratio.high:.2f})"
            )
        cells.append((f"over {line.arm}", *row))
    return grid(cells)


def times(profile: Profile) -> str:
    """Score and misses of every arm; empty where no arm has curves."""
    if not profile.times:
        return ""
    unit = "CPU time" if profile.cpu else "steps"
    cells: list[tuple[str, ...]] = [
        (f"time to target, {unit}", "B", "rho(1)", "rho(2)", "rho(4)", "never reached")
    ]
    for arm in sorted(profile.times, key=lambda arm: -profile.score(arm)):
        missed = profile.misses(arm)
        cells.append(
            (
                arm,
                f"{profile.score(arm):.2f}",
                *(f"{profile.share(arm, tau):.2f}" for tau in (1.0, 2.0, 4.0)),
                ", ".join(missed) if missed else "-",
            )
        )
    return grid(cells, frozenset({0, 5}))


def tuning(section: Section) -> str:
    """What K trials are worth, as a share of the speed that the largest K gives."""
    most = max(section.tuning)
    cells = [("trials of AdamW", f"speed, K = {most} is 1")]
    for k, worth in section.tuning.items():
        cells.append((f"K = {k}", f"{worth / section.tuning[most]:.2f}"))
    return grid(cells)


def verdicts(section: Section) -> str:
    """A line per bar, then the words that the figures permit."""
    lines = [verdict.text for verdict in judge(section)]
    ours = [line for line in section.lines if line.arm.startswith("steerable-")]
    ours += [line for line in section.lines if line.arm in COMPARED and line not in ours]
    lines += [f"{line.arm}: {permitted(line, whole=_whole(section, line))}" for line in ours]
    return "\n".join(lines)


def _whole(section: Section, line: Line) -> bool:
    """Whether an arm ran on all the tier's tasks and seeds, and on enough tasks for a claim."""
    n_tasks = len(tasks_of(section.tier)) if section.tier in TIERS else 0
    seeds = get_tier(section.tier).seeds.get(line.arm, 0) if n_tasks else 0
    return TASKS_FOR_WORDS <= n_tasks == len(line.by_task) and seeds <= len(line.seeds)


def render(section: Section) -> str:
    """Everything about one tier."""
    missed = (
        "A target is the K = 24 baseline's loss after 0.7 of our steps; it must hold at the "
        "next of 50 evaluations. B: mean of rho over 1 to 4 times the fastest arm's time."
    )
    parts = [
        f"Tier {section.tier}",
        table(section),
        notes(section),
        starts(section),
        tasks(section),
        costs(section),
        pairs(section),
        times(section.profile),
        times(section.cpu_profile),
        missed if section.profile.times else "",
        tuning(section),
        verdicts(section),
    ]
    return "\n\n".join(part for part in parts if part)
