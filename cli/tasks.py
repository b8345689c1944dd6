"""`lhopt tasks`: what can be trained on here, how big it is and how fast."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ..core.errors import MissingExtraError
from .tables import print_table

if TYPE_CHECKING:
    from ..inner_tasks import InnerTask, TaskFamily

_SECONDS = 0.2
_HEADER = ("family", "dataset", "architecture", "parameters", "batch", "steps/s", "data")
_RIGHT = {3, 4, 5}  # columns of numbers


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `tasks`."""
    parser = subparsers.add_parser(
        "tasks",
        help="list the inner tasks, their size, speed and data",
        description="List the families of inner tasks. Sizes and speeds are of the family's "
        "default task; a speed is of one run, plain SGD, one thread.",
    )
    parser.add_argument("--family", metavar="NAME", help="this family alone, with its page")
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help=f"time N steps instead of {_SECONDS} seconds"
    )
    parser.add_argument("--no-timing", action="store_true", help="leave the speed out")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the table.

    Raises:
        UnknownNameError: No family has this name.
        MissingExtraError: torch is not installed.
    """
    try:
        import torch

        from ..inner_tasks import families, get_family
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "tasks") from error

    chosen = [get_family(args.family)] if args.family is not None else list(families())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(family, args.steps, timing=not args.no_timing) for family in chosen]
    finally:
        torch.set_num_threads(threads)
    if args.family is not None:
        print(_page(chosen[0]))
    _print_table(rows)
    return 0


def steps_per_second(task: InnerTask, *, steps: int | None = None) -> float:
    """Inner steps of one run per second: draw a batch, gradient, SGD.

    Args:
        task: What to train.
        steps: How many to time; by default as many as fit in 0.2 seconds.
    """
    import torch
    from torch.func import grad

    generator = torch.Generator().manual_seed(0)
    params = task.init(generator)
    arrays = task.arrays("train")
    gradient = grad(task.loss)
    done, start = -1, 0.0  # the first step warms up and is not counted
    while True:
        rows = torch.randint(len(arrays[0]), (task.batch_size,), generator=generator)
        batch = tuple(array.index_select(0, rows) for array in arrays)
        grads = gradient(params, batch)
        params = {name: value - 1e-3 * grads[name] for name, value in params.items()}
        done += 1
        if done == 0:
            start = time.perf_counter()
            continue
        elapsed = time.perf_counter() - start
        if done >= steps if steps is not None else elapsed >= _SECONDS:
            return done / elapsed


def _row(family: TaskFamily, steps: int | None, *, timing: bool) -> tuple[str, ...]:
    from ..inner_tasks.data import missing

    names = (family.name, family.dataset, family.architecture)
    gone = missing(family.data_files)
    if gone:
        return (*names, "-", "-", "-", f"missing: {', '.join(gone)}")
    data = "there" if family.data_files else "built in"
    try:
        task = family.default()
    except MissingExtraError as error:
        return (*names, "-", "-", "-", str(error))
    speed = f"{steps_per_second(task, steps=steps):,.0f}" if timing else "-"
    return (*names, f"{task.n_params():,}", str(task.batch_size), speed, data)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from ..inner_tasks.data import DATA_VARIABLE, data_root

    print_table([_HEADER, *rows], right=_RIGHT)
    if any(row[-1].startswith("missing") for row in rows):
        root = data_root()
        where = f"which is {root}" if root else "which is not set"
        print(f"\nMissing files are looked for under ${DATA_VARIABLE}, {where}.")


def _page(family: TaskFamily) -> str:
    from inspect import getdoc

    return f"{family.name}: {getdoc(type(family))}\n"


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
