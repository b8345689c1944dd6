"""Groups of families, and what they stand for."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.inner_tasks.registry import FAMILIES
from lhopt.policy.families import GROUPS, TRAIN_FAMILIES, available, named, spread
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
    for weights in ({"further": 2, "facts-mlp": 0}, {"facts-mlp": 0, "further": 2}):
        found = spread(weights, "family_weights")
        assert found.pop("facts-mlp") == 0.0
        assert found == {f: 2.0 for f in GROUPS["further"] if f != "facts-mlp"}


@pytest.mark.parametrize(
    "weights", [["training"], {"training": -1}, {"training": True}, {"training": float("nan")},
                {"training": "much"}, {3: 1.0}, {"training": float("inf")}],
)  # fmt: skip
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"family_weights is .* at least 0"):
        TrainConfig(family_weights=weights)


def test_weights_are_of_what_a_training_has() -> None:
    with pytest.raises(ConfigurationError, match=r"orbits-mlp, which this training has not"):
        TrainConfig(family_weights={"orbits-mlp": 2.0})
    with pytest.raises(ConfigurationError, match="no family with a weight above 0"):
        TrainConfig(family_weights={"training": 0})
    TrainConfig(families=("training", "further"), family_weights={"training": 0})


def test_a_training_without_weights_is_the_one_it_was() -> None:
    assert "family_weights" not in TrainConfig().to_json()
    told = TrainConfig(family_weights={"training": 0.5}).to_json()
    assert told["family_weights"] == {"training": 0.5}
    assert (
        TrainConfig(family_weights={"training": 0.5}).fingerprint() != TrainConfig().fingerprint()
    )
