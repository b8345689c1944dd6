"""A recipe is judged by families that its policies left out."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from lhopt.cli import train
from lhopt.cli.main import main
from lhopt.core.errors import ConfigurationError
from lhopt.policy.artifact import Policy, save
from lhopt.policy.compare import HELD, RECIPE, CompareConfig, compare, compare_left_out
from lhopt.policy.families import TRAIN_FAMILIES
from lhopt.policy.folds import fold, folds, source
from lhopt.policy.lineage import families_met
from lhopt.policy.pools import imitation_specs, make_pools, measured_names
from lhopt.policy.train_config import TrainConfig

#: Tasks of few steps, whose frontiers ship.
SHORT = CompareConfig(longest=260, runs=2)


def leaving(policy: Policy, *families: str) -> Policy:
    return replace(policy, training={"config": {"leave_out": list(families)}})


@pytest.mark.parametrize("n", [2, 4, 5])
def test_folds_share_no_data_and_hold_every_family_once(n: int) -> None:
    parts = folds(TRAIN_FAMILIES, n)
    assert sorted(sum(parts, ())) == sorted(TRAIN_FAMILIES)
    data = [{source(name) for name in part} for part in parts]
    for kin in (("glyphs-inpaint", "glyphs-mlp"), ("signal-denoise", "signal-conv")):
        assert sum(set(kin) <= set(part) for part in parts) == 1  # one is made of the other's data
    assert sum(len(held) for held in data) == len(set.union(*data))
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    assert folds(TRAIN_FAMILIES, n) == parts
    assert fold(TRAIN_FAMILIES, f"{n}/{n}") == parts[-1]


@pytest.mark.parametrize("which", ["0/4", "5/4", "1", "1/1", "1/99", "x/4", "-1/4", ""])
def test_a_fold_that_does_not_exist_is_refused(which: str) -> None:
    with pytest.raises(ConfigurationError, match="fold"):
        fold(TRAIN_FAMILIES, which)


def test_what_is_left_out_is_not_trained_on() -> None:
    whole = TrainConfig()
    part = replace(whole, leave_out=fold(whole.families, "1/4"))
    assert {spec.family for spec in imitation_specs(part)} == set(part.trained)
    assert set(part.trained).isdisjoint(part.leave_out)
    # the others' tasks are the same, or every fold would want frontiers of its own
    theirs = [spec for spec in imitation_specs(whole) if spec.family in part.trained]
    assert imitation_specs(part) == theirs
    assert part.fingerprint() != whole.fingerprint()
    for wrong in (("sets-net",), whole.families, (1,)):
        with pytest.raises(ConfigurationError, match="leave_out"):
            replace(whole, leave_out=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="leave_out"):
        replace(whole, leave_out=("topics-bag",), valid_families=("topics-bag",))
    with pytest.raises(ConfigurationError, match="leave_out"):
        replace(whole, families=("topics-bag",) * 2, leave_out=("topics-bag",))
    replace(whole, families=())  # leaves nothing out


def test_pools_and_what_ships_for_them_leave_out_the_same() -> None:
    families = ("topics-bag", "chaos-mlp")
    part = TrainConfig(families=families, leave_out=families[1:], valid_families=())
    pool, valid = make_pools(part, costs=False)
    assert valid is None
    assert {entry.spec.family for entry in pool.entries} == {"topics-bag"}
    alone = TrainConfig(families=families[:1], valid_families=())
    assert measured_names(part) == measured_names(alone)


def test_the_command_takes_a_fold_and_nothing_beside_it() -> None:
    def config(*words: str) -> TrainConfig:
        parser = argparse.ArgumentParser()
        train.add_parser(parser.add_subparsers())
        return train.read_config(parser.parse_args(["train", "x", *words]))

    assert config("--fold", "2/4").leave_out == fold(TRAIN_FAMILIES, "2/4")
    with pytest.raises(ConfigurationError, match="give one"):
        config("--fold", "2/4", "--set", 'leave_out=["topics-bag"]')
    for words in (["--env", "local-sgd"], ["--keep-measured"]):
        assert main(["train", *words, "--fold", "1/4"]) != 0


def test_a_policy_has_met_what_its_parents_have(policy: Policy) -> None:
    parent = {"config": {"families": ["a", "b"], "leave_out": ["b"]}, "tasks": [["c/0", 100]]}
    child = {"config": {"families": ["d"], "valid_families": ["e"]}, "from": {"training": parent}}
    assert families_met(child) == {"a", "c", "d", "e"}
    began = {"config": {"leave_out": ["a"]}, "from": {"training": parent}}
    with pytest.raises(ConfigurationError, match="left out a, but began from"):
        compare_left_out([replace(policy, training=began)], {}, SHORT)
    other = leaving(policy, "chaos-mlp")
    config = {**other.training["config"], "lstm": 3}
    with pytest.raises(ConfigurationError, match="another lstm than the first"):
        compare_left_out(
            [leaving(policy, "topics-bag"), replace(other, training={"config": config})], {}, SHORT
        )
    with pytest.raises(ConfigurationError, match="No policy to judge"):
        compare_left_out([], {}, SHORT)


def test_each_policy_of_a_recipe_is_read_on_what_it_left_out(policy: Policy) -> None:
    one, two = leaving(policy, "topics-bag"), leaving(policy, "chaos-mlp")
    found = compare_left_out([one, two], {"same": policy}, SHORT)
    assert found.policies == (RECIPE, "same", HELD)
    assert set(found.by_family()) == {"topics-bag", "chaos-mlp"}
    assert found.gaps(1)[0] == (0.0, 0.0, 0.0)
    alone = compare({"one": one}, replace(SHORT, families=("topics-bag",)))
    for task, speeds in alone.speeds.items():
        assert found.speeds[task][0] == speeds[0]
    with pytest.raises(ConfigurationError, match="left out topics-bag, as another did"):
        compare_left_out([one, one], {}, SHORT)
    with pytest.raises(ConfigurationError, match="left no family out"):
        compare_left_out([policy], {}, SHORT)


def test_the_command_judges_a_recipe(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(leaving(policy, "topics-bag"), tmp_path))
    other = str(save(replace(policy, name="other"), tmp_path))
    words = ["policies", "compare", path, "--longest", "260", "--processes", "1"]
    assert main([*words, "--left-out", "--beside", other]) == 0
    header, row, _, over_other, over_held, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["family", "tasks", RECIPE, "other", HELD]
    assert row.split()[0] == "topics-bag"
    assert over_other.startswith(f"{RECIPE} over other: +0.000")
    ours, held = float(row.split()[2]), float(row.split()[4])
    said = float(over_held.removeprefix(f"{RECIPE} over {HELD}: ").split()[0])
    assert said == pytest.approx(ours - held, abs=0.011)  # the table has two digits
    assert abs(said) > 0.1
    for wrong in (["--left-out", "--families", "topics-bag"], ["--beside", other]):
        assert main([*words, *wrong]) == 2
        assert "--left-out" in capsys.readouterr().err
