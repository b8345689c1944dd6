"""Groups of families, and what they stand for."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.inner_tasks.registry import FAMILIES
from lhopt.policy import pools
from lhopt.policy.families import GROUPS, TRAIN_FAMILIES, available, named, weights_by_family
from lhopt.policy.train_config import TrainConfig


def test_no_family_is_in_two_groups() -> None:
    for one, other in combinations(GROUPS, 2):
        assert not set(GROUPS[one]) & set(GROUPS[other])
    assert not set(GROUPS) & set(FAMILIES)
    assert set(FAMILIES) >= {name for names in GROUPS.values() for name in names}


def test_a_group_stands_for_its_families_once_and_in_order() -> None:
    assert named(["spots-cnn", "evaluation", "sets-net"]) == ("spots-cnn", *GROUPS["evaluation"])
    assert named([]) == ()


def test_a_training_takes_groups() -> None:
    config = TrainConfig(families=("training", "further"))
    assert config.families == (*TRAIN_FAMILIES, *GROUPS["further"])
    assert config.to_json()["families"][-1] == GROUPS["further"][-1]  # a manifest names them all
    broad = TrainConfig(families=("training", "further"), leave_out=("further",))
    assert broad.trained == TRAIN_FAMILIES
    config = TrainConfig(families=("comparison",), valid_families=("evaluation",))
    assert config.valid_families == GROUPS["evaluation"]


def test_a_training_is_not_evaluated_by_what_it_trains_on() -> None:
    with pytest.raises(ConfigurationError, match=r"sets-net .*by heart"):
        TrainConfig(families=("training", "sets-net"))


@pytest.mark.parametrize("families", ["further", [1], [["training"]]])
def test_what_names_no_families_is_refused(families: Any) -> None:
    with pytest.raises(ConfigurationError, match="several names are wanted"):
        named(families)


def test_a_group_that_is_misspelt_is_found() -> None:
    with pytest.raises(UnknownNameError) as caught:
        available(["trainig"])
    assert "training" in caught.value.nearest


def test_a_groups_weight_is_its_families_and_a_familys_own_comes_first() -> None:
    there = (*GROUPS["further"][2:], "sets-net")
    for weights in ({"further": 2, "facts-mlp": 0.5}, {"facts-mlp": 0.5, "further": 2}):
        found = weights_by_family(weights, there, "family_weights")
        assert found.pop("facts-mlp") == 0.5
        assert found == {f: 2.0 for f in GROUPS["further"][2:] if f != "facts-mlp"}


@pytest.mark.parametrize(
    "weights", [["training"], {"training": -1}, {"training": 0}, {"training": True},
                {"training": float("nan")}, {"training": "much"}, {3: 1.0}, {"training": 10**400}],
)  # fmt: skip
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"family_weights is .* above 0 and up to 1000"):
        TrainConfig(family_weights=weights)


def test_weights_are_of_what_a_training_has() -> None:
    with pytest.raises(ConfigurationError, match=r"names orbits-mlp, .* Name some of tabular-mlp"):
        TrainConfig(family_weights={"orbits-mlp": 2.0})
    with pytest.raises(ConfigurationError, match="names docs-mlp"):
        TrainConfig(leave_out=("docs-mlp",), family_weights={"docs-mlp": 2.0})
    with pytest.raises(UnknownNameError, match="Nearest: training"):
        TrainConfig(family_weights={"trainig": 2.0})
    TrainConfig(leave_out=("docs-mlp",), family_weights={"training": 2.0})


def test_a_training_without_weights_is_the_one_it_was() -> None:
    assert "family_weights" not in TrainConfig().to_json()
    told = TrainConfig(family_weights={"training": 0.5})
    assert told.to_json()["family_weights"] == {"training": 0.5}
    assert told.fingerprint() != TrainConfig().fingerprint()
    one, other = (TrainConfig(family_weights={"training": w}) for w in (2, 2.0))
    assert one.fingerprint() == other.fingerprint()


def test_weights_and_processes_reach_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def built(specs: Any, **words: Any) -> None:
        told.append(words)

    monkeypatch.setattr(pools, "build_pool", built)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    config = TrainConfig(family_weights={"training": 0.5, "docs-mlp": 2.0})
    pools.make_pools(config, processes=8)
    pools.make_pools(config, processes=8, device="cuda")
    train, valid, there, _ = told
    assert train["family_weights"] == dict.fromkeys(TRAIN_FAMILIES, 0.5) | {"docs-mlp": 2.0}
    assert train["cost_processes"] == 3
    assert there["cost_processes"] == 1
    assert "family_weights" not in valid
