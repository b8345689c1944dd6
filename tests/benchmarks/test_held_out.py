from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lhopt.benchmarks import held_out
from lhopt.benchmarks.held_out import (
    Description,
    bundled_overlaps,
    describe,
    overlaps,
    policy_overlaps,
    published,
    stale,
    training_names,
)
from lhopt.benchmarks.tasks import (
    ALL,
    HELD_OUT,
    HELD_OUT_ARCHITECTURES,
    HELD_OUT_DATASETS,
    LONG,
    REAL,
    REAL_LONG,
)
from lhopt.core.errors import ConfigurationError
from lhopt.env.pool import TaskPool, TaskSpec
from lhopt.inner_tasks.registry import get_family, get_task
from lhopt.policy import bundled, pools
from lhopt.policy.families import (
    COMPARE_FAMILIES,
    CONFIRM_FAMILIES,
    GROUPS,
    TRAIN_FAMILIES,
    VALID_FAMILIES,
)
from lhopt.policy.train_config import TrainConfig


def test_the_small_tier_is_the_protocols_eight_tasks_and_needs_no_download() -> None:
    lengths = {(spec.family, spec.steps) for spec in HELD_OUT}
    assert lengths == {
        ("digits-mlp", 300), ("digits-cnn", 200), ("digits-vit", 250), ("digits-autoencoder", 400),
        ("char-gru", 250), ("char-transformer", 250), ("recommender", 500),
        ("ill-conditioned-regression", 500),
    }  # fmt: skip
    assert all(get_family(spec.family).data_files == () for spec in HELD_OUT)
    assert all(6_000 <= get_task(spec.task).n_params() <= 49_000 for spec in HELD_OUT)


def test_long_tasks_are_small_ones_at_four_times_their_length() -> None:
    small = {spec.task: spec.steps for spec in HELD_OUT}
    assert len(LONG) == 2
    assert all(spec.steps == 4 * small[spec.task] for spec in LONG)


def test_the_real_tier_has_every_set_once_and_a_thousand_steps_or_more() -> None:
    datasets = [get_family(spec.family).dataset for spec in REAL]
    assert len(set(datasets)) == len(datasets) == 9
    assert all(get_family(spec.family).data_files for spec in (*REAL, *REAL_LONG))
    assert all(1_000 <= spec.steps <= 4_000 for spec in REAL)
    assert all(spec.steps == 8_000 for spec in REAL_LONG)


def test_what_overfits_is_scored_by_its_best_loss_and_nothing_else() -> None:
    best = {
        spec.family
        for spec in ALL
        if getattr(get_family(spec.family), "selection", "last") == "best"
    }
    assert best == {"recommender", "neumf", "digits-mlp", "digits-cnn"}
    assert get_task("recommender:head=product+mlp,rank=16").selection == "best"
    assert get_task("digits-vit:width=32").selection == "last"


def test_data_and_architectures_held_out_are_those_of_the_tasks() -> None:
    families = [get_family(spec.family) for spec in ALL]
    assert {family.dataset for family in families} == set(HELD_OUT_DATASETS)
    # MLPs and CNNs are trained on, on other data
    shared = {"mlp", "cnn"}
    assert {family.architecture for family in families} - shared == set(HELD_OUT_ARCHITECTURES)


def test_no_training_or_validation_family_is_of_a_held_out_kind() -> None:
    assert TRAIN_FAMILIES
    assert VALID_FAMILIES
    assert not set(TRAIN_FAMILIES) & set(VALID_FAMILIES)
    for name in (name for names in GROUPS.values() for name in names):
        family = get_family(name)
        assert family.dataset not in HELD_OUT_DATASETS
        assert family.architecture not in HELD_OUT_ARCHITECTURES


def test_what_policies_are_compared_by_shares_no_data_with_what_trains_them() -> None:
    assert COMPARE_FAMILIES
    assert CONFIRM_FAMILIES
    trained = {get_family(name).dataset for name in (*TRAIN_FAMILIES, *VALID_FAMILIES)}
    own = [get_family(name).dataset for name in (*COMPARE_FAMILIES, *CONFIRM_FAMILIES)]
    assert not trained & set(own)
    assert len(set(own)) == len(own)


def test_no_published_training_task_is_of_a_held_out_kind() -> None:
    assert overlaps(published()) == []


def test_the_published_file_is_that_of_the_code() -> None:
    assert stale(published()) == [], "write it anew: lhopt bench held-out --fresh"


def test_every_task_of_ppo_evaluation_and_imitation_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: set[str] = set()

    def note(specs: Sequence[TaskSpec], **_: Any) -> TaskPool | None:
        used.update(spec.task for spec in specs)
        return None

    monkeypatch.setattr(pools, "build_pool", note)
    pools.make_pools(TrainConfig())
    assert len(used) > len(TRAIN_FAMILIES)
    used |= {spec.task for spec in pools.imitation_specs(TrainConfig())}
    assert used <= {task.name for task in published()}


def test_a_hash_is_of_data_architecture_and_every_setting() -> None:
    task = get_task("digits-cnn:norm=batch,width=16")
    config = getattr(task, "config", {})
    text = json.dumps({"dataset": "digits", "architecture": "cnn", **config}, sort_keys=True)
    found = describe("digits-cnn:norm=batch,width=16")
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found.sha256 == describe("digits-cnn:width=16,norm=batch").sha256
    assert found.sha256 != describe("digits-cnn:width=16").sha256


@pytest.mark.parametrize(
    "name", ["noisy-quadratic/3", "parity-rnn/2", "tabular-mlp", "digits-mlp/4"]
)
def test_a_description_is_of_the_task_that_is_built(name: str) -> None:
    task, family = get_task(name), get_family(name.split("/")[0])
    config = getattr(task, "config", {})
    described = {"dataset": family.dataset, "architecture": family.architecture, **config}
    text = json.dumps(described, sort_keys=True)
    assert describe(name).sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_each_way_of_overlap_is_found() -> None:
    plain = Description("x/1", "glyphs", "mlp", "0")
    assert overlaps([plain]) == []
    (data,) = overlaps([replace(plain, dataset="cifar10")])
    assert data == "x/1: its data, cifar10, are held out"
    (kind,) = overlaps([replace(plain, architecture="transformer")])
    assert kind == "x/1: its architecture, transformer, is held out"
    (copy,) = overlaps([replace(plain, sha256=describe("digits-mlp:width=96").sha256)])
    assert copy == "x/1: its configuration is that of digits-mlp:width=96"


def test_a_stale_file_is_told_from_a_fresh_one() -> None:
    names = training_names()[:3]
    fresh = [describe(name) for name in names]
    assert stale(fresh, names) == []
    assert stale(fresh[1:], names) == [f"{names[0]}: not in training_tasks.json"]
    assert stale(fresh, names[1:]) == [f"{names[0]}: in training_tasks.json, but not used"]
    changed = [replace(fresh[0], sha256="0"), *fresh[1:]]
    assert stale(changed, names) == [f"{names[0]}: training_tasks.json has another configuration"]


def test_a_file_that_is_gone_is_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(held_out, "FILE", tmp_path / "training_tasks.json")
    with pytest.raises(ConfigurationError, match="held-out --fresh"):
        published()


@pytest.mark.parametrize("name", bundled.names())
def test_a_bundled_policy_keeps_the_rule(name: str) -> None:
    assert bundled_overlaps(name) == []


def test_a_policy_is_judged_by_its_manifest() -> None:
    config: dict[str, Any] = {
        **TrainConfig().to_json(),
        "families": ["tabular-mlp"], "valid_families": ["parity-rnn"], "tasks_per_family": 2,
    }  # fmt: skip
    good: dict[str, Any] = {"config": config, "tasks": [["tabular-mlp/0", 200]]}
    assert policy_overlaps("good", good) == []
    sly = {"config": config, "tasks": [["digits-mlp/0", 200]]}
    assert policy_overlaps("sly", sly) == ["digits-mlp/0: its data, digits, are held out"]
    quiet: dict[str, Any] = {**good, "config": {**config, "valid_families": ["recommender"]}}
    assert any("implicit-feedback" in line for line in policy_overlaps("quiet", quiet))
    heir = {**good, "from": {"name": "sly", "training": sly}}
    assert policy_overlaps("heir", heir) == policy_overlaps("sly", sly)
    assert policy_overlaps("both", {"combined": [{"training": good}, {"training": sly}]})
    gone = {"config": config, "tasks": [["no-such-family/0", 200]]}
    assert "does not know" in policy_overlaps("gone", gone)[0]
    assert "does not say" in policy_overlaps("empty", {})[0]
