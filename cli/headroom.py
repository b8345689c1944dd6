"""`lhopt policies headroom`: what settings held beside a policy would bring."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from .tables import print_table

if TYPE_CHECKING:
    from ..policy.artifact import Policy
    from ..policy.headroom import Headroom, Reading

_LEGEND = """\
Octaves of speed over nothing held, and in brackets their standard error over families. For all:
held in every run. Per task: it or nothing, chosen for each task by half of its runs and read on
the other half, and the other way round; "any" chooses among all of the column."""


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word `headroom`."""
    parser = words.add_parser(
        "headroom",
        help="what settings held beside a policy would bring, for all tasks and task by task",
        description="Steer runs of every task with the policy, then again with a factor on what it "
        "steers, or another part of the update rule, held beside it, hidden from its features. "
        "What helps task by task is what it could have known better; what helps in no task that it "
        "was trained on, more training on those will hardly find. Some 10 seconds for a task of "
        "300 steps and each thing held.",
    )
    parser.add_argument("policy", metavar="PATH_OR_NAME", help="the policy")
    parser.add_argument(
        "--hold",
        metavar="NAME=VALUE[@SHARE]",
        nargs="+",
        required=True,
        help="a control and the factor on it (a shift, for clip_ratio), held from a tenth of the "
        "run on or from that share of it, as learning_rate=0.5@0.5; or a field of the update rule "
        "(lhopt.optimizers.StepRule) and its value for the whole run, as cautious=false",
    )
    parser.add_argument(
        "--families",
        metavar="NAME",
        nargs="+",
        default=["training"],
        help="families of the tasks, or groups as `compare` has them (default: training)",
    )
    parser.add_argument(
        "--per-family", type=int, default=1, metavar="N", help="tasks of each, the shortest"
    )
    parser.add_argument("--shortest", type=int, default=150, help="leave out shorter tasks")
    parser.add_argument("--longest", type=int, default=450, help="leave out longer tasks")
    parser.add_argument("--runs", type=int, default=8, help="runs of a task, two at least")
    parser.add_argument(
        "--decades", type=float, default=1.0, help="spread of the starting rates, either way"
    )
    parser.add_argument(
        "--slope",
        action="store_true",
        help="runs report a validation loss and its slope, as Tuner(validate=...) measures it",
    )
    parser.add_argument(
        "--averages", action="store_true", help="with --slope, runs end with their best average"
    )
    parser.add_argument("--processes", type=int, default=2, help="tasks run at once")


def show(policy: Policy, args: argparse.Namespace) -> int:
    """Measure and print; 0."""
    from tqdm import tqdm

    from ..policy.families import named
    from ..policy.headroom import HeadroomConfig, headroom

    config = HeadroomConfig(
        families=named(args.families),
        per_family=args.per_family,
        shortest=args.shortest,
        longest=args.longest,
        runs=args.runs,
        decades=args.decades,
        tells_slope=args.slope,
        averages=args.averages,
    )
    with tqdm(unit="task", leave=False) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        found = headroom(policy, args.hold, config, processes=args.processes, progress=progress)
    parts = [
        (title, part)
        for title, part in (
            ("trained on", found.part(trained=True)),
            ("others", found.part(trained=False)),
        )
        if part.speeds
    ]
    print_table(_rows(found.held, parts), right=range(1, 1 + 2 * len(parts)))
    for title, part in parts:
        print(
            f"{title}: {len(part.speeds)} tasks of {part.n_families} families, "
            f"{_text(part.plain, sign='')} octaves with nothing held"
        )
    print(_LEGEND)
    return 0


def _rows(held: tuple[str, ...], parts: list[tuple[str, Headroom]]) -> list[tuple[str, ...]]:
    header = ["held"]
    for title, _ in parts:
        header += [f"{title}: for all", "per task"]
    rows = [tuple(header)]
    for i, text in enumerate(held, 1):
        cells = [text]
        for _, part in parts:
            cells += [_text(part.for_all(i)), _text(part.per_task([i]))]
        rows.append(tuple(cells))
    last = ["any"]
    for _, part in parts:
        last += ["", _text(part.per_task(range(1, len(held) + 1)))]
    return [*rows, tuple(last)]


def _text(reading: Reading, sign: str = "+") -> str:
    """A mean and its standard error, `-` where a single family tells none."""
    error = "-" if np.isnan(reading.error) else f"{reading.error:.3f}"
    return f"{reading.mean:{sign}.3f} ({error})"
