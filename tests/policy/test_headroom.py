"""Changes beside a policy: how they are named, measured and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhopt.cli.main import main
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.core.types import FloatArray
from lhopt.env.episode import MatrixChange, Perturbation
from lhopt.optimizers.update import ADAMW, STEERABLE
from lhopt.policy.artifact import Policy, save
from lhopt.policy.headroom import Headroom, HeadroomConfig, headroom, parse_change

#: One task of 250 steps on drawn tokens, whose frontier ships.
SHORT = HeadroomConfig(families=("grammar-mlp",), longest=300, runs=4)


def test_a_text_names_a_factor_a_share_or_a_part_of_the_rule() -> None:
    assert parse_change("learning_rate=2", ADAMW) == Perturbation(
        {"learning_rate": np.log(2.0)}, after=0.1
    )
    assert parse_change("weight_decay=0.5@0.25", ADAMW).after == 0.25
    assert parse_change("clip_ratio=-1", STEERABLE).shifts == {"clip_ratio": -1.0}
    first = Perturbation(after=0.25, matrices=(MatrixChange("first", "weight_decay", 4.0),))
    assert parse_change("first.weight_decay=4@0.25", STEERABLE) == first
    assert parse_change("last.learning_rate=0.5", ADAMW).after == 0.1
    assert parse_change("cautious=false", STEERABLE).rule == {"cautious": False}
    assert parse_change("ns_steps=5", STEERABLE).rule == {"ns_steps": 5}
    assert parse_change("bias_correction=running", ADAMW).rule == {"bias_correction": "running"}


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate", "learning_rate=", "learning_rate=-2", "learning_rate=nan",
        "weight_decay=2@1", "weight_decay=2@half", "cautious=0", "cautious=true@0.5",
        "ns_steps=2.5", "ns_steps=1e300", "trust_power=7", "vector_scale=-1", "learning_rate=1e9",
        "bias_correction=none", "first.weight_decay=0", "first.clip_ratio=2", "last.=2",
        "first.learning_rate=2@1", "first.learning_rate=inf", "first.learning_rate=1e9",
        "last.weight_decay=-2", "first.cautious=false",
    ],
)  # fmt: skip
def test_a_text_that_holds_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_change(text, STEERABLE)


def test_an_unknown_name_is_answered_with_those_near_it() -> None:
    with pytest.raises(UnknownNameError, match="Nearest: vector_scale"):
        parse_change("vectors=2", STEERABLE)
    with pytest.raises(UnknownNameError, match="first, last"):
        parse_change("third.weight_decay=2", STEERABLE)
    with pytest.raises(UnknownNameError, match="Nearest: learning_rate"):
        parse_change("first.learning_rat=2", STEERABLE)


@pytest.mark.parametrize("text", ["first.weight_decay=-2", "last.learning_rate=1e9"])
def test_a_refusal_says_of_which_change(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{text}': A factor of"):
        parse_change(text, STEERABLE)


def test_a_choice_is_read_on_runs_that_did_not_make_it() -> None:
    # half of the runs gain 1 by it and the others lose 1: the best in hindsight gains nothing
    mixed = np.array([[0.0] * 4, [1.0, -1.0, -1.0, 1.0]])
    found = Headroom(("x=1",), {"a/0": mixed})
    assert found.for_all(1).mean == 0.0
    assert found.per_task([1]).mean == -0.5  # chosen by the lucky half, none by the other
    sound = np.array([[0.0] * 4, [1.0] * 4])
    found = Headroom(("x=1",), {"a/0": sound, "b/0": -sound})
    assert found.for_all(1).mean == 0.0
    assert found.per_task([1]).mean == 0.5  # where it harms, there is none
    both = Headroom(("x=1", "y=1"), {"a/0": np.array([[0.0] * 8, [1.0] * 8, [2.0] * 8])})
    assert both.per_task([1, 2]).mean == 2.0
    assert both.per_task([1]).mean == 1.0


def test_halves_have_the_same_starts() -> None:
    # a change that is worth what the start is: neither half may be ahead of the other
    slope = np.linspace(-1.0, 1.0, 8)
    found = Headroom(("x=1",), {"a/0": np.stack([np.zeros(8), slope])})
    assert found.per_task([1]).mean == pytest.approx(0.0)
    raised = Headroom(("x=1",), {"a/0": np.stack([np.zeros(8), slope + 0.1])})
    assert raised.per_task([1]).mean == pytest.approx(raised.for_all(1).mean)


def test_families_count_alike_and_tell_the_error() -> None:
    rows = [np.array([[0.0] * 4, [gain] * 4]) for gain in (1.0, 1.0, 1.0, 0.0)]
    tasks = ("a/0", "a/1", "a/2", "b/0")
    found = Headroom(("x=1",), dict(zip(tasks, rows, strict=True)), frozenset({"b"}))
    reading = found.for_all(1)
    assert reading.mean == 0.5
    assert reading.error == pytest.approx(0.5)
    assert found.part(known=True).for_all(1).mean == 0.0
    assert found.part(known=True).idle(1)
    assert not found.idle(1)
    assert found.part(known=False).n_families == 1
    assert np.isnan(found.part(known=False).for_all(1).error)


def test_it_is_measured_beside_the_policy(make: Callable[..., Policy]) -> None:
    """The second task is on data that the policy was trained on, by another family's name."""
    policy = make(training={"config": {"families": ["docs-bilinear"]}})
    config = replace(SHORT, families=("grammar-mlp", "docs-mlp"), shortest=160)
    changes = ["learning_rate=1", "learning_rate=0.1@0", "eps=1", "first.weight_decay=4@0"]
    found = headroom(policy, changes, config, processes=2)
    assert [(task, rows.shape) for task, rows in found.speeds.items()] == [
        ("docs-mlp/6", (5, 4)),
        ("grammar-mlp/7004", (5, 4)),
    ]
    assert found.known == {"docs-mlp"}
    for rows in found.speeds.values():
        assert rows[1].tolist() == rows[0].tolist() == rows[3].tolist()  # a factor of 1 is none
        assert rows[2].tolist() != rows[0].tolist()
    assert [found.idle(i) for i in (1, 2, 3, 4)] == [True, False, True, False]
    told = headroom(policy, changes[1:2], replace(SHORT, tells_slope=True, averages=True))
    (chosen,) = told.speeds.values()
    assert chosen[0].tolist() != found.speeds["grammar-mlp/7004"][0].tolist()


def test_the_policy_is_measured_against_holding_the_default(make: Callable[..., Policy]) -> None:
    one, other = make(), make(seed=1)
    (rows,), (others,) = (
        headroom(policy, ["hold", "hold", "eps=1"], SHORT).speeds.values()
        for policy in (one, other)
    )
    assert rows[0].tolist() != others[0].tolist()
    assert rows[1].tolist() == rows[2].tolist() == others[1].tolist() != rows[0].tolist()
    silent = replace(one, weights={**one.weights, "head.weight": 0 * one.weights["head.weight"],
                                   "head.bias": noops(one)})  # fmt: skip
    assert headroom(silent, ["hold"], SHORT).idle(1)


def noops(policy: Policy) -> FloatArray:
    """A head's bias that leaves no doubt."""
    rows = [np.where(control.deltas == 0.0, 99.0, 0.0) for control in policy.controls]
    return np.concatenate(rows).astype(np.float32)


def test_what_cannot_be_measured_is_refused(policy: Policy) -> None:
    with pytest.raises(ConfigurationError, match=r"torch\.optim\.AdamW has no clip_ratio"):
        headroom(policy, ["clip_ratio=1"], SHORT)
    with pytest.raises(ConfigurationError, match="No task of 9000"):
        headroom(policy, [], HeadroomConfig(("grammar-mlp",), shortest=9000, longest=9001))
    for wrong in (
        {"runs": 6}, {"runs": 0}, {"per_family": 0}, {"decades": -1.0}, {"decades": float("nan")},
        {"averages": True},
    ):  # fmt: skip
        with pytest.raises(ConfigurationError):
            replace(SHORT, **wrong)


def test_the_command_prints_both_readings(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(policy, tmp_path)
    words = ["policies", "headroom", str(tmp_path / "random.json"), "--processes", "1"]
    words += ["--families", "grammar-mlp", "--longest", "300", "--runs", "4", "--change"]
    assert main([*words, "learning_rate=2", "trust_power=0.5", "ns_steps=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["change", "others:", "for", "all", "per", "task"]
    assert [line.split()[0] for line in lines[1:5]] == [
        "learning_rate=2", "trust_power=0.5", "ns_steps=5", "any",
    ]  # fmt: skip
    assert lines[5].startswith("others: tasks 1, families 1; unchanged ")
    assert lines[6].startswith("ns_steps=5: no run differs")
    assert main(words[:-1]) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[5]  # no change: its own speed alone
    assert main([*words, "momentum=2"]) == 2
    assert "momentum" in capsys.readouterr().err
