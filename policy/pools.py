"""The tasks of a training, of its warm start, of its evaluation and of a comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from ..env.frontier import POOL_FRONTIER, cache_key
from ..env.pool import TaskPool, TaskSpec, build_pool, draw_specs, seconds_per_run_step
from ..inner_tasks.registry import get_task
from .experts import expert_name
from .families import BEYOND_FAMILIES, available, weights_by_family
from .imitation import ImitationConfig
from .train_config import TrainConfig


def imitation_specs(config: TrainConfig) -> list[TaskSpec]:
    """Tasks of the warm start: other draws of the training families than PPO's."""
    n = ImitationConfig(**(config.imitation or {})).tasks_per_family
    return draw_specs(available(config.trained), n, config.steps, config.seed + 3)


def pool_specs(
    config: TrainConfig, families: Sequence[str], valid_families: Sequence[str]
) -> tuple[list[TaskSpec], list[TaskSpec]]:
    """Candidates for PPO's pool and for the evaluation's, drawn from those families."""
    return (
        draw_specs(families, config.tasks_per_family, config.steps, config.seed),
        draw_specs(valid_families, config.valid_per_family, config.steps, config.seed + 7),
    )


def comparison_specs(config: TrainConfig) -> list[TaskSpec]:
    """Tasks that no training by default touches: those of comparisons, and of broader trainings."""
    return pool_specs(config, available(BEYOND_FAMILIES), ())[0]


def _frontier_name(spec: TaskSpec) -> str:
    return f"{cache_key(get_task(spec.task), spec.steps, POOL_FRONTIER)}.json"


def compared_names(config: TrainConfig) -> list[str]:
    """Files of the cache that a comparison reads beside those of the training."""
    return [_frontier_name(spec) for spec in comparison_specs(config)]


def measured_names(config: TrainConfig) -> list[str]:
    """Files of the cache that a training with this configuration reads before its first update."""
    specs, valid = pool_specs(config, available(config.trained), available(config.valid_families))
    names = [_frontier_name(spec) for spec in specs + valid]
    if config.imitation is not None:
        imitation = ImitationConfig(**config.imitation)
        names += [
            expert_name(get_task(s.task), s.steps, config.env_config(), imitation)
            for s in imitation_specs(config)
        ]
    return names


def make_pools(
    config: TrainConfig,
    *,
    processes: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
    device: str = "cpu",
    costs: bool = True,
) -> tuple[TaskPool, TaskPool | None]:
    """Training and evaluation pool of a configuration; frontiers come from the cache or are made.

    Without an evaluation family there is no such pool, and nothing chooses among checkpoints.

    Families whose data is missing are left out with a log line: which tasks a policy trained on
    stands in its artifact.

    Args:
        config: What to train.
        processes: Frontiers measured at once, and on the CPU costs.
        progress: Called with done, total and the task's name.
        device: Of the inner runs, whose cost is measured there.
        costs: Whether to measure it; a training that is resumed has the weights that came of it.
    """
    train, valid = available(config.trained), available(config.valid_families)
    specs, valid_specs = pool_specs(config, train, valid)
    n = len(specs) + len(valid_specs)
    measure = partial(
        seconds_per_run_step,
        rule=config.env_config().steered.rule,
        n_runs=config.runs_per_bucket,
        device=device,
    )
    pool = build_pool(
        specs,
        config=POOL_FRONTIER,
        keep_blunt=config.keep_blunt,
        processes=processes,
        progress=(lambda i, _, name: progress(i, n, name)) if progress else None,
        cost=measure if costs else None,
        cost_processes=min(processes, os.cpu_count() or 1) if device == "cpu" else 1,
        steps_power=config.steps_power,
        cost_power=config.cost_power,
        family_weights=weights_by_family(config.family_weights, config.trained, "family_weights"),
    )
    if not valid_specs:
        return pool, None
    valid_pool = build_pool(
        valid_specs,
        config=POOL_FRONTIER,
        keep_blunt=config.keep_blunt,
        processes=processes,
        progress=(lambda i, _, name: progress(i + len(specs), n, name)) if progress else None,
    )
    return pool, valid_pool
