from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from lhopt.cli import policies
from lhopt.policy import bundled
from lhopt.policy.artifact import Policy, save


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    policies.add_parser(parser.add_subparsers())
    args = parser.parse_args(["policies", *words])
    result = args.func(args)
    assert isinstance(result, int)
    return result


@pytest.fixture
def folder(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the folder of bundled policies."""
    save(policy, tmp_path)
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    return tmp_path


def test_the_bundled_policies_are_listed_and_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == _run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in bundled.names():
        policy = bundled.bundled(name)
        assert policy.name == name
        line = next(line for line in lines if line.startswith(name))
        assert policy.digest[:12] in line
        assert policy.optimizer in line
    assert _run("verify", *bundled.names()) == 0


def test_a_row_names_what_is_steered(
    folder: Path, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run() == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split() == [
        "random", "torch.optim.AdamW", policy.digest[:12], str(len(policy.features)),
        "learning_rate,", "eps,", "clip_ratio", "5",
    ]  # fmt: skip


def test_a_policy_is_shown_with_its_training(
    make: Callable[..., Policy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {
        "updates": 2,
        "cpu_seconds": 1.5,
        "tasks": [["digits-mlp/1", 100], ["digits-mlp/2", 100], ["parity-rnn/1", 200]],
        "curve": [{"update": 1.0}, {"update": 2.0, "eval/mean_reward": 0.125}],
        "config": {"seed": 3, "steps": [100, 500]},
        "env": {"start": {}},
    }
    path = save(make(training=training), tmp_path)
    assert _run("show", str(path)) == 0
    out = capsys.readouterr().out
    assert "learning_rate  x 0.25 0.5 0.707 0.9 1 1.1 1.414 2 4  in [1e-10, 100]" in out
    assert "clip_ratio     shift -1 -0.3 0 0.3 1" in out
    assert "3: digits-mlp 2, parity-rnn 1" in out
    assert "eval/mean_reward  0.125" in out
    assert "steps  100, 500" in out
    save(make(training={}), tmp_path)
    assert _run("show", str(path)) == 0
    assert "no training report" in capsys.readouterr().out


def test_what_a_policy_began_from_counts_too(
    make: Callable[..., Policy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = {"updates": 100, "cpu_seconds": 30.0}
    training = {
        "updates": 2,
        "cpu_seconds": 1.5,
        "from": {"name": "a", "digest": "0" * 64, "training": first},
    }
    path = save(make(training=training), tmp_path)
    assert _run("show", str(path)) == 0
    out = capsys.readouterr().out
    assert "  updates      2\n" in out
    assert "102 updates and 32 CPU seconds, with what it began from" in out
    save(make(training=first), tmp_path)
    assert _run("show", str(path)) == 0
    assert "began from" not in capsys.readouterr().out
    monkeypatch.setattr(bundled, "names", lambda: ["random"])
    monkeypatch.setattr("lhopt.cli.policies._find", lambda name: make(training=training))
    assert _run("list") == 0
    assert capsys.readouterr().out.split()[-1] == "102"


def test_a_broken_file_fails_and_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "random.safetensors"
    assert _run("verify", "random", str(weights)) == 0
    assert capsys.readouterr().out.count(": OK, random") == 2
    weights.write_bytes(weights.read_bytes()[:-4])
    assert _run("verify", str(weights), "random") == 1
    assert capsys.readouterr().out.count("FAILED. The weights of") == 2
    assert _run("list") == 1
    assert "random is broken" in capsys.readouterr().err
    assert _run("show", "random") == 1
    assert "changed or cut" in capsys.readouterr().err


def test_a_name_that_is_not_there_names_the_nearest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("show", "randon") == 2
    assert "Nearest: random" in capsys.readouterr().err
    assert _run("verify", "randon") == 1
    assert "Nearest: random" in capsys.readouterr().out
    assert _run("verify", str(folder / "gone.json")) == 1
    assert "is missing" in capsys.readouterr().out
