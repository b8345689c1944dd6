"""Families that cross modules and data: whose data they have, and how much of it."""

from __future__ import annotations

import pytest
import torch

from lhopt.inner_tasks import get_family
from lhopt.inner_tasks.crossing import ROWS, Crossing
from lhopt.policy.families import (
    COMPARE_FAMILIES,
    CONFIRM_FAMILIES,
    CROSSED_FAMILIES,
    FURTHER_FAMILIES,
    TRAIN_FAMILIES,
    VALID_FAMILIES,
)


def _crossing(name: str) -> Crossing:
    family = get_family(name)
    assert isinstance(family, Crossing)
    return family


@pytest.mark.parametrize("name", CROSSED_FAMILIES)
def test_a_crossing_has_its_parents_data(name: str) -> None:
    """All splits but the rows to train on, under settings other than the parent's plain ones."""
    family = _crossing(name)
    wanted = {key: family.settings[key][1][-1] for key in family.data}
    loss = family.parent().settle({**family.parent().plain_config(), **wanted})["loss"]
    mine = family.build({**wanted, "loss": loss})
    theirs = family.parent().build({**wanted, "loss": loss})
    for split in ("inner_valid", "outer_valid", "test"):
        for a, b in zip(mine.arrays(split), theirs.arrays(split), strict=True):
            assert torch.equal(a, b)
    n = len(mine.arrays("train")[0])
    assert n == (min(1600, len(theirs.arrays("train")[0])) if family.rows else n)
    for a, b in zip(mine.arrays("train"), theirs.arrays("train"), strict=True):
        assert torch.equal(a, b[:n])


@pytest.mark.parametrize("name", [n for n in CROSSED_FAMILIES if _crossing(n).rows])
def test_a_crossing_sees_only_the_rows_that_it_drew(name: str) -> None:
    family = _crossing(name)
    for rows in (ROWS[0], 600):
        assert len(family.build({"rows": rows}).arrays("train")[0]) == rows


def test_rows_of_the_parent_are_not_drawn_twice() -> None:
    for name in CROSSED_FAMILIES:
        family = _crossing(name)
        if family.rows:
            assert "rows" not in family.data
            # and the largest draw is about all there is, or it would be no choice
            assert len(family.build({"rows": 10**6}).arrays("train")[0]) >= ROWS[-2]


def test_values_have_no_cross_entropy_whatever_the_net() -> None:
    for name in ("tabular-resmlp", "tabular-gated"):
        family = _crossing(name)
        assert family.build({"table": "diabetes"}).config["loss"] == "squared-error"
        assert family.build({"table": "wine"}).config["loss"] == "cross-entropy"


def test_no_two_families_have_the_same_net_on_the_same_data() -> None:
    kinds = [(get_family(n).dataset, get_family(n).architecture) for n in CROSSED_FAMILIES]
    assert len(set(kinds)) == len(kinds)
    others = (*TRAIN_FAMILIES, *COMPARE_FAMILIES, *FURTHER_FAMILIES)
    assert not set(kinds) & {(get_family(n).dataset, get_family(n).architecture) for n in others}


def test_what_judges_a_policy_has_data_that_no_crossing_has() -> None:
    judged = {get_family(n).dataset for n in (*VALID_FAMILIES, *CONFIRM_FAMILIES)}
    assert not judged & {get_family(n).dataset for n in CROSSED_FAMILIES}
