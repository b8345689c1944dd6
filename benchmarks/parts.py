"""`lhopt bench parts`: what each part of SteerableAdamW's default gives, left out one at a time.

Every variant lacks one part and is given its own best rate, because most parts change what a rate
means: the best of five, chosen on one set of seeds and read on another. Tasks are among those of
the search's final stage, all of training families; nothing here is held out, and nothing is chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.types import FloatArray
from ..env.frontier import POOL_FRONTIER
from ..env.pool import Entry, build_pool, seconds_per_run_step
from ..optimizers.update import ADAMW, StepRule
from ..policy.families import TRAIN_FAMILIES, available
from .search import (
    STEERABLE_NAME,
    SearchConfig,
    Setting,
    default,
    plain,
    search_specs,
    speeds,
    workers,
)

#: Rates that each variant may choose from, in units of the default's.
FACTORS = tuple(10.0**power for power in (-0.5, -0.25, 0.0, 0.25, 0.5))
#: A rate is chosen on the first and read on the second.
CHOOSE_ON, READ_ON = (810,), (860, 861)
#: Tasks of each family, and the longest run: the whole takes about ten minutes.
PER_FAMILY, LONGEST = 2, 600
#: Runs of the bucket in which a step is timed.
TIMED_RUNS = 32


def variants(whole: Setting) -> dict[str, Setting]:
    """The default, and the default without each part that it has, by what was left out."""
    rule, found = whole.rule, {"nothing": whole}
    without: dict[str, StepRule] = {}
    if rule.orthogonal:
        without["orthogonal momentum"] = replace(rule, orthogonal=False, precondition=False)
        if rule.ns_steps:
            without["Newton-Schulz (rows of one norm)"] = replace(rule, ns_steps=0)
        if rule.precondition:
            without["preconditioning (by the second moment)"] = replace(rule, precondition=False)
        if rule.nesterov:
            without["look-ahead of the momentum"] = replace(rule, nesterov=False)
    if rule.trust_power:
        without["trust ratio"] = replace(rule, trust_power=0.0)
    if rule.average:
        without["weight average"] = replace(rule, average=0.0)
    if rule.clip:
        without["clip"] = replace(rule, clip=False)
    if rule.cautious:
        without["cautious updates"] = replace(rule, cautious=False)
    if rule.vector_scale != 1.0:
        size = "larger" if rule.vector_scale > 1.0 else "smaller"
        without[f"{size} steps of vectors"] = replace(rule, vector_scale=1.0)
    found |= {name: replace(whole, rule=changed) for name, changed in without.items()}
    if rule.relative_eps:
        absolute = replace(rule, relative_eps=False)
        found["relative eps"] = replace(whole, rule=absolute, values={**whole.values, "eps": 1e-8})
    for name, plainly in (
        ("betas (0.9, 0.999 instead)", {"one_minus_beta1": 0.1, "one_minus_beta2": 1e-3}),
        ("weight decay (0.01 instead)", {"weight_decay": 0.01}),
    ):
        found[name] = replace(whole, values={**whole.values, **plainly})
    found["schedule (warm-up + cosine instead)"] = replace(whole, schedule=None)
    found["everything (AdamW, warm-up + cosine)"] = Setting(
        ADAMW,
        {
            "learning_rate": 3e-2,
            "one_minus_beta1": 0.1,
            "one_minus_beta2": 1e-3,
            "eps": 1e-8,
            "weight_decay": 0.01,
        },
        None,
    )
    return found


@dataclass(frozen=True)
class Part:
    """What a default is worth without one part.

    Attributes:
        name: What was left out.
        log2_speed: `(families,)` at its best rate.
        factor: That rate, in units of the variant's own.
        at_one: `(families,)` log2 speed at the variant's own rate.
        milliseconds: `(families,)` CPU time of a step of one run among a bucket's.
    """

    name: str
    log2_speed: FloatArray
    factor: float
    at_one: FloatArray
    milliseconds: FloatArray


def measure(
    entries: Sequence[Entry],
    found: dict[str, Setting],
    *,
    processes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Part]:
    """Every variant on every task.

    Args:
        entries: Tasks with their frontiers.
        found: Variants by name.
        processes: Tasks trained at once.
        progress: Called with a variant's name when it is done.
    """
    families = list(dict.fromkeys(entry.spec.family for entry in entries))
    by_family = [[i for i, e in enumerate(entries) if e.spec.family == f] for f in families]
    parts = []
    with workers(processes) as pool:
        for name, setting in found.items():
            table = np.array(list(pool(partial(_speeds, setting), entries)))
            table = np.array([table[rows].mean(axis=0) for rows in by_family])
            choose, read = table[:, :, : len(CHOOSE_ON)], table[:, :, len(CHOOSE_ON) :]
            best = int(choose.mean(axis=(0, 2)).argmax())
            # timed here, one after another: neighbours of a pool would be in each other's way
            cost = [1e3 * seconds_per_run_step(e.task, setting.rule, TIMED_RUNS) for e in entries]
            parts.append(
                Part(
                    name,
                    read[:, best].mean(axis=-1),
                    FACTORS[best],
                    read[:, FACTORS.index(1.0)].mean(axis=-1),
                    np.array([np.mean([cost[i] for i in rows]) for rows in by_family]),
                )
            )
            if progress:
                progress(name)
    return parts


def _speeds(setting: Setting, entry: Entry) -> list[list[float]]:
    """Log2 speeds `(factors, seeds)` of one task."""
    rates = [
        replace(
            setting,
            values={
                **setting.values,
                "learning_rate": factor * setting.values["learning_rate"],
            },
        )
        for factor in FACTORS
    ]
    table: list[list[float]] = speeds(entry, rates, (*CHOOSE_ON, *READ_ON)).tolist()
    return table


def text(parts: Sequence[Part], families: Sequence[str]) -> str:
    """Two tables: what each part gives, and where orthogonalising costs more than it earns."""
    whole = parts[0]
    lines = [
        f"{'left out':<38} {'h*':>5} {'part gives':>10} {'rate':>6} {'cost':>6}  worst family",
        "-" * 92,
    ]
    for part in sorted(parts, key=lambda p: (p is not whole, p.log2_speed.mean())):
        gives = "" if part is whole else f"x{_times(whole.log2_speed - part.log2_speed):.2f}"
        cost = np.exp(np.mean(np.log(part.milliseconds / whole.milliseconds)))
        worst = int(part.log2_speed.argmin())
        lines.append(
            f"{part.name:<38} {_times(part.log2_speed):5.2f} {gives:>10} x{part.factor:<5.3g} "
            f"x{cost:<5.2f}  {families[worst]} {2.0 ** part.log2_speed[worst]:.2f}"
        )
    lines += [
        "",
        "h*: geometric mean over families against AdamW cosine with rate and decay tuned "
        f"({len(POOL_FRONTIER.rates)} x {len(POOL_FRONTIER.decays)}, {len(POOL_FRONTIER.seeds)} "
        "seeds), each",
        "variant at its best of five rates; rate: that rate in units of its own; cost: CPU time of "
        "a step in a bucket.",
    ]
    named = {part.name: part for part in parts}
    plainly = named.get("orthogonal momentum")
    if plainly is not None:
        lines += [
            "",
            "Orthogonal momentum by family: h* it gives, times its cost, and what is left",
        ]
        gain = whole.log2_speed - plainly.log2_speed
        cost = whole.milliseconds / plainly.milliseconds
        for i in np.argsort(gain - np.log2(cost)):
            net = 2.0 ** gain[i] / cost[i]
            verdict = "costs more than it earns" if net < 1.0 else ""
            lines.append(
                f"  {families[i]:<20} x{2.0 ** gain[i]:<5.2f} step x{cost[i]:<5.2f} "
                f"in time x{net:<5.2f} {verdict}".rstrip()
            )
    return "\n".join(lines)


def _times(log2: FloatArray) -> float:
    return float(2.0 ** np.mean(log2))


def run(output: Path, *, processes: int = 2) -> str:
    """Measure, write `parts.json`, and answer with the table."""
    from tqdm import tqdm

    families = tuple(available(TRAIN_FAMILIES))
    config = SearchConfig(families=families, final_families=families)
    specs = [spec for spec in plain(search_specs(config)[1]) if spec.steps <= LONGEST]
    with tqdm(desc="frontiers", total=len(specs), unit="task", leave=False) as bar:
        sharp = build_pool(
            specs, config=POOL_FRONTIER, processes=processes, progress=lambda *_: _advance(bar)
        ).entries
    entries = [
        entry
        for i, entry in enumerate(sharp)
        if sum(e.spec.family == entry.spec.family for e in sharp[:i]) < PER_FAMILY
    ]
    found = variants(default(STEERABLE_NAME))
    with tqdm(total=len(found), unit="variant", leave=False) as bar:
        parts = measure(entries, found, processes=processes, progress=lambda _: _advance(bar))
    names = list(dict.fromkeys(entry.spec.family for entry in entries))
    rows = [
        {
            "left_out": part.name,
            "rate_factor": part.factor,
            "log2_speed": _named(names, part.log2_speed),
            "log2_speed_at_own_rate": _named(names, part.at_one),
            "milliseconds": _named(names, part.milliseconds),
            "setting": found[part.name].to_json(),
        }
        for part in parts
    ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "parts.json").write_text(json.dumps(rows, indent=1) + "\n")
    return f"{len(entries)} tasks of {len(names)} training families\n\n{text(parts, names)}"


def _named(names: Iterable[str], values: FloatArray) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def _advance(bar: Any) -> None:
    bar.update(1)
