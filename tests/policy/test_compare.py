"""Policies side by side: the same starts and seeds for each, on tasks that none was trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhopt.cli.main import main
from lhopt.core.errors import ConfigurationError
from lhopt.policy.artifact import Policy, save
from lhopt.policy.compare import HELD, CompareConfig, Comparison, compare, data_met, unseen
from lhopt.policy.families import COMPARE_FAMILIES, CONFIRM_FAMILIES, VALID_FAMILIES
from lhopt.policy.lineage import families_met
from lhopt.policy.train_config import TrainConfig

#: One task of 250 steps on drawn tokens, whose frontier ships.
SHORT = CompareConfig(families=("grammar-mlp",), longest=300, runs=2)


def test_equal_policies_are_equal_and_holding_stands_beside_them(policy: Policy) -> None:
    found = compare({"one": policy, "two": policy}, SHORT)
    assert found.policies == ("one", "two", HELD)
    assert list(found.speeds) == ["grammar-mlp/7004"]
    one, two, held = found.mean
    assert one == two
    assert one != held
    gap, *interval = found.gaps()[1]
    assert gap == 0.0
    assert np.isnan(interval).all()  # a single task says nothing of others


def test_families_whose_tasks_are_all_too_long_are_refused_by_their_length(
    policy: Policy,
) -> None:
    with pytest.raises(ConfigurationError, match=r"take \d+ steps at least, and longest is 160"):
        compare({"one": policy}, replace(SHORT, longest=160, families=("shells-mlp",)))


def test_with_feedback_every_column_is_there_again_with_its_decay_moved(policy: Policy) -> None:
    config = replace(SHORT, tells_slope=True, feedback=200.0)
    found = compare({"one": policy}, config)
    assert found.policies == ("one", "one+slope", "hold+slope", HELD)
    assert len(set(found.mean.tolist())) == 4
    assert found.mean[-1] == compare({"one": policy}, SHORT).mean[-1]  # holding reads nothing
    with pytest.raises(ConfigurationError, match="only where runs tell the slope"):
        replace(SHORT, feedback=0.3)


def test_with_averages_every_column_is_there_again_of_the_same_runs(policy: Policy) -> None:
    told = replace(SHORT, tells_slope=True)
    found = compare({"one": policy}, replace(told, averages=True))
    assert found.policies == ("one", "one+averages", "hold+averages", HELD)
    plain = compare({"one": policy}, told)
    assert found.mean[[0, 3]].tolist() == plain.mean.tolist()
    assert found.mean[1] != found.mean[0]
    both = compare({"one": policy}, replace(told, averages=True, feedback=200.0))
    assert both.policies == (
        "one", "one+slope", "hold+slope", "one+averages", "one+slope+averages",
        "hold+slope+averages", "hold+averages", HELD,
    )  # fmt: skip
    assert both.mean[[0, 3, 6, 7]].tolist() == found.mean.tolist()
    assert len(set(both.mean[[0, 1, 3, 4]].tolist())) == 4
    with pytest.raises(ConfigurationError, match="averages without tells_slope"):
        replace(SHORT, averages=True)


def test_a_comparison_with_averages_says_what_they_are(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(policy, tmp_path)
    words = ["policies", "compare", str(tmp_path / "random.json"), "--averages", "--feedback", "9"]
    assert main([*words, "--longest", "300", "--families", "grammar-mlp", "--processes", "1"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [
        "family", "tasks", "random", "random+slope", "hold+slope", "random+averages",
        "random+slope+averages", "hold+slope+averages", "hold+averages", "hold",
    ]  # fmt: skip
    assert "best of its averages" in out
    assert "hold+averages over random+averages: " in out
    assert main([*words, "--left-out"]) == 2


def test_the_interval_counts_families_before_tasks() -> None:
    speeds = {f"a/{i}": np.array([0.0, 1.0]) for i in range(9)} | {"b/0": np.array([0.0, -1.0])}
    found = Comparison(("x", "y"), speeds)
    assert found.mean.tolist() == [0.0, 0.0]
    gap, low, high = found.gaps()[1]
    assert (gap, low, high) == (0.0, -1.0, 1.0)  # two families say opposite things


def test_families_that_no_training_touches_are_compared_by_whole(policy: Policy) -> None:
    config = TrainConfig()
    names = [*config.families, *config.valid_families]
    trained = replace(policy, training={"config": {"families": names}})
    assert not families_met(trained.training) & set(COMPARE_FAMILIES)
    specs = unseen(config, [trained], COMPARE_FAMILIES)
    assert Counter(spec.family for spec in specs) == dict.fromkeys(COMPARE_FAMILIES, 8)
    assert set(COMPARE_FAMILIES) < set(CompareConfig.families)


def test_whose_data_was_trained_on_by_another_name_is_said(policy: Policy) -> None:
    broad = replace(policy, training={"config": {"families": ["tides-rnn", "gone"]}})
    assert data_met(broad, ["tides-conv", "spots-cnn"]) == ["tides-conv"]
    later = replace(policy, training={"from": {"training": broad.training}})
    assert data_met(later, COMPARE_FAMILIES) == ["tides-conv"]


def test_families_that_confirm_are_asked_only_by_name(policy: Policy) -> None:
    config = TrainConfig()
    used = {*config.families, *config.valid_families, *CompareConfig.families}
    assert not used & set(CONFIRM_FAMILIES)
    specs = unseen(config, [policy], CONFIRM_FAMILIES)
    assert Counter(spec.family for spec in specs) == dict.fromkeys(CONFIRM_FAMILIES, 8)


def test_what_a_policy_was_trained_on_is_left_out(policy: Policy) -> None:
    config = TrainConfig()
    every = unseen(config, [policy], ("grammar-mlp", "topics-bag"))
    assert {spec.family for spec in every} == {"grammar-mlp", "topics-bag"}
    tasks = [[spec.task, spec.steps] for spec in every if spec.family == "topics-bag"]
    trained = replace(policy, training={"tasks": tasks})
    left = unseen(config, [policy, trained], ("grammar-mlp", "topics-bag"))
    assert {spec.family for spec in left} == {"grammar-mlp"}
    with pytest.raises(ConfigurationError, match="Nothing is left of topics-bag"):
        unseen(config, [trained], ("topics-bag",))


def test_the_command_prints_a_row_per_family_and_each_gap(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(policy, tmp_path))
    words = ["--families", "grammar-mlp", "--longest", "300", "--processes", "1"]
    assert main(["policies", "compare", path, *words]) == 0
    header, row, mean, gap, legend, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["family", "tasks", "random", HELD]
    assert row.split()[:2] == ["grammar-mlp", "1"]
    assert mean.startswith("mean over families")
    assert gap.startswith(f"{HELD} over random: ")
    assert gap.endswith(" (-, of a single task)")
    assert legend.startswith("Octaves of speed")
    words[1] = "evaluation"  # of its five families, those that have a task so short
    assert main(["policies", "compare", path, *words]) == 0
    rows = capsys.readouterr().out.splitlines()
    found = {
        line.split()[0] for line in rows[1 : next(i for i, r in enumerate(rows) if "mean" in r)]
    }
    assert "grammar-mlp" in found <= set(VALID_FAMILIES)
    words[1] = "ballots-mlp"  # of its tasks, the only one that is so short is blunt
    assert main(["policies", "compare", path, *words]) == 2
    assert "No task is left" in capsys.readouterr().err
    assert main(["policies", "compare", path, *words, "--blunt"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:2] == ["ballots-mlp", "1"]
    assert "blunt are read no finer" in " ".join(out.split())
    assert main(["policies", "compare", path, "steerable"]) == 2
    assert "give policies of one optimizer" in capsys.readouterr().err
    assert main(["policies", "compare", path, "--decades", "nan"]) == 2
    assert "decades is nan; a number from 0 to 4" in capsys.readouterr().err
    assert main(["policies", "compare", path, "--families", "grammer-mlp"]) == 2
    assert "Nearest: grammar-mlp" in capsys.readouterr().err
