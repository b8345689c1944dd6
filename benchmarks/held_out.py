"""The held-out rule: what it forbids, what is published for it, and its check.

No task that a policy trains on, is chosen by, or whose optimizer's default was searched on, may
share with a task of `benchmarks/tasks.py`

- its data set,
- an architecture of `HELD_OUT_ARCHITECTURES`,
- its complete configuration.

`training_tasks.json` names every such task with its data, its architecture and the sha256 of its
configuration, so that the rule can be checked without this code. No data are read here.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..core.errors import ConfigurationError, UnknownNameError
from ..inner_tasks.registry import Configured, get_family, parse
from ..policy import bundled
from ..policy.families import BEYOND_FAMILIES, TRAIN_FAMILIES, VALID_FAMILIES
from ..policy.lineage import lineage
from ..policy.pools import comparison_specs, imitation_specs, pool_specs
from ..policy.train_config import TrainConfig
from .tasks import ALL, HELD_OUT_ARCHITECTURES, HELD_OUT_DATASETS

FILE: Final = Path(__file__).parent / "training_tasks.json"


@dataclass(frozen=True, order=True)
class Description:
    """What the rule compares of one task.

    Attributes:
        name: As `get_task` takes it.
        dataset: The family's data set.
        architecture: The family's architecture; with its cell behind a slash where one is drawn.
        sha256: Of data set, architecture family and complete configuration as JSON with sorted
            keys; the family's name is no part, so a copy under another name is no new task.
    """

    name: str
    dataset: str
    architecture: str
    sha256: str


def describe(name: str) -> Description:
    """One task's description.

    Raises:
        UnknownNameError: No family has this name.
        ConfigurationError: The name cannot be read, or a setting in it is not allowed.
    """
    part = parse(name)
    family = get_family(part.family)
    if not isinstance(family, Configured):
        raise ConfigurationError(
            f"{part.family} does not tell its members' configurations, which the held-out rule "
            "compares; give it draw(seed), plain_config() and complete(config)."
        )
    config = family.draw(part.seed) if part.seed is not None else family.plain_config()
    if part.settings is not None:
        config = family.complete(part.settings)
    described = {"dataset": family.dataset, "architecture": family.architecture, **config}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    cell = f"/{config['cell']}" if "cell" in config else ""
    return Description(name, family.dataset, family.architecture + cell, digest)


def task_names(config: TrainConfig) -> list[str]:
    """Tasks of a training: defaults of its families, and the draws of each of its stages."""
    specs, valid = pool_specs(config, config.families, config.valid_families)
    drawn = specs + valid
    if config.imitation is not None:
        drawn += imitation_specs(config)
    return [*config.families, *config.valid_families, *(spec.task for spec in drawn)]


def training_names() -> list[str]:
    """Every task that a training with the defaults, or the search of a default setting, uses."""
    from .search import SearchConfig, search_specs

    searched = SearchConfig(families=TRAIN_FAMILIES, final_families=TRAIN_FAMILIES)
    specs = [spec for stage in search_specs(searched) for spec in stage]
    config = TrainConfig(families=TRAIN_FAMILIES, valid_families=VALID_FAMILIES)
    # a policy is chosen by comparisons too, and broader trainings take other families
    drawn = (spec.task for spec in comparison_specs(config))
    beyond = [*BEYOND_FAMILIES, *drawn]
    return list(dict.fromkeys([*task_names(config), *(spec.task for spec in specs), *beyond]))


def overlaps(tasks: Iterable[Description]) -> list[str]:
    """One line for each task that breaks the rule and each way in which it does."""
    held = {describe(spec.task).sha256: spec.task for spec in ALL}
    found = []
    for task in tasks:
        if task.dataset in HELD_OUT_DATASETS:
            found.append(f"{task.name}: its data, {task.dataset}, are held out")
        if task.architecture.split("/")[0] in HELD_OUT_ARCHITECTURES:
            found.append(f"{task.name}: its architecture, {task.architecture}, is held out")
        if task.sha256 in held:
            found.append(f"{task.name}: its configuration is that of {held[task.sha256]}")
    return found


def bundled_overlaps(name: str) -> list[str]:
    """`policy_overlaps` of a bundled policy, by its manifest."""
    manifest = json.loads((bundled.FOLDER / f"{name}.json").read_text())
    return policy_overlaps(name, manifest.get("training", {}))


def policy_overlaps(name: str, training: Mapping[str, Any]) -> list[str]:
    """One line for each task that a policy, or what it began from, met and that breaks the rule.

    Args:
        name: The policy's name, for messages.
        training: `Policy.training`: its tasks, and the configuration that names its families.
    """
    names: dict[str, None] = {}
    for stage in lineage(training):
        config = stage.get("config", {})
        tasks = [str(task) for task, _ in stage.get("tasks", [])]
        families = [*config.get("families", []), *config.get("valid_families", [])]
        if not tasks or not families:
            if "combined" in stage or "transferred" in stage:
                continue  # made of others, which follow
            return [f"{name}: its manifest does not say what it was trained on"]
        imitation = config.get("imitation")
        stages = TrainConfig(
            families=tuple(config["families"]),
            valid_families=tuple(config["valid_families"]),
            tasks_per_family=config["tasks_per_family"],
            steps=tuple(config["steps"]),
            seed=config["seed"],
            imitation=imitation and {"tasks_per_family": imitation["tasks_per_family"]},
        )
        try:
            names |= dict.fromkeys([*tasks, *task_names(stages)])
        except UnknownNameError as error:
            return [f"{name}: trained on what this version does not know: {error}"]
    if not names:
        return [f"{name}: its manifest does not say what it was trained on"]
    try:
        return overlaps([describe(task) for task in names])
    except UnknownNameError as error:
        return [f"{name}: trained on what this version does not know: {error}"]


def published() -> tuple[Description, ...]:
    """What `training_tasks.json` says.

    Raises:
        ConfigurationError: It is not there, or is no such file.
    """
    try:
        rows = json.loads(FILE.read_text())["tasks"]
        return tuple(Description(**row) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{FILE.name} cannot be read ({error!r}); write it with `lhopt bench held-out --fresh`."
        ) from error


def publish() -> None:
    """Write `training_tasks.json`."""
    rows = [asdict(describe(name)) for name in training_names()]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    FILE.write_text(f'{{"tasks": [\n{lines}\n]}}\n')


def stale(file: Sequence[Description], names: Iterable[str] | None = None) -> list[str]:
    """One line for each task that the file lacks, has too much, or describes otherwise.

    Args:
        file: What is published.
        names: Tasks that the code uses; `training_names()` if not given.
    """
    now = {name: describe(name) for name in (training_names() if names is None else names)}
    then = {task.name: task for task in file}
    found = [f"{name}: not in {FILE.name}" for name in now if name not in then]
    found += [f"{name}: in {FILE.name}, but not used" for name in then if name not in now]
    found += [
        f"{name}: {FILE.name} has another configuration"
        for name in now
        if name in then and then[name] != now[name]
    ]
    return found


def verdict() -> tuple[str, bool]:
    """The check of everything as text, and whether the rule holds."""
    file = published()
    problems = [("Training tasks", overlaps(file)), (FILE.name, stale(file))]
    for name in bundled.names():
        problems.append((f"Bundled policy {name}", bundled_overlaps(name)))
    kinds = Counter(f"{task.dataset} ({task.architecture})" for task in file)
    lines = [
        f"{len(ALL)} held-out tasks: data {', '.join(HELD_OUT_DATASETS)}; "
        f"architectures {', '.join(HELD_OUT_ARCHITECTURES)}",
        f"{len(file)} training and validation tasks: "
        + ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items())),
    ]
    cells = sum(task.architecture.endswith("/gru") for task in file)
    if cells:
        lines.append(
            f"Note: {cells} of them have GRU cells, on bits; what is held out under 'gru' is the "
            "GRU language model, not the cell."
        )
    for what, found in problems:
        lines.append(f"{what}: {'sound' if not found else f'BROKEN in {len(found)} ways'}")
        lines += [f"  {line}" for line in found[:5]]
        if len(found) > 5:
            lines.append(f"  and {len(found) - 5} more")
    return "\n".join(lines), not any(found for _, found in problems)
