"""Groups of families, and what they stand for."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.inner_tasks.registry import FAMILIES
from lhopt.policy.families import GROUPS, TRAIN_FAMILIES, available, named
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
