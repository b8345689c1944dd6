"""`lhopt bench`: what a policy is worth, on tasks it never saw, against a tuned baseline."""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError, MissingExtraError
from .folders import check_folder

#: Words that run one experiment: its module under `benchmarks/experiments`, which has
#: `run(output, quick)`; it draws a picture and answers with a table.
EXPERIMENTS = {
    "short-horizon": "short_horizon",
    "local-sgd": "communication",
    "quadratic-policy": "quadratic_policy",
}
#: The words, and the options that each of them takes.
OPTIONS: dict[str, tuple[str, ...]] = {
    "table": ("tier", "tasks", "policy", "quick", "processes", "output"),
    "engine": ("device",),
    "step-time": (),
    "frontiers": ("tier", "tasks", "fresh", "device"),
    "optimizers": ("tier", "tasks", "quick", "output"),
    "suited": ("quick",),
    "parts": ("processes", "output"),
    "held-out": ("fresh",),
    **dict.fromkeys(EXPERIMENTS, ("quick", "output")),
}
DEFAULTS: dict[str, Any] = {
    "tier": "small",
    "processes": 2,
    "quick": False,
    "policy": [],
    "output": Path("bench-output"),
    "tasks": [],
    "fresh": False,
    "device": "cpu",
}


def add_parser(subparsers: Any) -> None:
    """Add `lhopt bench`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure policies on held-out tasks against a tuned baseline",
        description="Without a word: run every arm of a tier of held-out tasks, print tables of "
        "speeds with intervals, and write raw rows and pictures. Tiers: small (nothing to "
        "download), long (two of them at four times the length), real and real-long (data under "
        "LHOPT_DATA), smoke (three tasks, under a minute). A bench that was stopped goes "
        "on where it was. `optimizers` trains the same tasks with every optimizer that `lhopt "
        "optimizers` lists, alone and steered; `suited` does so on training tasks, to tell which "
        "of them may take the default policy unasked; `parts` leaves out the parts of "
        "SteerableAdamW's default one at a time, on training tasks. `engine` prints the batched "
        "engine's speed, `step-time` what an optimizer's step costs; `frontiers` lists the "
        "baseline's frontiers, "
        "and with --fresh measures them again; `held-out` checks that no policy trained on the "
        "like of these tasks, and with --fresh writes the list of what policies train on. "
        "`short-horizon` (why a short look ahead chooses rates that are too small), "
        "`local-sgd` (error against communication rounds) and "
        "`quadratic-policy` (a policy against the known optimum) print a table and draw a picture. "
        "An option that a word does not take is refused.",
    )
    parser.add_argument(
        "what", nargs="?", choices=OPTIONS, default="table", help="(default: table)"
    )
    parser.add_argument("--tier", metavar="TIER", help="(default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, metavar="N",
        help="workers of one thread each; 1 is this process (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer seeds; experiments: smaller")
    parser.add_argument(
        "--policy",
        action="append",
        type=Path,
        metavar="PATH",
        help="a policy instead of the bundled one of the same optimizer, NAME.json; repeatable, "
        "one per optimizer",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="folder of raw rows and pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", "--task", nargs="+", metavar="NAME",
        help="only these tasks of the tier, or families",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="with `frontiers`: measure them again")
    parser.add_argument(
        "--device",
        help="with `frontiers` and `engine`: of the runs (cpu, cuda; default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(func=run, **DEFAULTS)


def run(args: argparse.Namespace) -> int:
    """Print the table, the engine's speeds or the frontiers.

    Raises:
        MissingExtraError: A package of the extra "bench" is not installed.
        ConfigurationError: An option that does not belong to the word, or a folder that cannot be
            written.
    """
    _check_options(args)
    if "output" in OPTIONS[args.what]:
        check_folder(args.output)
    try:
        import matplotlib  # noqa: F401  (a bench of minutes must not fail at its picture)
        import torch
        import tqdm  # noqa: F401

        from ..benchmarks import bench
        from ..inner_tasks.engine import checked_device
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "bench") from error
    checked_device(args.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if args.what == "engine":
            return _engine(args.device)
        if args.what == "held-out":
            return _held_out(fresh=args.fresh)
        if args.what in EXPERIMENTS:
            module = import_module(
                f"..benchmarks.experiments.{EXPERIMENTS[args.what]}", __package__
            )
            print(module.run(args.output, args.quick))
            return 0
        if args.what == "step-time":
            return _step_time()
        if args.what == "suited":
            from ..benchmarks import suited

            suited.run(quick=args.quick)
            return 0
        if args.what == "parts":
            from ..benchmarks import parts

            print(parts.run(args.output, processes=args.processes))
            return 0
        if args.what == "frontiers":
            return _frontiers(args)
        if args.what == "optimizers":
            from ..benchmarks import optimizer_table

            seeds = optimizer_table.QUICK_SEEDS if args.quick else optimizer_table.FULL_SEEDS
            tasks = bench.choose(args.tier, args.tasks)
            optimizer_table.run_bench(tasks, args.output, seeds=seeds)
            return 0
        if args.policy:
            _check_used(args)
        bench.run_bench(
            args.tier,
            bench.find_policies(args.policy),
            args.output,
            names=args.tasks,
            quick=args.quick,
            processes=args.processes,
        )
    finally:
        torch.set_num_threads(threads)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse an option that the word would not read: its figures would be taken for others.

    Raises:
        ConfigurationError: There is one, other than by default.
    """
    own = OPTIONS[args.what]
    for name, default in DEFAULTS.items():
        if name not in own and getattr(args, name) != default:
            words = ", ".join(word for word, options in OPTIONS.items() if name in options)
            takes = ", ".join(f"--{option}" for option in own) or "no option"
            raise ConfigurationError(
                f"--{name} belongs to {words}; `lhopt bench {args.what}` takes {takes}. Leave it "
                "out."
            )


def _check_used(args: argparse.Namespace) -> None:
    """Refuse a policy that no arm of the tier runs: a reader would take another's figures for it.

    Raises:
        ConfigurationError: There is such a policy.
    """
    from ..benchmarks.arms import get_arm, get_tier
    from ..policy import artifact

    arms = [get_arm(name) for name in get_tier(args.tier).seeds]
    steered = {arm.optimizer for arm in arms if arm.wants_policy}
    for path in args.policy:
        optimizer = artifact.load(path).optimizer
        if optimizer not in steered:
            raise ConfigurationError(
                f"{path} steers {optimizer}, and tier {args.tier!r} has no arm that runs it, only "
                f"arms of {', '.join(sorted(steered))}; take --tier small."
            )


def _held_out(*, fresh: bool) -> int:
    from ..benchmarks import held_out

    if fresh:
        held_out.publish()
    text, sound = held_out.verdict()
    print(text)
    return 0 if sound else 1


def _engine(device: str) -> int:
    from ..benchmarks.engine_speed import CASES, lines, measure, on_device

    if device != "cpu":
        for line in on_device(device):
            print(line, flush=True)
        return 0

    print("CPU time on one thread, in turns, medians; x: against one run at a time\n", flush=True)
    for case in CASES:
        for line in lines(measure(case)):
            print(line, flush=True)
    return 0


def _step_time() -> int:
    from tqdm import tqdm

    from ..benchmarks.step_time import DEPTH, WIDTH, lines, measure

    print("about a minute", flush=True)
    print(
        f"CPU time of optimizer.step() on one thread, {DEPTH} layers of {WIDTH} x {WIDTH}, in "
        "turns, medians; x: against torch.optim.AdamW(foreach=True)\n",
        flush=True,
    )
    costs = measure(turns=partial(tqdm, desc="rounds", unit="", leave=False))
    for line in lines(costs):
        print(line, flush=True)
    return 0


def _frontiers(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..benchmarks.bench import chosen
    from ..benchmarks.frontier_files import bench_task, lines

    for spec, tier in chosen(args.tier, args.tasks):
        with tqdm(unit="step", unit_scale=True, desc=spec.task, leave=False) as bar:
            task = bench_task(
                spec, tier, fresh=args.fresh, report=tqdm.write, progress=partial(_advance, bar),
                device=args.device,
            )  # fmt: skip
        print(lines(task), flush=True)
    return 0


def _advance(bar: Any, n: int) -> None:
    bar.update(n)
