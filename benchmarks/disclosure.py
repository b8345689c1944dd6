"""What a sceptic asks before reading a figure: seeds, tasks, tuning, code, machine, policies."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..policy.artifact import Policy
from ..policy.lineage import lineage
from .held_out import policy_overlaps
from .summary import Section

PACKAGE = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """The checkout's commit, with a word on uncommitted changes; None outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # an installed package may lie inside somebody else's checkout
        if Path(git("rev-parse", "--show-toplevel")).resolve() != PACKAGE:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def disclose(sections: Sequence[Section], policies: Mapping[str, Policy]) -> dict[str, Any]:
    """Everything that the figures depend on, as a JSON object."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads_per_process": torch.get_num_threads(),
        "tiers": {section.tier: _tier(section) for section in sections},
        "policies": [_policy(optimizer, policy) for optimizer, policy in policies.items()],
    }


def _tier(section: Section) -> dict[str, Any]:
    return {
        "resamples": section.resamples,
        "seeds": {line.arm: list(line.seeds) for line in section.lines},
        "tasks": [
            {
                "task": task.spec.task,
                "steps": task.spec.steps,
                "selection": task.selection,
                "baselines": {
                    frontier.strength: {
                        "trials": len(frontier.trials),
                        "tuning_seeds": max(
                            (len(trial["losses"]) for trial in frontier.trials), default=0
                        ),
                        "final_seeds": max(
                            (len(trial.get("final_losses", ())) for trial in frontier.trials),
                            default=0,
                        ),
                        "rounds": frontier.rounds,
                        "edge": frontier.edge,
                        "setting": dict(frontier.setting),
                        "seeds": list(frontier.seeds),
                        "horizons": list(frontier.horizons),
                    }
                    for frontier in (task.k24, task.five_by_seven)
                },
            }
            for task in section.tasks
        ],
    }


def _policy(optimizer: str, policy: Policy) -> dict[str, Any]:
    training = policy.training
    tasks = training.get("tasks")
    return {
        "optimizer": optimizer,
        "name": policy.name,
        "digest": policy.digest,
        "training_cpu_seconds": training.get("cpu_seconds"),
        "all_cpu_seconds": _cpu_seconds(training),
        "training_tasks": None if tasks is None else len(tasks),
        "training_families": training.get("config", {}).get("families"),
        "held_out_rule": policy_overlaps(policy.name, training),
    }


def _cpu_seconds(training: Mapping[str, Any]) -> float | None:
    """Of a training and of all that it came from; None if one of them does not say."""
    stages = {json.dumps(stage, sort_keys=True, default=str): stage for stage in lineage(training)}
    if not stages or any(stage.get("cpu_seconds") is None for stage in stages.values()):
        return None
    return float(sum(stage["cpu_seconds"] for stage in stages.values()))


def text(disclosed: Mapping[str, Any]) -> str:
    """The same for people."""
    lines = [
        f"Code: commit {disclosed['commit'] or 'unknown (not a checkout)'}; Python "
        f"{disclosed['python']}, torch {disclosed['torch']}, {disclosed['machine']}, "
        f"{disclosed['cores']} cores, {disclosed['torch_threads_per_process']} torch thread(s), of "
        "this report; rows that were read back may be of earlier commits, at which all that their "
        "stamp names was the same."
    ]
    for name, tier in disclosed["tiers"].items():
        tasks = ", ".join(f"{task['task']} {task['steps']}" for task in tier["tasks"])
        lines.append(f"Tier {name}: {len(tier['tasks'])} tasks (steps): {tasks}.")
        by_seeds: dict[str, list[str]] = {}
        for arm, seeds in tier["seeds"].items():
            by_seeds.setdefault(_range(seeds), []).append(arm)
        lines += [f"  Seeds {seeds}: {', '.join(arms)}." for seeds, arms in by_seeds.items()]
        for strength in ("k24", "5x7"):
            lines.append(f"  Baseline {strength}: {_trials(tier['tasks'], strength)}")
    for policy in disclosed["policies"]:
        seconds, tasks = policy["training_cpu_seconds"], policy["training_tasks"]
        every = policy["all_cpu_seconds"]
        lines.append(
            f"Policy {policy['name']} {policy['digest'][:12]} for {policy['optimizer']}: trained "
            f"in {'unknown' if seconds is None else f'{seconds:,.0f}'} CPU seconds on "
            f"{'an unknown number of' if tasks is None else tasks} tasks"
            + ("" if every in (None, seconds) else f" ({every:,.0f} with what it began from)")
            + "."
            + _rule(policy["held_out_rule"])
        )
    return "\n".join(lines)


def _rule(broken: Sequence[str]) -> str:
    """What a policy's training says of its figures here."""
    if not broken:
        return " None of them is held out."
    more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f" ITS FIGURES SHOW NOTHING: {broken[0]}{more}."


def _range(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
    return f"{seeds[0]}-{seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _trials(tasks: Sequence[Mapping[str, Any]], strength: str) -> str:
    found = [(task["task"], task["baselines"][strength]) for task in tasks]
    counts = sorted({baseline["trials"] for _, baseline in found})
    seeds = sorted({baseline["tuning_seeds"] for _, baseline in found})
    more_seeds = sorted({baseline["final_seeds"] for _, baseline in found})
    runs = sorted({len(baseline["seeds"]) for _, baseline in found})
    more = [
        f"{task} {baseline['trials']} in {baseline['rounds']} rounds"
        for task, baseline in found
        if baseline["rounds"] > 1
    ]
    edges = [task for task, baseline in found if baseline["edge"]]
    return (
        f"{_span(counts)} trials a task on {_span(seeds)} tuning seeds"
        + (f", the best six on {_span(more_seeds)} more" if more_seeds != [0] else "")
        + f"; frontier on {_span(runs)} other seeds; "
        + (f"widened: {', '.join(more)}; " if more else "")
        + (f"STILL ON AN EDGE: {', '.join(edges)}." if edges else "every optimum inside its box.")
    )


def _span(values: Sequence[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"
