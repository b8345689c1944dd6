"""How `lhopt train` stops, what it leaves behind, and what it refuses to write over."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lhopt.cli.main import build_parser, main
from lhopt.cli.train import read_config
from lhopt.core.errors import ConfigurationError
from lhopt.env.pool import TaskPool
from lhopt.policy.artifact import load
from lhopt.policy.train import Trainer

SMALL: dict[str, Any] = {
    "updates": 2, "n_buckets": 2, "runs_per_bucket": 4, "group_size": 2, "n_steps": 8,
    "batch_size": 32, "n_epochs": 1, "lstm": 8, "imitation": None, "families": ["noisy-quadratic"],
    "env": {"intervals": [4, 6]},
}  # fmt: skip


@pytest.fixture
def words(tmp_path: Path, pool: TaskPool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a training of two tiny updates, without an evaluation."""
    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: (pool, None))
    file = tmp_path / "small.json"
    file.write_text(json.dumps(SMALL))
    return ["train", str(tmp_path / "run"), "--config", str(file), "--processes", "1"]


def test_a_training_that_is_stopped_says_so_by_its_status_and_goes_on(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learn, told = Trainer.learn, {"update": 1}

    def stopping(
        trainer: Trainer, on_update: Callable[[int, dict[str, float]], None] | None = None
    ) -> Any:
        def then_stop(update: int, row: dict[str, float]) -> None:
            if update == told["update"]:
                signal.raise_signal(signal.SIGTERM)

        return learn(trainer, then_stop)

    monkeypatch.setattr(Trainer, "learn", stopping)
    assert main(words) == 130
    said = capsys.readouterr()
    assert "stopped after update 1 of 2; --resume goes on" in said.err
    assert "policy adamw" in said.out
    assert load(tmp_path / "run" / "adamw").training["updates"] == 1

    # a signal in the last update stops nothing; a line of the curve that a crash cut is dropped
    (tmp_path / "run" / "curve.jsonl").write_text('{"update": 1, "eval": {}}\n{"update": 1, "me')
    told["update"] = 2
    assert main(["train", str(tmp_path / "run"), "--resume", "--processes", "1"]) == 0
    assert "stopped" not in capsys.readouterr().err.replace("stopping", "")
    assert (tmp_path / "run" / "curve.jsonl").read_text() == '{"update": 1, "eval": {}}\n'


def test_settings_are_not_written_over_where_resuming_is_refused(
    words: list[str], tmp_path: Path, pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*words, "--updates", "1"]) == 0
    before = (tmp_path / "run" / "config.json").read_text()
    fewer = TaskPool(pool.entries[:1])
    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: (fewer, None))
    words = ["train", str(tmp_path / "run"), "--resume", "--updates", "3", "--processes", "1"]
    assert main(words) == 2
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert main(["train", str(tmp_path / "file" / "run")]) == 2
    assert f"{tmp_path / 'file'} is there and is none" in capsys.readouterr().err


def test_what_a_manifests_training_began_from_has_to_be_said(tmp_path: Path) -> None:
    file, told = tmp_path / "mine.json", {"start": "steerable", "optimizer": "torch.optim.AdamW"}
    file.write_text(json.dumps({"training": {"config": told}}))

    def read(*more: str) -> Any:
        words = ["train", str(tmp_path / "run"), "--config", str(file), *more]
        return read_config(build_parser().parse_args(words)).start

    with pytest.raises(ConfigurationError, match=r"began from 'steerable'.* --from PATH"):
        read()
    assert read("--from", "x/steerable.json") == "x/steerable.json"
    assert read("--set", "start=null") is None
    assert read("--resume") == "steerable"
    file.write_text(json.dumps(told))  # somebody's own words
    assert read() == "steerable"
    file = file.rename(tmp_path / "config.json")
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(ConfigurationError, match="say where it is"):
        read()
