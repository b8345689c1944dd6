"""Colours and axes of all pictures, and a demo's jobs with their hyperparameters' paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import MissingExtraError

#: Okabe and Ito's colours, told apart with any colour vision.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6E6E6E"

AXES = {
    "learning_rate": "learning rate",
    "one_minus_beta1": "1 - beta1",
    "one_minus_beta2": "1 - beta2",
    "eps": "eps",
    "weight_decay": "weight decay",
    "clip_ratio": "clip ratio",
}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "bench") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
        }
    )
    return pyplot


@dataclass(frozen=True)
class Line:
    """One job of a demo, as it is drawn.

    Attributes:
        label: In the legend.
        colour: Of its lines.
        style: Of its lines, as matplotlib writes it.
        steps: Steps at which `losses` were measured.
        losses: Validation losses.
        paths: By control, (step, value) after each decision; empty for jobs that nobody steered.
        rates: (step, learning rate) of a job with a schedule of its own, to compare with.
    """

    label: str
    colour: str
    style: str
    steps: Sequence[float]
    losses: Sequence[float]
    paths: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    rates: Sequence[tuple[float, float]] = ()


def draw_demo(lines: Sequence[Line], title: str, total_steps: int, path: Path) -> None:
    """Loss curves on top, below one panel per hyperparameter with a mark at every decision."""
    pyplot = _pyplot()
    steered = [line for line in lines if line.paths]
    # a value that nobody moved says nothing
    names = [name for name in AXES if any(_moves(line, name) for line in steered)]
    columns = 3
    rows = -(-(len(names) + 1) // columns)  # one place is the legend's
    figure = pyplot.figure(figsize=(11.0, 4.4 + 2.4 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.8] + [1.0] * rows)
    top = figure.add_subplot(grid[0, :])
    for line in lines:
        top.plot(
            line.steps, line.losses, color=line.colour, linestyle=line.style, linewidth=1.8,
            label=line.label, zorder=3 if line.paths else 2,
        )  # fmt: skip
        if line.losses:
            top.plot(line.steps[-1], line.losses[-1], "o", color=line.colour, markersize=5)
    top.set_yscale("log")
    _plain_log_axis(top)
    top.set_xlim(0, total_steps * 1.01)
    top.set_xlabel("optimizer step")
    top.set_ylabel("validation loss (nats per example)")
    top.set_title(title, loc="left", fontsize=12)
    for i, name in enumerate(names):
        panel = figure.add_subplot(grid[1 + i // columns, i % columns])
        for line in steered:
            path_of = line.paths.get(name)
            if not path_of:
                continue
            steps = [step for step, _ in path_of]
            values = [value for _, value in path_of]
            panel.step(
                [*steps, total_steps], [*values, values[-1]], where="post", color=line.colour,
                linestyle=line.style, linewidth=1.3,
            )  # fmt: skip
            panel.plot(steps, values, "o", color=line.colour, markersize=3)
        if name == "learning_rate":
            for line in (line for line in lines if line.rates):
                panel.plot(
                    [step for step, _ in line.rates], [rate for _, rate in line.rates],
                    color=line.colour, linestyle=line.style, linewidth=1.2,
                )  # fmt: skip
        panel.set_yscale("log")
        _plain_log_axis(panel)
        panel.set_xlim(0, total_steps * 1.01)
        panel.set_title(AXES[name], loc="left", fontsize=10)
        panel.set_xlabel("optimizer step")
    corner = figure.add_subplot(grid[1 + len(names) // columns, len(names) % columns])
    corner.axis("off")
    handles, labels = top.get_legend_handles_labels()
    dot = pyplot.Line2D([], [], color="black", marker="o", markersize=3, linestyle="")
    corner.legend(
        [*handles, dot], [*labels, "a decision"], frameon=False, loc="center left", fontsize=10,
        handlelength=2.6,
    )  # fmt: skip
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _moves(line: Line, name: str) -> bool:
    return len({value for _, value in line.paths.get(name, ())}) > 1


def _plain_log_axis(axes: Any) -> None:
    """Few, readable labels, also where the values span less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_ylim()
    span = high / low
    subs: tuple[float, ...] = (1.0,)
    if span < 12:
        subs = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    elif span < 50:
        subs = (1.0, 2.0, 5.0)
    locator = MaxNLocator(5) if span < 2 else LogLocator(base=10.0, subs=subs, numticks=8)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
