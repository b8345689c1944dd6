"""`lhopt bench`: run the arms, keep the raw rows, print the table, draw the picture."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..core.errors import ConfigurationError, UnknownNameError
from ..env.pool import TaskSpec
from ..policy import artifact, bundled
from ..policy.artifact import Policy
from .arms import ADAMW, ARMS, STEERABLE, Arm, Bench, Results, Row
from .baseline import BaselineConfig, entries
from .report import Summary, by_task, footnote, summarise, table, verdicts
from .tasks import HELD_OUT

#: Runs per task and start: the quick bench's, and the full one's.
QUICK_SEEDS, FULL_SEEDS = (0, 1, 2), tuple(range(10))


def find_policies(paths: Sequence[Path] = ()) -> dict[str, Policy]:
    """Policies by the optimizer they steer: those of `paths`, the bundled one for the others.

    A path replaces the bundled policy of its own optimizer alone.

    Raises:
        ConfigurationError: There is none, two files steer the same optimizer, or one steers an
            optimizer that the bench has no arms for.
    """
    found: dict[str, Policy] = {}
    given: dict[str, Path] = {}
    for path in paths:
        policy = artifact.load(path)
        if policy.optimizer not in (ADAMW, STEERABLE):
            raise ConfigurationError(
                f"{path} steers {policy.optimizer}, which the bench has no arms for; give a policy "
                f"of {ADAMW} or {STEERABLE}."
            )
        if policy.optimizer in given:
            raise ConfigurationError(
                f"{given[policy.optimizer]} and {path} both steer {policy.optimizer}; give one "
                "policy per optimizer."
            )
        given[policy.optimizer] = path
        found[policy.optimizer] = policy
    for optimizer in (ADAMW, STEERABLE):
        if optimizer not in found and bundled.names():
            policy = bundled.for_optimizer(optimizer)
            if policy.optimizer == optimizer:
                found[optimizer] = policy
    if not found:
        raise ConfigurationError(
            "No policy to bench: none is bundled. Give one with --policy FOLDER/NAME.json."
        )
    return found


def choose_tasks(names: Sequence[str]) -> tuple[TaskSpec, ...]:
    """The held-out tasks of these names or families; all of them if none is named.

    Raises:
        UnknownNameError: A name that is no held-out task or family.
    """
    if not names:
        return HELD_OUT
    known = {name for spec in HELD_OUT for name in (spec.task, spec.family)}
    for name in names:
        if name not in known:
            raise UnknownNameError("held-out task", name, known)
    return tuple(spec for spec in HELD_OUT if spec.task in names or spec.family in names)


def run_bench(
    policies: Mapping[str, Policy],
    specs: Sequence[TaskSpec],
    output: Path,
    *,
    seeds: Sequence[int] = QUICK_SEEDS,
    config: BaselineConfig | None = None,
    arms: Sequence[Arm] = ARMS,
    verbose: bool = False,
) -> list[Summary]:
    """Run what is not finished yet, then print the table and draw the picture.

    Args:
        policies: By optimizer.
        specs: Held-out tasks.
        output: Folder of raw rows, summary and picture.
        seeds: Runs per task and start.
        config: The baseline's protocol.
        arms: Which arms.
        verbose: Also print every arm on every task.
    """
    from tqdm import tqdm

    from .picture import draw_speeds

    torch.set_num_threads(1)
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    ready = entries(specs, config, report=print)
    bench = Bench(ready, policies, Results(output / "runs.jsonl"), seeds=seeds, arms=arms)
    for optimizer in (ADAMW, STEERABLE):
        policy = policies.get(optimizer)
        if policy is None:
            print(f"no policy for {optimizer}: its arms are left out")
        else:
            print(f"policy for {optimizer}: {policy.name} {policy.digest[:12]}")
    rows: list[Row] = []
    with tqdm(total=bench.total, unit="run", smoothing=0.05) as bar:
        for row in bench.run():
            rows.append(row)
            bar.update()
            bar.set_postfix_str(f"{row.task} {row.arm}", refresh=False)
    frontiers = {entry.spec.task: entry.frontier for entry in ready}
    summaries = summarise(rows, frontiers)
    print(f"\n{table(summaries)}\n\n{footnote(frontiers, summaries, config)}\n")
    if verbose:
        print(f"Geometric-mean h* by task\n{by_task(summaries)}\n")
    for line in verdicts(summaries):
        print(line)
    (output / "summary.json").write_text(_summary(summaries, policies) + "\n")
    draw_speeds(summaries, output / "speeds.png")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(rows)} runs, {minutes:.1f} minutes; rows and picture in {output}/")
    return summaries


def _summary(summaries: Sequence[Summary], policies: Mapping[str, Policy]) -> str:
    rows = []
    for summary in summaries:
        row = asdict(summary)
        row["arm"] = summary.arm.name
        for name in ("beaten", "paired"):  # JSON has no nan
            row[name] = None if math.isnan(row[name]) else row[name]
        rows.append(row)
    digests = {name: policy.digest for name, policy in policies.items()}
    return json.dumps({"policies": digests, "arms": rows}, indent=1, allow_nan=False)
