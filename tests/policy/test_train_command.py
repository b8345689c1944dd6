from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lhopt.cli.main import build_parser, main
from lhopt.cli.train import read_config
from lhopt.core.errors import ConfigurationError, ResumeError, UnknownNameError
from lhopt.env.pool import TaskPool
from lhopt.policy.artifact import load
from lhopt.policy.families import available
from lhopt.policy.train import Trainer
from lhopt.policy.train_config import TrainConfig

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "updates": 1, "n_buckets": 2, "runs_per_bucket": 4, "group_size": 2, "n_steps": 8,
    "batch_size": 32, "lstm": 8, "imitation": None,
}  # fmt: skip


def arguments(*words: str) -> Namespace:
    return build_parser().parse_args(["train", "runs/x", *words])


@pytest.fixture
def no_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before frontiers are measured."""

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("frontiers would be measured")

    monkeypatch.setattr("lhopt.policy.pools.make_pools", never)


def written(folder: Path, fingerprint: str, config: TrainConfig) -> None:
    row = {"fingerprint": fingerprint, "config": config.to_json()}
    torch.save(row, folder / "checkpoint.pt")


def test_resuming_another_configuration_is_refused_at_once(
    tmp_path: Path, no_pools: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig()
    written(tmp_path, config.fingerprint(), config)
    assert main(["train", str(tmp_path), "--resume", "--seed", "7", "--set", "lstm=32"]) == 2
    said = capsys.readouterr().err
    assert "another configuration (seed: 0, now 7; lstm: 64, now 32)" in said
    assert "another folder" in said


def test_a_folder_with_a_checkpoint_is_not_begun_again(
    tmp_path: Path, no_pools: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"anything")
    assert main(["train", str(tmp_path)]) == 2
    assert "Add --resume" in capsys.readouterr().err


def test_a_checkpoint_that_was_cut_is_refused(
    tmp_path: Path, no_pools: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 and no more")
    assert main(["train", str(tmp_path), "--resume"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_resuming_on_other_tasks_is_refused(pool: TaskPool, tmp_path: Path) -> None:
    config = replace(TrainConfig(), **SMALL)
    Trainer(config, tmp_path, pool).save_checkpoint()
    fewer = TaskPool(pool.entries[:1])
    with pytest.raises(ResumeError, match=r"2 tasks, and now there are 1.*noisy-quadratic/4"):
        Trainer(config, tmp_path, fewer).resume()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "lsm=32"], "Nearest: .*lstm"),
        (["--set", "name=mine"], "is not JSON"),
        (["--set", 'lstm="32"'], "lstm is '32'; something like its default 64"),
        (["--set", "lstm=3.5"], "lstm is 3.5"),
        (["--set", "baseline=1"], "baseline is 1"),
        (["--set", 'families="digits-mlp"'], "families is 'digits-mlp'"),
        (["--set", 'env={"interval": 3}'], "Fields of EnvConfig"),
        (["--set", 'imitation={"trails": 3}'], "ImitationConfig"),
        (["--config", "no/such.json"], "cannot be read"),
        (["--set", "group_size=1"], "at least 2 runs"),
        (["--set", 'family_weights={"trainig": 2}'], "Nearest: training"),
        (["--set", "family_weights=2"], "family_weights is 2"),
        (["--updates", "0"], "updates is 0; a whole number of at least 1 is wanted"),
        (["--set", "start=3"], "start is 3"),
        (["--set", 'selection="average"'], "selection is 'average'; one of mode, mean, sample"),
        (["--name", ""], "The policy's name is ''"),
        (["--name", "../mine"], "without a slash"),
        (["--name", "Config"], "keeps its settings in config.json"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_config(arguments(*words))


@pytest.mark.parametrize(
    "item",
    [
        "checkpoint_every=0", "max_grad_norm=Infinity", "max_grad_norm=0", "learning_rate=NaN",
        "learning_rate=0", "n_steps=0", "lstm=0", "lstm=-4", "n_epochs=0", "evaluate_every=0",
        "average=2", "critic_warmup=-3", "clip_range=-1", "steps_power=NaN", "ent_coef=-1",
        "gamma=1.1", "batch_size=1", "seed=-1", "seed=4294967296", "n_buckets=0",
        "tasks_per_family=0", "valid_per_family=-1", "group_size=7",
        "steps=[1]", "steps=[2000, 150]", 'steps=["a", "b"]', "steps=[1, 100]", "steps=[10.5, 20]",
        "reward_bounds=[1]", 'reward_bounds=["a", "b"]', "reward_bounds=[1.5, -2]",
        'env={"speed_bounds": ["a", 1]}', 'env={"speed_bounds": [1]}', 'env={"intervals": [3]}',
        'env={"start": {"learning_rate": NaN}}', "env=null", "family_weights=null",
        'families=["nosuch"]', 'leave_out=["nosuch"]', 'valid_families=["nosuch"]',
        'imitation={"rounds": 0}', 'imitation={"rounds": "3"}', 'imitation={"top": 0}',
        'imitation={"tasks": 0}', 'imitation={"tasks": true}', 'imitation={"hidden_share": 1}',
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused_by_name(item: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_config(arguments("--set", item))
    name = item.partition("=")[0]
    assert name in str(refused.value) or "Nearest" in str(refused.value) or "{" in item
    assert "wanted" in str(refused.value) or "Nearest" in str(refused.value)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem)
        for folder in ("policy/bundled", "docs/candidates", "docs/candidates/*")
        for file in sorted(ROOT.glob(f"{folder}/*.json"))
    ],
)
def test_the_settings_of_every_policy_that_is_kept_can_be_read(file: Path) -> None:
    told = json.loads(file.read_text())["training"]
    if "config" in told:
        read_config(arguments("--config", str(file), "--from", "x"))


def test_a_training_begins_from_the_policy_that_is_named(
    tmp_path: Path, pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: (pool, None))
    first, file = tmp_path / "first", tmp_path / "config.json"
    file.write_text(json.dumps({**SMALL, "families": ["noisy-quadratic"]}))
    assert main(["train", str(first), "--config", str(file)]) == 0
    parent = load(next(first.glob("*.safetensors")).with_suffix(".json"))
    second = tmp_path / "second"
    words = ["train", str(second), "--config", str(file), "--from"]
    assert main([*words, str(first / f"{parent.name}.json")]) == 0
    child = load(second / f"{parent.name}.json")
    assert child.training["from"]["digest"] == parent.digest
    assert child.training["config"]["start"] == f"{parent.name}.json"
    assert main([*words, str(tmp_path / "none.json")]) != 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--from", "nope"], "Unknown bundled policy 'nope'"),
        (["--from", "no/such.json"], "such.json is missing"),
        (["--from", "{tmp}"], "checkpoint.pt does not exist"),
        (["--from", "adamw"], "another optimizer"),
        (["--from", "steerable", "--set", "lstm=8"], "another hidden_size"),
        (["--from", "steerable", "--fold", "1/4"], "leave_out names"),
    ],
)
def test_where_it_cannot_begin_is_said_before_anything_is_measured(
    tmp_path: Path,
    no_pools: None,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    folder = tmp_path / "run"
    assert main(["train", str(folder), "--optimizer", "lhopt.SteerableAdamW", *words]) == 2
    assert says in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
def test_ctrl_c_while_frontiers_are_measured_leaves_nobody_behind(
    tmp_path: Path, presses: int
) -> None:
    command = [
        sys.executable, "-m", "lhopt.cli.main", "train", str(tmp_path / "run"),
        "--set", 'families=["digits-mlp"]',
    ]  # fmt: skip
    environment = {**os.environ, "LHOPT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    said = tmp_path / "said"
    with said.open("w") as file:
        ran = subprocess.Popen(
            command,
            env=environment,
            stderr=file,
            start_new_session=True,
            # what runs in a shell's background ignores it, and so would what it starts
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        within(90.0, lambda: len(children(ran.pid)) >= 3)  # two workers and the resource tracker
        left = children(ran.pid)
        time.sleep(0.5)  # the last of them is told where its pipe is
        for _ in range(presses):
            os.killpg(ran.pid, signal.SIGINT)
            time.sleep(0.05)
        status = ran.wait(60)
        if presses == 1:
            assert status == 130, said.read_text()
            assert "stopped before the first update" in said.read_text()
        else:  # the second may find it where nobody catches it: a shell says 130 of that too
            assert status in (130, -signal.SIGINT), said.read_text()
        within(20.0, lambda: not any(map(lives, left)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
        ran.wait(10)


def within(seconds: float, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended: a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_settings_come_from_a_manifest_and_from_words(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    told = replace(TrainConfig(), **SMALL).to_json()
    file.write_text(json.dumps({"training": {"config": told}}))
    config = read_config(arguments("--config", str(file), "--set", "gamma=1", "--seed", "3"))
    assert config == replace(TrainConfig(), **SMALL, seed=3)
    assert config.fingerprint() == replace(TrainConfig(), **SMALL, seed=3).fingerprint()
    file.write_text("[1]")
    with pytest.raises(ConfigurationError, match="A JSON object"):
        read_config(arguments("--config", str(file)))


def test_a_family_that_does_not_exist_is_not_taken_for_missing_data() -> None:
    with pytest.raises(UnknownNameError, match="Nearest: digits-mlp"):
        available(["digit-mlp"])


def test_a_warm_start_that_is_stopped_says_what_is_kept_and_leaves_no_checkpoint(
    pool: TaskPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: Any, progress: Any, **__: Any) -> list[float]:
        progress("experts", 1, 2, 0.01)
        progress("experts", 2, 2, 0.02)
        progress("imitation", 1, 3, 1.5)
        raise KeyboardInterrupt

    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: (pool, None))
    monkeypatch.setattr("lhopt.policy.train.imitate", stopped)
    folder, words = tmp_path / "run", small_training(tmp_path)
    assert main(words) == 130
    said = capsys.readouterr().err
    assert "experts" in said
    assert "stopped in the warm start. No checkpoint was written" in said
    cache = tmp_path / "cache" / "frontiers"
    assert str(cache) not in said  # nothing was measured
    assert not (folder / "checkpoint.pt").exists()
    cache.mkdir(parents=True)
    assert main(words) == 130
    assert f"kept in {cache}" in capsys.readouterr().err

    # the same command again goes through, and trains
    monkeypatch.setattr("lhopt.policy.train.imitate", lambda *_, **__: [0.5])
    assert main(words) == 0
    assert (folder / "checkpoint.pt").exists()


def test_sigterm_in_the_warm_start_is_a_ctrl_c(
    pool: TaskPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: Any, **__: Any) -> list[float]:
        signal.raise_signal(signal.SIGTERM)
        return [0.5]

    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: (pool, None))
    monkeypatch.setattr("lhopt.policy.train.imitate", stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert main(small_training(tmp_path)) == 130
    assert "stopped in the warm start" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_after_the_warm_start_was_saved_asks_for_resume(
    pool: TaskPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = Trainer.save_checkpoint

    def then_stop(trainer: Trainer) -> Path:
        save(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr("lhopt.policy.pools.make_pools", lambda *_, **__: (pool, None))
    monkeypatch.setattr("lhopt.policy.train.imitate", lambda *_, **__: [0.5])
    monkeypatch.setattr(Trainer, "save_checkpoint", then_stop)
    assert main(small_training(tmp_path)) == 130
    assert "add --resume" in capsys.readouterr().err


def small_training(folder: Path) -> list[str]:
    """Words of a training of one tiny update, with a warm start."""
    file = folder / "config.json"
    file.write_text(json.dumps({**SMALL, "imitation": {}, "families": ["noisy-quadratic"]}))
    return ["train", str(folder / "run"), "--config", str(file)]


def test_a_bare_resume_takes_the_settings_that_the_folder_was_started_with(
    tmp_path: Path,
) -> None:
    started = replace(TrainConfig(), seed=5, lstm=32, gamma=0.99, imitation={"rounds": 3})
    (tmp_path / "config.json").write_text(json.dumps(started.to_json()))
    words = ["train", str(tmp_path), "--resume", "--updates", "9"]
    resumed = read_config(build_parser().parse_args(words))
    assert resumed.fingerprint() == started.fingerprint()
    assert resumed.updates == 9
    fresh = read_config(build_parser().parse_args(words[:2]))
    assert fresh.seed == TrainConfig().seed
