"""`lhopt policies noise`: how much of a training's policy gradient is signal."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .tables import print_table
from .task_bar import task_bar
from .train import stored_config

if TYPE_CHECKING:
    from ..policy.gradient_noise import Estimate, GradientNoise

_UNTOLD = "not told apart from 0"
_LEGEND = """\
Squared norms of the gradient of one visit's loss, the mean over its runs, at weights that stand
still; in brackets the standard error over tasks. A visit is what of one episode lies in one
update. Common: between visits to different tasks. A task's: between groups of runs of one visit,
the common part and the task's own. Alike: every visit scaled to the median norm, since a few
dominate; the scale holds noise, too. Signal-to-noise: common over (noise / runs + the task's own /
visits); at 1 an update's gradient is as much signal as error (McCandlish et al., 2018,
arXiv:1812.06162). An episode that an update's end cuts is a visit in both, and its runs count in
both."""


def add_parser(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the word `noise`."""
    parser = words.add_parser(
        "noise",
        help="how much of a training's policy gradient is signal, and common to its tasks",
        description="Restore the training in FOLDER as `lhopt train --resume` does, in a copy, "
        "collect the rollouts of its next updates with the policy as it is, learning nothing, and "
        "compare the gradients of groups of runs: what those of different tasks share, what those "
        "of one task share, and the rest, which is noise. A common part that is not told apart "
        "from 0 is less than so many updates can show. Takes about as long as the training takes "
        "for them. The folder is not written to; its checkpoint is trusted like code.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="of a training that `lhopt train` made"
    )
    parser.add_argument(
        "--updates", metavar="N", type=int, default=4, help="to collect (default: %(default)s)"
    )
    parser.add_argument(
        "--processes",
        metavar="P",
        type=int,
        default=2,
        help="that share the runs (default: %(default)s)",
    )


def show(args: argparse.Namespace) -> int:
    """Collect and print; 0."""
    from ..env.workers import check_processes
    from ..policy.gradient_noise import Products
    from ..policy.pools import make_pools
    from ..policy.rollout_gradients import check_groups, check_readable, check_updates, collect
    from ..policy.train import check_restorable, restored

    check_updates(args.updates)
    check_processes(args.processes)
    config = stored_config(args.folder)
    check_groups(config)
    # before frontiers, which may take long
    check_readable(config, *check_restorable(args.folder, config))
    with task_bar() as progress:
        # nothing is evaluated: frontiers for that are not wanted
        mine = replace(config, valid_families=())
        pool, _ = make_pools(mine, processes=args.processes, progress=progress, costs=False)
    with (
        task_bar("update") as progress,
        restored(args.folder, config, pool, processes=args.processes) as trainer,
    ):
        update = trainer.update
        found = collect(trainer, args.updates, progress=progress)
    products = Products.of(found.gradients, found.tasks, found.group_size)
    visits = found.visits_per_update
    readings = [products.read(), products.alike().read()]
    print(
        f"{config.name} after update {update}: {len(found.tasks)} visits to "
        f"{len(set(found.tasks))} tasks in {found.updates} updates; an update has {visits:.1f} "
        f"visits, {visits * readings[0].runs_per_visit:.0f} runs"
    )
    print_table(_rows(readings, visits), right=(1, 2))
    print(_LEGEND)
    return 0


def _rows(readings: list[GradientNoise], visits: float) -> list[tuple[str, ...]]:
    return [
        ("", "as they are", "visits alike"),
        ("common to tasks", *(_squared(r.common) for r in readings)),
        ("a task's, with the common", *(_squared(r.task) for r in readings)),
        ("noise of one run", *(_squared(r.noise) for r in readings)),
        ("signal-to-noise of an update", *(_ratio(r, visits) for r in readings)),
        ("times the runs, for a ratio of 1", *(_needed(r, visits) for r in readings)),
    ]


def _squared(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.error:.2g})"


def _ratio(reading: GradientNoise, visits: float) -> str:
    ratio = reading.signal_to_noise(visits)
    return _UNTOLD if not reading.common.told_apart or np.isnan(ratio) else f"{ratio:.2g}"


def _needed(reading: GradientNoise, visits: float) -> str:
    needed = reading.visits_needed() / visits
    return _UNTOLD if np.isnan(needed) else f"{needed:.2g}"
