"""`lhopt demo`: see it work, in under three minutes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..core.errors import MissingExtraError
from .folders import check_folder

DATA = ("auto", "digits", "fashion-mnist")


def add_parser(subparsers: Any) -> None:
    """Add `lhopt demo`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="train a real network, steered by a server of its own",
        description="Start a server on a free port, train a small network in a process of its own "
        "that is steered over HTTP, beside AdamW constant, cosine and lr-tuned cosine; print the "
        "table and draw one picture. On digits under half a minute on two cores, on Fashion-MNIST "
        "minutes.",
    )
    parser.add_argument(
        "--data",
        choices=DATA,
        default="auto",
        help="auto: Fashion-MNIST where LHOPT_DATA has it, else scikit-learn's digits",
    )
    parser.add_argument("--steps", type=_positive, metavar="N", help="steps of every job")
    parser.add_argument(
        "--policies", type=Path, metavar="DIR", help="serve these beside the bundled policies"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="DIR",
        help="folder of picture and raw lines (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="few steps and rates: to see that everything works"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Raises:
        MissingExtraError: A package of the extra "demo" is not installed.
        ConfigurationError: The folder cannot be written.
    """
    check_folder(args.output)
    try:
        import matplotlib  # noqa: F401
        import torch  # noqa: F401
        import tqdm  # noqa: F401
        import uvicorn  # noqa: F401

        from ..benchmarks.demo import RATES, Plan, run_demo
        from ..inner_tasks.data import available
        from ..inner_tasks.tables import FASHION
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "demo") from error
    data = args.data
    if data == "auto":
        data = "fashion-mnist" if available((FASHION,)) and not args.quick else "digits"
    steps = args.steps or (60 if args.quick else 400 if data == "fashion-mnist" else 200)
    rates = (1e-2, 3e-2, 1e-1) if args.quick else RATES
    run_demo(Plan(data, steps, rates, args.output, args.policies))
    return 0


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 40")
    return value
