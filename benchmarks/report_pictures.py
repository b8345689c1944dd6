"""The bench's three pictures: speeds, time to target, and the paths that the policy takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .frontier import BOUNDS
from .picture import AXES, BLUE, GREEN, GREY, ORANGE, PINK, _pyplot
from .profile import LIMIT
from .summary import COMPARED, POLICY, Section

#: The arms drawn in colour in the profile; the others are grey.
SHOWN = {
    POLICY: BLUE,
    "steerable-default": GREEN,
    "adamw-tuned": ORANGE,
    "adamw-transferred": PINK,
}
#: Line styles that tell the starts apart.
STARTS = {-1: "-", 1: "--"}


def draw_speeds(section: Section, path: Path) -> None:
    """Headline h* of each arm with its interval, and its tasks as small dots."""
    pyplot = _pyplot()
    lines = section.lines
    figure, axes = pyplot.subplots(figsize=(9.5, 1.6 + 0.36 * len(lines)), layout="constrained")
    for i, line in enumerate(lines):
        y = len(lines) - 1 - i
        colour = BLUE if line.arm in COMPARED else GREY
        dots = list(line.by_task.values())
        found = line.headline
        axes.plot(dots, [y] * len(dots), "o", color=colour, alpha=0.35, markersize=4, zorder=2,
                  clip_on=False)  # fmt: skip
        axes.plot([found.low, found.high], [y, y], color=colour, linewidth=2.5, zorder=3)
        axes.plot(found.value, y, "D", color=colour, markersize=7, zorder=4)
        axes.annotate(
            f"{found.value:.2f}", (1.015, y), xycoords=("axes fraction", "data"), va="center",
            fontsize=9, color=colour,
        )  # fmt: skip
    axes.axvline(1.0, color=ORANGE, linewidth=1.2, zorder=1)
    axes.set_xscale("log", base=2)
    low, high = BOUNDS
    axes.set_xlim(low / 1.03, high * 1.03)
    ticks = [0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(lines)), [line.arm for line in reversed(lines)])
    axes.set_ylim(-0.7, len(lines) - 0.3)
    axes.set_xlabel(
        "speed h*: budget at which AdamW tuned with 24 or more trials gets as far (ours = 1); "
        f"clipped to {low:g} - {high:g}"
    )
    axes.set_title(
        f"Held-out tasks, tier {section.tier}: geometric mean, 95% interval, one dot per task",
        loc="left", fontsize=11,
    )  # fmt: skip
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def draw_profile(section: Section, path: Path) -> None:
    """Share of tasks whose target an arm reaches within tau times the fastest arm's time.

    In steps and, where the cost of a step was measured, in CPU time.
    """
    pyplot = _pyplot()
    profiles = [p for p in (section.profile, section.cpu_profile) if p.times]
    figure, panels = pyplot.subplots(
        1, len(profiles), figsize=(2.8 + 4.6 * len(profiles), 4.8), sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    greys = [arm for arm in section.profile.times if arm not in SHOWN]
    shades = {arm: str(0.35 + 0.45 * i / max(len(greys), 1)) for i, arm in enumerate(greys)}
    styles = ["-", "--", "-.", ":"]
    handles: dict[str, Any] = {}
    for axes, profile in zip(panels[0], profiles, strict=True):
        # the best in front
        for arm in sorted(profile.times, key=profile.score):
            ratios = np.sort(profile.ratios(arm))
            inside = ratios[ratios <= LIMIT]
            share = np.arange(len(inside) + 1) / len(ratios)
            (drawn,) = axes.step(
                [1.0, *inside, LIMIT], [share[0], *share[1:], share[-1]], where="post",
                color=SHOWN.get(arm) or shades[arm],
                linestyle="-" if arm in SHOWN else styles[greys.index(arm) % len(styles)],
                linewidth=2.4 if arm in SHOWN else 1.3,
            )  # fmt: skip
            handles.setdefault(arm, drawn)
        axes.set_xscale("log", base=2)
        axes.set_xlim(1.0, LIMIT)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks([1, 1.5, 2, 3, 4], ["1", "1.5", "2", "3", "4"])
        axes.minorticks_off()
        axes.set_xlabel(f"tau: {'CPU time' if profile.cpu else 'steps'}, fastest arm = 1")
    panels[0][0].set_ylabel("share of tasks whose target is reached and holds")
    panels[0][0].set_title(
        f"Time to the loss of tuned AdamW after 0.7 of the steps, tier {section.tier}",
        loc="left", fontsize=11,
    )  # fmt: skip
    ordered = sorted(handles, key=lambda arm: -_score(section, arm))
    figure.legend(
        [handles[arm] for arm in ordered],
        [f"{arm} ({_score(section, arm):.2f})" for arm in ordered],
        title="arm (score B in steps)", alignment="left", frameon=False, fontsize=8.5,
        loc="outside right center", handlelength=2.8,
    )  # fmt: skip
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _score(section: Section, arm: str) -> float:
    return section.profile.score(arm) if arm in section.profile.times else 0.0


def draw_paths(
    section: Section, paths: Mapping[str, Mapping[str, Any]], path: Path, *, arm: str = POLICY
) -> bool:
    """How the policy moves each hyperparameter, relative to its start, one thin line per run.

    Args:
        section: Whose tasks.
        paths: By "path <arm> <task> <seed> <offset>": "progress" and, under "relative", each
            control's values over its start.
        path: Of the picture.
        arm: Whose paths.

    Returns:
        Whether there was anything to draw.
    """
    names = [task.spec.task for task in section.tasks]
    drawn: list[tuple[str, int, Mapping[str, Any]]] = []
    for record, value in paths.items():
        words = record.split(" ")
        if words[:2] == ["path", arm] and words[2] in names:
            drawn.append((words[2], int(words[4]), value))
    if not drawn:
        return False
    pyplot = _pyplot()
    known = {control for _, _, value in drawn for control in value["relative"]}
    controls = [c for c in AXES if c in known] + sorted(known - set(AXES))
    columns = min(3, len(controls))
    rows = -(-len(controls) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns + 2.6, 2.9 * rows + 0.7), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = dict(zip(names, _colours(len(names)), strict=True))
    for panel, control in zip(panels.flat, controls, strict=False):
        for task, offset, value in drawn:
            if control in value["relative"]:
                panel.plot(
                    value["progress"], value["relative"][control], color=colours[task],
                    linestyle=STARTS.get(offset, ":"), linewidth=1.1,
                )  # fmt: skip
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.set_yscale("log")
        _decades(panel)
        panel.set_xlim(0.0, 1.0)
        panel.set_title(AXES.get(control, control), loc="left", fontsize=10)
        panel.set_xlabel("share of the run")
    for row in panels:
        row[0].set_ylabel("value over its start")
    for panel in list(panels.flat)[len(controls) :]:
        panel.axis("off")
    there = [name for name in names if any(name == task for task, _, _ in drawn)]
    offsets = sorted({offset for _, offset, _ in drawn})
    handles = [pyplot.Line2D([], [], color=colours[name]) for name in there]
    handles += [
        pyplot.Line2D([], [], color="black", linestyle=STARTS.get(offset, ":"))
        for offset in offsets
    ]
    labels = [*there, *(f"learning rate starts x{10.0**offset:g} off" for offset in offsets)]
    figure.legend(
        handles, labels, frameon=False, fontsize=8.5, loc="outside right center", handlelength=2.8
    )
    figure.suptitle(
        f"What {arm} does, tier {section.tier}: decisions times schedule", x=0.01, ha="left",
        fontsize=11,
    )  # fmt: skip
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return True


def _colours(n: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["turbo"](0.08 + 0.86 * i / max(n - 1, 1)) for i in range(n)]


def _decades(axes: Any) -> None:
    """Powers of ten, or finer where a panel spans less than two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    low, high = min(low, 0.7), max(high, 1.4)
    axes.set_ylim(low, high)
    subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0) if high / low > 4 else (
        0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)  # fmt: skip
    axes.yaxis.set_major_locator(LogLocator(base=10.0, subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
