"""`lhopt policies headroom`: what changes beside a policy's decisions would bring."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from .tables import print_table
from .task_bar import task_bar

if TYPE_CHECKING:
    from ..policy.artifact import Policy
    from ..policy.headroom import Headroom, Reading

_LEGEND = """\
Octaves of speed, 0 as fast as AdamW with rate and weight decay tuned; each run counts within -2 and
1.5; in brackets the standard error over families. Known: on data that the policy was trained on."""
_LEGEND_CHANGES = """\
Changes are read over the same runs unchanged. For all: the change in every run. Per task: it or
none, chosen for each task by half of its runs and read on the other half, and the other way round;
"any" chooses among all of the column."""


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word `headroom`."""
    parser = words.add_parser(
        "headroom",
        help="what changes beside a policy's decisions would bring, for all tasks and per task",
        description="Steer runs of every task with the policy, then again with a factor on what it "
        "steers, or another part of the update rule, which it is not told of, though it sees what "
        "comes of it, or held. What helps task by task is what it could have known better; what "
        "helps no task on data that it was trained on, more training on those will hardly find. "
        "Some 10 seconds for a task of 300 steps and each change.",
    )
    parser.add_argument("policy", metavar="PATH_OR_NAME", help="the policy")
    parser.add_argument(
        "--change",
        metavar="CHANGE",
        nargs="+",
        default=[],
        help="NAME=VALUE[@SHARE]: a control and the factor on it (a shift, for clip_ratio), within "
        "the control's bounds, from the first decision after a tenth of the run on or after that "
        "share of it, as learning_rate=0.5@0.5; with first. or last. before it, as "
        "first.weight_decay=4, a factor on the rate or the decay of a net's first or last matrix "
        "alone, which those bounds do not hold; or a field of the update rule "
        "(lhopt.optimizers.StepRule) and its value for the whole run, as cautious=false; or hold: "
        "the default schedule alone in place of the policy, under its feedback; without any, the "
        "policy's own speed alone",
    )
    parser.add_argument(
        "--families",
        metavar="NAME",
        nargs="+",
        default=["training"],
        help="families of the tasks, or groups as `compare` has them (default: training)",
    )
    parser.add_argument("--per-family", type=int, metavar="N", help="tasks of each, the shortest")
    parser.add_argument("--shortest", type=int, help="leave out shorter tasks (default: 150)")
    parser.add_argument("--longest", type=int, help="leave out longer tasks (default: 450)")
    parser.add_argument("--runs", type=int, help="runs of a task, a multiple of 4 (default: 8)")
    parser.add_argument("--decades", type=float, help="spread of the starting rates, either way")
    parser.add_argument(
        "--slope",
        action="store_true",
        help="runs report a validation loss and its slope, as Tuner(validate=...) measures it",
    )
    parser.add_argument(
        "--averages",
        action="store_true",
        help="with the slope told, runs end with the best of their averages",
    )
    parser.add_argument("--processes", type=int, default=2, help="tasks run at once")


def show(policy: Policy, args: argparse.Namespace) -> int:
    """Measure and print; 0."""
    from ..policy.families import named
    from ..policy.headroom import HeadroomConfig, headroom

    given = {
        name: getattr(args, name)
        for name in ("per_family", "shortest", "longest", "runs", "decades")
        if getattr(args, name) is not None
    }
    config = HeadroomConfig(
        families=named(args.families),
        tells_slope=args.slope or args.averages,
        averages=args.averages,
        **given,
    )
    with task_bar() as progress:
        found = headroom(policy, args.change, config, processes=args.processes, progress=progress)
    parts = [
        (title, part)
        for title, part in (("known", found.part(True)), ("others", found.part(False)))
        if part.speeds
    ]
    if found.changes:
        print_table(_rows(found.changes, parts), right=range(1, 1 + 2 * len(parts)))
    for title, part in parts:
        print(
            f"{title}: tasks {len(part.speeds)}, families {part.n_families}; unchanged "
            f"{_text(part.unchanged, sign='')} octaves"
        )
    for i, text in enumerate(found.changes, 1):
        if found.idle(i):
            print(f"{text}: no run differs; it begins too late, or the optimizer has no such part")
    print(_LEGEND)
    if found.changes:
        print(_LEGEND_CHANGES)
    return 0


def _rows(changes: tuple[str, ...], parts: list[tuple[str, Headroom]]) -> list[tuple[str, ...]]:
    header = ["change"]
    for title, _ in parts:
        header += [f"{title}: for all", "per task"]
    rows = [tuple(header)]
    for i, text in enumerate(changes, 1):
        cells = [text]
        for _, part in parts:
            cells += [_text(part.for_all(i)), _text(part.per_task([i]))]
        rows.append(tuple(cells))
    last = ["any"]
    for _, part in parts:
        last += ["", _text(part.per_task(range(1, len(changes) + 1)))]
    return [*rows, tuple(last)] if len(changes) > 1 else rows


def _text(reading: Reading, sign: str = "+") -> str:
    """A mean and its standard error, `-` where a single family tells none."""
    error = "-" if np.isnan(reading.error) else f"{reading.error:.3f}"
    return f"{reading.mean:{sign}.3f} ({error})"
