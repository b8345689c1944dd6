from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import lhopt.env
from lhopt.core.actions import noop
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.core.features import FEATURES
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode, draw
from lhopt.env.frontier import SPEED_BOUNDS, Frontier, FrontierConfig
from lhopt.env.single import HyperparameterEnv
from lhopt.env.vector import HyperparameterVectorEnv
from lhopt.inner_tasks import get_task

TASK = "noisy-quadratic/3"


@pytest.fixture
def words(config: EnvConfig, frontier: Frontier) -> dict[str, Any]:
    return {"task": TASK, "steps": 24, "config": config, "frontier": frontier}


def test_gymnasium_makes_it_and_its_checker_is_content(words: dict[str, Any]) -> None:
    env = gymnasium.make(lhopt.env.ENV_ID, **words)
    check_env(env.unwrapped)
    assert env.observation_space.shape == (len(FEATURES),)
    env.close()


def test_an_episode_is_the_k_of_one_episode(words: dict[str, Any], config: EnvConfig) -> None:
    env = HyperparameterEnv(**words)
    observation, info = env.reset(seed=7)
    drawn = draw(config, np.random.default_rng(7), 1)
    twin = Episode(get_task(TASK), 24, config, drawn, words["frontier"])
    np.testing.assert_array_equal(observation, twin.observation[0])
    assert info["inner_step"] == twin.interval
    done, n = False, 0
    while not done:
        observation, reward, done, truncated, info = env.step(noop(config.controls, 1)[0])
        twin.step(np.zeros((1, 6)))
        np.testing.assert_array_equal(observation, twin.observation[0])
        assert not truncated
        assert reward == (twin.reward[0] if done else 0.0)
        n += 1
    assert n == twin.n_decisions
    assert info["final_loss"] == twin.final_loss[0]
    assert info["speed"] == reward
    assert not info["diverged"]
    assert set(info["hyperparameters"]) == {c.name for c in config.controls}


def test_a_run_that_breaks_at_its_last_step_has_diverged(
    words: dict[str, Any], config: EnvConfig, break_next: Callable[[Episode, int], None]
) -> None:
    env = HyperparameterEnv(**words)
    env.reset(seed=7)
    episode = env._episode
    assert episode is not None
    hold = noop(config.controls, 1)[0]
    for _ in range(episode.n_decisions - 1):
        env.step(hold)
    break_next(episode, 0)
    _, reward, done, _, info = env.step(hold)
    assert done
    assert info["diverged"] is True
    assert info["final_loss"] == np.inf
    assert reward == SPEED_BOUNDS[0]


def test_resets_without_a_seed_draw_new_runs(words: dict[str, Any]) -> None:
    env = HyperparameterEnv(**words)
    first, _ = env.reset(seed=1)
    second, _ = env.reset()
    again, _ = env.reset(seed=1)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def test_stepping_before_reset_or_after_the_end_is_refused(words: dict[str, Any]) -> None:
    env = HyperparameterEnv(**words)
    action = env.action_space.sample()
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    while not env.step(action)[2]:
        pass
    with pytest.raises(ResetNeeded):
        env.step(action)


def test_make_vec_builds_the_batched_environment(words: dict[str, Any]) -> None:
    env = gymnasium.make_vec(lhopt.env.ENV_ID, num_envs=3, **words)
    assert isinstance(env.unwrapped, HyperparameterVectorEnv)
    observation, _ = env.reset(seed=2)
    assert observation.shape == (3, len(FEATURES))
    env.step(env.action_space.sample())
    env.close()


def test_the_optimizer_decides_what_is_steered(words: dict[str, Any]) -> None:
    env = gymnasium.make(lhopt.env.ENV_ID, optimizer="lhopt.SteerableAdamW", **words)
    assert isinstance(env.action_space, gymnasium.spaces.MultiDiscrete)
    assert env.action_space.nvec.tolist() == [9, 3, 3, 3, 5]
    env.reset(seed=0)
    assert np.isfinite(env.step(env.action_space.sample())[0]).all()


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ({"task": "digit-mlp"}, "digits-mlp"),
        ({"optimizer": "torch.optim.AdamV"}, "torch.optim.AdamW"),
    ],
    ids=["task", "optimizer"],
)
def test_a_typo_names_the_nearest(words: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=nearest):
        gymnasium.make(lhopt.env.ENV_ID, **words)


def test_a_run_too_short_for_a_decision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="steps is 1"):
        HyperparameterEnv(steps=1)


def test_the_frontier_is_measured_once_and_then_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    small = FrontierConfig(budgets=(0.5, 1.0, 2.0), rates=(1e-2, 1e-1), seeds=(1,))
    monkeypatch.setattr("lhopt.env.frontier.FrontierConfig", lambda: small)
    HyperparameterEnv(TASK, steps=10)
    (kept,) = (tmp_path / "frontiers").iterdir()
    monkeypatch.setattr("lhopt.env.frontier.measure_frontier", None)
    HyperparameterEnv(TASK, steps=10)
    assert kept.name.endswith(".json")


def test_the_package_hands_on_its_public_names() -> None:
    for name in lhopt.env.__all__:
        assert getattr(lhopt.env, name) is not None
    with pytest.raises(ImportError, match="NoSuchEnv"):
        from lhopt.env import NoSuchEnv  # noqa: F401
