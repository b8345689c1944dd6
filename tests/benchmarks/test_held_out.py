from __future__ import annotations

import hashlib
import json

import pytest

from lhopt.benchmarks.baseline import SHIPPED, BaselineConfig, BenchFrontier, describe, file_name
from lhopt.benchmarks.tasks import HELD_OUT, HELD_OUT_FAMILIES, MAX_RESOLUTION
from lhopt.env.pool import TaskSpec, draw_specs
from lhopt.inner_tasks.registry import families, get_family, get_task
from lhopt.policy.train import TRAIN_FAMILIES, VALID_FAMILIES, TrainConfig


def config_hash(name: str) -> str:
    """Of what was drawn, without the family's name: a copy under another name is no new task."""
    family = get_family(name.split("/")[0])
    config = getattr(get_task(name), "config", {"task": name})
    described = {"dataset": family.dataset, "architecture": family.architecture, **config}
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def test_eight_tasks_or_more_from_five_families_that_no_policy_has_seen() -> None:
    assert len(HELD_OUT) >= 8
    assert {spec.family for spec in HELD_OUT} == set(HELD_OUT_FAMILIES)
    assert not set(HELD_OUT_FAMILIES) & {*TRAIN_FAMILIES, *VALID_FAMILIES}


def test_no_held_out_family_shares_data_and_architecture_with_a_training_family() -> None:
    seen = {
        (get_family(name).dataset, get_family(name).architecture)
        for name in (*TRAIN_FAMILIES, *VALID_FAMILIES)
    }
    for name in HELD_OUT_FAMILIES:
        assert (get_family(name).dataset, get_family(name).architecture) not in seen


def test_no_held_out_configuration_is_trained_on() -> None:
    there = {family.name for family in families(available_only=True)}
    config = TrainConfig()
    names = [name for name in (*TRAIN_FAMILIES, *VALID_FAMILIES) if name in there]
    drawn = draw_specs(names, config.tasks_per_family, config.steps, config.seed)
    drawn += draw_specs(names, 3, config.steps, config.seed + 7)
    trained = {config_hash(name) for name in (*names, *(spec.task for spec in drawn))}
    assert not trained & {config_hash(spec.task) for spec in HELD_OUT}


def test_held_out_tasks_need_no_download() -> None:
    assert all(get_family(name).data_files == () for name in HELD_OUT_FAMILIES)


@pytest.mark.parametrize("spec", HELD_OUT, ids=lambda spec: spec.task)
def test_shipped_frontier_is_of_this_task_and_protocol_and_fit_for_the_bench(
    spec: TaskSpec,
) -> None:
    row = json.loads((SHIPPED / file_name(spec)).read_text())
    wanted = describe(get_task(spec.task), spec.steps, BaselineConfig())
    if spec.family.startswith("char-"):  # the text is the running Python's own
        wanted["data_sha256"] = row["measured"]["data_sha256"]
    assert row["measured"] == wanted
    frontier = BenchFrontier.from_json(row["frontier"])
    assert frontier.resolution <= MAX_RESOLUTION
    assert not frontier.edge
    assert list(frontier.losses) == sorted(frontier.losses, reverse=True)
    assert 200 <= spec.steps <= 400


def test_the_baseline_is_tuned_over_ten_rates_or_more_on_other_seeds_than_it_is_measured() -> None:
    config = BaselineConfig()
    assert len(config.rates) >= 10
    assert not set(config.tuning_seeds) & set(config.seeds)
