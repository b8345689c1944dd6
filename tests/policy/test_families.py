"""Groups of families, and what they stand for."""

from __future__ import annotations

from itertools import combinations

import pytest

from lhopt.core.errors import ConfigurationError
from lhopt.inner_tasks.registry import FAMILIES
from lhopt.policy.families import GROUPS, TRAIN_FAMILIES, named
from lhopt.policy.train_config import TrainConfig


def test_no_family_is_in_two_groups() -> None:
    for one, other in combinations(GROUPS, 2):
        assert not set(GROUPS[one]) & set(GROUPS[other])
    assert set(FAMILIES) >= {name for names in GROUPS.values() for name in names}


def test_a_group_stands_for_its_families_once_and_in_order() -> None:
    assert named(["spots-cnn", "evaluation", "sets-net"]) == ("spots-cnn", *GROUPS["evaluation"])
    assert named([]) == ()


def test_a_training_takes_groups() -> None:
    config = TrainConfig(families=("training", "further"))
    assert config.families == (*TRAIN_FAMILIES, *GROUPS["further"])
    assert config.to_json()["families"][-1] == GROUPS["further"][-1]  # a manifest names them all
    with pytest.raises(ConfigurationError, match="leave_out"):
        TrainConfig(families=("training",), leave_out=("training",))
