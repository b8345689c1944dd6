"""What is held beside a policy: how it is named, measured and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lhopt.cli.main import main
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.env.episode import Perturbation
from lhopt.optimizers.update import ADAMW, STEERABLE
from lhopt.policy.artifact import Policy, save
from lhopt.policy.headroom import Headroom, HeadroomConfig, headroom, perturbation

#: One task of 250 steps on drawn tokens, whose frontier ships.
SHORT = HeadroomConfig(families=("grammar-mlp",), longest=300, runs=4)


def test_a_text_names_a_factor_a_share_or_a_part_of_the_rule() -> None:
    assert perturbation("learning_rate=2", ADAMW) == Perturbation(
        {"learning_rate": np.log(2.0)}, after=0.1
    )
    assert perturbation("weight_decay=0.5@0.25", ADAMW).after == 0.25
    assert perturbation("clip_ratio=-1", STEERABLE).shifts == {"clip_ratio": -1.0}
    assert perturbation("cautious=false", STEERABLE).rule == {"cautious": False}
    assert perturbation("ns_steps=5", STEERABLE).rule == {"ns_steps": 5}
    assert perturbation("bias_correction=running", ADAMW).rule == {"bias_correction": "running"}


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate", "learning_rate=", "learning_rate=-2", "learning_rate=nan",
        "weight_decay=2@1", "weight_decay=2@half", "cautious=0", "cautious=true@0.5",
        "ns_steps=2.5",
    ],
)  # fmt: skip
def test_a_text_that_holds_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        perturbation(text, STEERABLE)


def test_an_unknown_name_is_answered_with_those_near_it() -> None:
    with pytest.raises(UnknownNameError, match="Nearest: vector_scale"):
        perturbation("vectors=2", STEERABLE)


def test_a_choice_is_read_on_runs_that_did_not_make_it() -> None:
    # held, half of the runs gain 1 and the others lose 1: the best in hindsight gains nothing
    mixed = np.array([[0.0] * 4, [1.0, -1.0, 1.0, -1.0]])
    found = Headroom(("x=1",), {"a/0": mixed})
    assert found.for_all(1).mean == 0.0
    assert found.per_task([1]).mean == -0.5  # chosen by the lucky half, nothing by the other
    sound = np.array([[0.0] * 4, [1.0] * 4])
    found = Headroom(("x=1",), {"a/0": sound, "b/0": -sound})
    assert found.for_all(1).mean == 0.0
    assert found.per_task([1]).mean == 0.5  # where it harms, nothing is held


def test_families_count_alike_and_tell_the_error() -> None:
    rows = [np.array([[0.0, 0.0], [gain, gain]]) for gain in (1.0, 1.0, 1.0, 0.0)]
    tasks = ("a/0", "a/1", "a/2", "b/0")
    found = Headroom(("x=1",), dict(zip(tasks, rows, strict=True)), frozenset({"b"}))
    reading = found.for_all(1)
    assert reading.mean == 0.5
    assert reading.error == pytest.approx(0.5)
    assert found.part(trained=True).for_all(1).mean == 0.0
    assert found.part(trained=False).n_families == 1
    assert np.isnan(found.part(trained=False).for_all(1).error)


def test_it_is_measured_beside_the_policy(policy: Policy) -> None:
    found = headroom(policy, ["learning_rate=1", "learning_rate=0.1@0", "eps=1"], SHORT)
    (rows,) = found.speeds.values()
    assert list(found.speeds) == ["grammar-mlp/7004"]
    assert rows.shape == (4, 4)
    assert rows[1].tolist() == rows[0].tolist() == rows[3].tolist()  # a factor of 1 is nothing
    assert rows[2].tolist() != rows[0].tolist()
    assert found.trained == frozenset()
    with pytest.raises(ConfigurationError, match=r"torch\.optim\.AdamW has no clip_ratio"):
        headroom(policy, ["clip_ratio=1"], SHORT)
    with pytest.raises(ConfigurationError, match="No task of 9000"):
        headroom(policy, [], HeadroomConfig(("grammar-mlp",), shortest=9000, longest=9001))


def test_the_command_prints_both_readings(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(policy, tmp_path)
    words = ["policies", "headroom", str(tmp_path / "random.json"), "--processes", "1"]
    words += ["--families", "grammar-mlp", "--longest", "300", "--runs", "2", "--hold"]
    assert main([*words, "learning_rate=2", "trust_power=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["held", "others:", "for", "all", "per", "task"]
    assert [line.split()[0] for line in lines[1:4]] == ["learning_rate=2", "trust_power=0.5", "any"]
    assert lines[4].startswith("others: 1 tasks of 1 families, ")
    assert main([*words, "momentum=2"]) == 2
    assert "momentum" in capsys.readouterr().err
