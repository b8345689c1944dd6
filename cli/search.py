"""`lhopt search`: choose one fixed setting of an optimizer on the training families."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError, MissingExtraError
from .folders import check_folder

OPTIMIZERS = ("lhopt.SteerableAdamW", "torch.optim.AdamW")


def add_parser(subparsers: Any) -> None:
    """Add `lhopt search`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "search",
        help="choose an optimizer's one default setting on the training families",
        description="Batched random search over an optimizer's settings on tasks of the families "
        "that policies train on, none of them held out: random batches of 24, batches around the "
        "best, and a final comparison on other tasks, longer runs and other seeds, which alone "
        "chooses. With torch.optim.AdamW the schedule is the baseline's cosine and the choice is "
        "the bench's arm `adamw-transferred`. A search that was stopped goes on where it was.",
    )
    parser.add_argument("folder", type=Path, help="gets rows.jsonl and best.json")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default=OPTIMIZERS[0])
    parser.add_argument("--random", type=int, help="random batches of 24 settings")
    parser.add_argument("--refine", type=int, help="batches around the best so far")
    parser.add_argument("--leaders", type=int, help="settings in the final comparison")
    parser.add_argument(
        "--around", action="store_true",
        help="no search: compare a grid of 48 settings around SteerableAdamW's default",
    )  # fmt: skip
    parser.add_argument(
        "--families",
        nargs="+",
        help="families, or groups of them, of the first two stages (default: training)",
    )
    parser.add_argument("--seed", type=int, help="of what is drawn")
    parser.add_argument("--processes", type=int, default=2, help="tasks trained at once")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Search, print the leaders.

    Raises:
        MissingExtraError: A package of the extra "train" is not installed.
        ConfigurationError: A setting out of range, or the folder cannot be written.
    """
    check_folder(args.folder)
    try:
        import torch
        from tqdm import tqdm

        from ..benchmarks.search import Search, SearchConfig, plain, search_specs, sharpest
        from ..env.frontier import POOL_FRONTIER
        from ..env.pool import build_pool
        from ..policy.families import TRAIN_FAMILIES, available, named
    except ImportError as error:
        raise MissingExtraError(error.name or "a package of the extra", "train") from error
    torch.set_num_threads(1)
    given = {
        name: getattr(args, name)
        for name in ("optimizer", "random", "refine", "leaders", "seed")
        if getattr(args, name) is not None
    }
    families = tuple(available(named(args.families or ()) or TRAIN_FAMILIES))
    config = SearchConfig(
        families=families,
        final_families=tuple(available(TRAIN_FAMILIES)),
        around=args.around,
        **given,
    )
    if config.around and config.optimizer != OPTIMIZERS[0]:
        raise ConfigurationError(f"--around belongs to {OPTIMIZERS[0]}; leave one of them out.")
    if min(config.random, config.leaders) < 1 or config.refine < 0:
        raise ConfigurationError(
            f"random={config.random}, refine={config.refine}, leaders={config.leaders}: at least "
            "one random batch and one leader are wanted, and no negative number."
        )
    pools = []
    with tqdm(desc="frontiers", unit="task", leave=False) as bar:
        stages = search_specs(config)
        # a grid has no first stages, and needs no frontiers for them
        for specs in stages[1:] if config.around else stages:

            def measured(done: int, total: int, name: str) -> None:
                bar.total, bar.n = total, done
                bar.set_postfix_str(name)

            pools.append(
                build_pool(
                    plain(specs), config=POOL_FRONTIER, processes=args.processes, progress=measured
                )
            )
    last = pools[-1].entries
    first = [] if config.around else sharpest(pools[0].entries, config.per_family[0])
    print(f"{len(first)} tasks of {len(families)} families; {len(last)} others choose at the end")
    search = Search(config, args.folder, first, last, args.processes)
    with tqdm(unit="batch") as bar:

        def advanced(stage: str, done: int, total: int, best: float) -> None:
            if done == 1:
                bar.reset(total)
                bar.set_description(stage)
            bar.update(done - bar.n)
            bar.set_postfix_str(f"best {best:+.3f} octaves")

        best = search.run(advanced)
    for row in best["leaders"][:5]:
        print(f"{row['log2_speed']:+.3f} octaves  {json.dumps(row['setting'])}")
    print(f"the first is chosen; all of them with their families in {args.folder / 'best.json'}")
    return 0
