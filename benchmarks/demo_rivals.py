"""The demo's rivals, one after another in one process: AdamW tuned and untuned.

A cosine whose rate is tuned on another seed, and 1e-3 with a cosine and without. The same network,
data and loop as `demo_job.py`; nobody steers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .demo_job import BATCH_SIZES, load_data, train

UNTUNED_RATE = 1e-3
TUNING_SEED, SEED = 1, 0


def best_rates(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """The rate of the lowest final validation loss among tuning runs, by length.

    A length at which every rate diverged has none.
    """
    best: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row["run"] == "tuning" and row["kind"] == "end" and row["valid"]["loss"] is not None:
            found = (row["valid"]["loss"], row["lr"])
            best[row["steps"]] = min(best.get(row["steps"], found), found)
    return {steps: rate for steps, (_, rate) in best.items()}


def main() -> None:
    """Tune at every length, then finish the chosen runs and the untuned ones on the demo's seed."""
    parser = argparse.ArgumentParser(description="The rivals of `lhopt demo`.")
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--steps", type=int, required=True, help="of the untuned runs")
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="of the tuned runs")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    splits = load_data(args.data)
    with args.out.open("a") as out:
        one = partial(
            train, splits, optimizer_name="AdamW", batch_size=BATCH_SIZES[args.data], url=None,
            out=out,
        )  # fmt: skip
        final = partial(one, seed=SEED)
        for run, schedule in (("cosine", "cosine"), ("constant", "constant")):
            final(run, steps=args.steps, lr=UNTUNED_RATE, schedule=schedule, curve=True)
        for steps in args.lengths:
            for lr in args.rates:
                one("tuning", steps=steps, lr=lr, schedule="cosine", seed=TUNING_SEED, curve=False)
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
        for steps, lr in best_rates(rows).items():
            final(f"tuned {steps}", steps=steps, lr=lr, schedule="cosine", curve=True)


if __name__ == "__main__":
    main()
