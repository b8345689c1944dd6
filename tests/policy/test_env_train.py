from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lhopt.cli.main import main
from lhopt.core.errors import (
    ArtifactError,
    ConfigurationError,
    ResumeError,
    UnknownNameError,
)
from lhopt.env import registry
from lhopt.env.registry import EnvironmentRow
from lhopt.policy.env_train import EnvTrainConfig, EnvTrainer
from lhopt.policy.small import SmallPolicy, bundled, play


class Recall(VectorEnv[Any, Any, Any]):
    """A cue of three is shown once; after a pause the answer is paid. Without memory: 1/3."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    observation_names = ("cue 0", "cue 1", "cue 2", "asked")
    action_choices = {"answer": ("a", "b", "c")}  # noqa: RUF012

    def __init__(self, n_envs: int, seed: int, pause: int = 2, heads: bool = False) -> None:
        self.num_envs, self.pause, self.heads = n_envs, pause, heads
        self.single_observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self.single_action_space = (
            gym.spaces.MultiDiscrete([3]) if heads else gym.spaces.Discrete(3)
        )
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self.rng = np.random.default_rng(seed)

    def _observe(self) -> Any:
        shown = np.zeros((self.num_envs, 4), np.float32)
        rows = np.arange(self.num_envs)
        shown[rows, self.cue] = self.time == 0
        shown[:, 3] = self.time == self.pause
        return shown

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.cue = self.rng.integers(0, 3, self.num_envs)
        self.time = np.zeros(self.num_envs, int)
        return self._observe(), {}

    def step(self, actions: Any) -> Any:
        assert np.shape(actions) == ((self.num_envs, 1) if self.heads else (self.num_envs,))
        answer = np.reshape(actions, self.num_envs)
        ended = self.time == self.pause
        reward = np.where(ended, (answer == self.cue).astype(float), 0.0)
        self.time = np.where(ended, 0, self.time + 1)
        final = self._observe()
        self.cue = np.where(ended, self.rng.integers(0, 3, self.num_envs), self.cue)
        return self._observe(), reward, ended, np.zeros_like(ended), {"final_obs": final}

    def expert(self) -> Any:
        return np.where(self.time == self.pause, self.cue, -1)

    def state(self) -> dict[str, Any]:
        generator = self.rng.bit_generator.state
        known = {k: getattr(self, k).copy() for k in ("cue", "time") if hasattr(self, k)}
        return {"rng": generator, **known}

    def load_state(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        for name in set(state) - {"rng"}:
            setattr(self, name, state[name].copy())


class RecallRow(EnvironmentRow):
    def _module(self) -> Any:
        class Module:
            @staticmethod
            def make_env(
                split: str, n_envs: int, seed: int, pause: int = 2, heads: bool = False
            ) -> Recall:
                return Recall(n_envs, seed, pause, heads)

            @staticmethod
            def evaluate(policy: SmallPolicy) -> str:
                reward, _ = play(policy, Recall(100, 99))
                return f"right answers {reward.mean():.2f}"

        return Module


PPO = {
    "n_envs": 32, "n_valid": 64, "n_steps": 12, "batch_size": 384, "n_epochs": 4, "lstm": 16,
    "learning_rate": 2e-2, "critic_warmup": 0, "evaluate_every": 5, "updates": 25,
}  # fmt: skip
ROW = RecallRow("recall", "a cue to be remembered", {**PPO, "imitation": None})


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> EnvTrainConfig:
    monkeypatch.setitem(registry.ENVIRONMENTS, "recall", ROW)
    return EnvTrainConfig.of("recall")


def test_ppo_from_nothing_learns_what_needs_memory(config: EnvTrainConfig, tmp_path: Path) -> None:
    policy = EnvTrainer(config, tmp_path).learn()
    reward, _ = play(policy, Recall(200, 5))
    assert reward.mean() > 0.95
    assert policy.training["config"] == config.to_json()
    assert policy.training["curve"][-1]["update"] == 25


@pytest.mark.parametrize("heads", [False, True])
def test_a_clone_of_the_expert_answers_right_before_any_update(
    config: EnvTrainConfig, tmp_path: Path, heads: bool
) -> None:
    given = {"steps": 12, "rounds": 6, "learning_rate": 1e-2, "batch": 32}
    config = replace(config, imitation=given, env={"heads": heads})
    trainer = EnvTrainer(config, tmp_path)
    told: list[tuple[str, int, int]] = []
    trainer.warm_start(lambda stage, done, total, loss: told.append((stage, done, total)))
    assert told[-1] == ("imitation", 6, 6)
    reward, _ = play(trainer.export(), Recall(200, 5, heads=heads))
    assert reward.mean() > 0.95
    assert (tmp_path / "checkpoint.pt").exists()


def test_episodes_without_any_label_teach_nothing_and_spoil_nothing(
    config: EnvTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent_for_some(env: Recall) -> Any:
        asked = (env.time == env.pause) & (np.arange(env.num_envs) % 2 == 0)
        return np.where(asked, env.cue, -1)

    monkeypatch.setattr(Recall, "expert", silent_for_some)
    config = replace(config, imitation={"steps": 3, "rounds": 1, "passes": 1, "batch": 1})
    trainer = EnvTrainer(config, tmp_path)
    trainer.warm_start()
    assert all(np.isfinite(weight).all() for weight in trainer.export().weights.values())


def test_a_resumed_training_continues_to_the_bit(config: EnvTrainConfig, tmp_path: Path) -> None:
    config = replace(config, updates=4, n_steps=10, batch_size=320)  # ends inside episodes
    expected = EnvTrainer(config, tmp_path / "whole").learn()

    def stop(update: int, row: dict[str, float]) -> None:
        if update == 2:
            signal.raise_signal(signal.SIGINT)

    EnvTrainer(config, tmp_path / "cut").learn(stop)
    torch.manual_seed(77)
    resumed = EnvTrainer(config, tmp_path / "cut")
    resumed.resume()
    assert resumed.update == 2
    got = resumed.learn()
    assert got.training["curve"] == expected.training["curve"]
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(got.weights[name], array)
    other = EnvTrainer(replace(config, lstm=8), tmp_path / "cut")
    with pytest.raises(ResumeError, match="lstm: 16, now 8"):
        other.resume()


def test_a_saved_policy_acts_as_before_and_as_the_learner(
    config: EnvTrainConfig, tmp_path: Path
) -> None:
    trainer = EnvTrainer(config, tmp_path / "run")
    policy = trainer.export()
    loaded = SmallPolicy.load(policy.save(tmp_path))
    assert loaded.digest == policy.digest
    assert loaded.environment == "recall"
    assert loaded.observations == Recall.observation_names
    assert loaded.actions == Recall.action_choices
    rng = np.random.default_rng(0)
    learner: Any = trainer.model.policy
    memory, state, started = None, None, np.ones(5, bool)
    for _ in range(4):
        x = rng.normal(size=(5, 4)).astype(np.float32)
        action, memory = loaded.act(x, memory)
        theirs, state = learner.predict(x, state, started, deterministic=True)
        np.testing.assert_array_equal(action, theirs)
        started = rng.random(5) < 0.4
        memory = memory.restart(started)


def test_a_policy_that_was_changed_or_is_of_another_kind_is_refused(
    config: EnvTrainConfig, tmp_path: Path, make: Callable[..., Any]
) -> None:
    path = EnvTrainer(config, tmp_path / "run").export().save(tmp_path)
    manifest = json.loads(path.read_text())
    for change, says in (
        ({"environment": "other"}, "changed after training"),
        ({"observations": ["cue"]}, r"must be \(64, 1\)"),
        ({"actions": 3}, "incomplete"),
        ({"format": "lhopt-policy"}, "is not a 'lhopt-environment-policy'"),
    ):
        path.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ArtifactError, match=says):
            SmallPolicy.load(path)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"reads \(runs, 4\): cue 0"):
        SmallPolicy.load(path).act(np.zeros((1, 3)))


def test_a_policy_that_does_not_ship_is_said_so() -> None:
    with pytest.raises(UnknownNameError, match="bundled environment policy 'recall'"):
        bundled("recall")


def test_an_environment_that_cannot_be_trained_in_is_refused(
    config: EnvTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(config: EnvTrainConfig, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            EnvTrainer(config, tmp_path)

    refused(replace(config, env={"paws": 3}), "Settings of recall: pause, heads")
    refused(replace(config, baseline=True), "baseline=False")
    refused(replace(config, lean=0.5), "no moves up or down")
    monkeypatch.setattr(Recall, "action_choices", {"answer": ("a", "b")})
    refused(config, "must agree")
    monkeypatch.setattr(Recall, "observation_names", ("cue",))
    refused(config, "one column per name")
    monkeypatch.undo()
    monkeypatch.delattr(Recall, "expert")
    with pytest.raises(ConfigurationError, match="no good actions to clone"):
        EnvTrainer(replace(config, imitation={}), tmp_path, ROW)
    monkeypatch.delattr(Recall, "load_state")
    with pytest.raises(ConfigurationError, match="lacks load_state"):
        EnvTrainer(config, tmp_path, ROW)


def test_the_command_trains_resumes_and_prints_the_evaluation(
    config: EnvTrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--env", "recall", "--updates", "2", "--set", "lstm=8"]) == 0
    said = capsys.readouterr().out
    assert "recall in recall (a cue to be remembered), 2 updates" in said
    assert "right answers 0." in said
    assert "the averaged weights after update 2, the best evaluation (" in said
    assert SmallPolicy.load(tmp_path / "runs/recall/recall").training["config"]["lstm"] == 8
    assert main(["train", "--env", "recall"]) == 2
    assert "Add --resume" in capsys.readouterr().err
    assert main(["train", "--env", "recall", "--resume", "--updates", "3"]) == 0
    assert "resumed after update 2" in capsys.readouterr().out
    # the folder knows its environment
    assert main(["train", "runs/recall", "--resume", "--updates", "4"]) == 0
    assert "resumed after update 3" in capsys.readouterr().out
    again = SmallPolicy.load(tmp_path / "runs/recall/recall")
    assert [row["update"] for row in again.training["curve"]] == [1, 2, 3, 4]
    assert main(["train", "runs/recall", "--resume", "--device", "cuda"]) == 2
    assert "--device belongs to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--env", "recal"], "Nearest: recall"),
        (["--env", "recall", "--optimizer", "torch.optim.AdamW"], "--optimizer belongs to"),
        (["--env", "recall", "--device", "cuda"], "--device belongs to"),
        (["--env", "recall", "--set", "families=[]"], "Unknown training setting"),
        (["--env", "recall", "--set", 'environment="x"'], "another folder"),
        (["--env", "recall", "--set", 'imitation={"turns": 3}'], "CloningConfig"),
        (["--env", "recall", "--set", 'imitation={"rounds": 0}'], "rounds is 0"),
        (["--env", "recall", "--set", "n_envs=0"], "n_envs is 0; a whole number of at least 1"),
        ([], "Name the folder"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    config: EnvTrainConfig, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert says in capsys.readouterr().err
