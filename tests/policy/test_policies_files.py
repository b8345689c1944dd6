"""Files that `lhopt policies` writes, checks, names and counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lhopt.cli.main import main
from lhopt.cli.policies import _columns
from lhopt.policy.artifact import Policy, load, save
from lhopt.policy.combine import combine, with_feedback
from lhopt.policy.compare import AVERAGES, FEEDBACK, HELD
from lhopt.policy.lineage import lineage
from lhopt.policy.small import FOLDER

Make = Callable[..., Policy]


def test_a_word_that_makes_a_policy_writes_over_no_other(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make(1, name="one"), make(2, name="two")
    paths = [str(save(policy, tmp_path)) for policy in (one, two)]
    steerable = "lhopt.SteerableAdamW"
    for words in (
        ["combine", str(tmp_path), *paths, "--name", "one"],
        ["transfer", str(tmp_path), paths[0], "--optimizer", steerable, "--name", "one"],
    ):
        assert main(["policies", *words]) == 2
        said = capsys.readouterr().err
        assert f"holds another policy ({one.digest[:15]}). Give another --name" in said
        assert load(paths[0]).digest == one.digest
    again = ["policies", "combine", str(tmp_path), *paths, "--name", "both"]
    assert main(again) == main(again) == 0  # the same policy may stand there
    (tmp_path / "both.safetensors").write_bytes(b"")
    assert main(again) == 2
    assert "(no sound policy)" in capsys.readouterr().err


def test_feedback_is_not_put_into_the_files_of_the_policy_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["policies", "feedback", str(tmp_path)]
    assert main([*words, "steerable", "--none"]) == 0
    before = load(tmp_path / "steerable").digest
    assert main([*words, str(tmp_path / "steerable.json"), "--set", "gain=10"]) == 2
    assert "holds another policy" in capsys.readouterr().err
    assert load(tmp_path / "steerable").digest == before


def test_all_files_are_checked_whatever_is_wrong_with_one(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(policy, tmp_path)
    small = next(FOLDER.glob("*.json"))
    named = [str(tmp_path), "nobody", "", str(path), str(small), str(small.with_suffix(""))]
    assert main(["policies", "verify", *named]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [": FAILED. " in line for line in lines] == [True, True, True, False, False, False]
    assert "is a folder; name one of its policies: random.json" in lines[0]
    assert "for the environment " in lines[4]
    assert main(["policies", "verify", str(small)]) == 0


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (["runs/a/mine.json", "runs/b/mine.json", "c/d.json"], ["a/mine", "b/mine", "d"]),
        (["runs/adamw-0.2", "runs/adamw-0.3.safetensors"], ["adamw-0.2", "adamw-0.3"]),
        (["steerable", "new/steerable.json"], ["steerable", "new/steerable"]),
        (["a/x/mine.json", "b/x/mine"], ["a/x/mine", "b/x/mine"]),
        (["x/mine.json", "x/mine"], ["x/mine.json", "x/mine"]),
    ],
)
def test_columns_are_told_apart(names: list[str], titles: list[str]) -> None:
    added = [f"{names[0]}{FEEDBACK}{AVERAGES}", f"{names[0]}{AVERAGES}"]
    found = _columns([*names, *added, HELD], (AVERAGES, FEEDBACK))
    ends = [f"{titles[0]}{FEEDBACK}{AVERAGES}", f"{titles[0]}{AVERAGES}"]
    assert found == [*titles, *ends, HELD]


def test_what_several_come_from_is_counted_once(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(1, training={"updates": 100, "cpu_seconds": 30.0})
    from_it = {"name": first.name, "digest": first.digest, "training": dict(first.training)}

    def after(seed: int, updates: int) -> Policy:
        told: dict[str, Any] = {"updates": updates, "cpu_seconds": 1.0, "from": from_it}
        return make(seed, name=f"after-{seed}", training=told)

    both = combine([after(2, 10), after(3, 20)], "both")
    assert [stage.get("updates") for stage in lineage(both.training)] == [None, 10, 100, 20]
    assert main(["policies", "show", str(save(both, tmp_path))]) == 0
    assert "130 updates and 32 CPU seconds, with what" in capsys.readouterr().out


def test_feedback_makes_no_second_training_of_one(make: Make) -> None:
    from lhopt.core.controls import get_controls
    from lhopt.core.feedback import Feedback

    plain = make(controls=get_controls(["learning_rate", "weight_decay"]), training={"updates": 7})
    fed = with_feedback(plain, Feedback(10.0), "fed")
    parts = [
        {"name": part.name, "digest": part.digest, "training": dict(part.training)}
        for part in (plain, fed)
    ]
    whole = replace(plain, training={"combined": parts})
    assert sum(stage.get("updates", 0) for stage in lineage(whole.training)) == 7
