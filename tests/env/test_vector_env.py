from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from lhopt.core.actions import COLUMN, noop
from lhopt.core.errors import ConfigurationError, ControlError, UnknownNameError
from lhopt.core.features import FEATURES
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode, draw
from lhopt.env.frontier import SPEED_BOUNDS, Frontier
from lhopt.env.pool import TaskPool, draw_specs
from lhopt.env.vector import HyperparameterVectorEnv, action_space
from lhopt.inner_tasks import get_task


def make(pool: TaskPool, config: EnvConfig, **words: Any) -> HyperparameterVectorEnv:
    return HyperparameterVectorEnv(pool, config, **{"n_buckets": 2, "runs_per_bucket": 3, **words})


def roll(env: HyperparameterVectorEnv, n: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    nvec = action_space(env.config).nvec
    return [env.step(rng.integers(0, nvec, (env.num_envs, 4))) for _ in range(n)]


def same(a: list[Any], b: list[Any]) -> None:
    for x, y in zip(a, b, strict=True):
        for i in range(4):
            np.testing.assert_array_equal(x[i], y[i])
        assert x[4].keys() == y[4].keys()
        for key in x[4]:
            np.testing.assert_array_equal(x[4][key], y[4][key])


def test_the_same_seed_gives_the_same_episodes(pool: TaskPool, config: EnvConfig) -> None:
    a, b, c = (make(pool, config, seed=s) for s in (1, 1, 2))
    first, second, third = (env.reset()[0] for env in (a, b, c))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)
    same(roll(a, 12), roll(b, 12))
    # and a seed given to reset is as good as one given at the start
    np.testing.assert_array_equal(c.reset(seed=1)[0], first)


def test_spaces_and_shapes(pool: TaskPool, config: EnvConfig) -> None:
    env = make(pool, config)
    observation, _ = env.reset(seed=0)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.observation_space.contains(observation)
    assert observation.shape == (6, len(FEATURES))
    assert env.action_space.contains(env.action_space.sample())
    assert env.groups.tolist() == [0, 0, 0, 1, 1, 1]
    observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert reward.shape == terminated.shape == truncated.shape == (6,)


def test_a_bucket_ends_together_is_rewarded_then_and_starts_anew(
    pool: TaskPool, config: EnvConfig
) -> None:
    env = make(pool, config)
    env.reset(seed=3)
    ends = 0
    for observation, reward, terminated, truncated, info in roll(env, 14):
        assert not truncated.any()
        assert (reward[~terminated] == 0).all()
        for bucket in range(2):
            rows = slice(3 * bucket, 3 * bucket + 3)
            assert terminated[rows].all() or not terminated[rows].any()
        if terminated.any():
            ends += 1
            np.testing.assert_array_equal(info["_final_obs"], terminated)
            np.testing.assert_array_equal(info["speed"][terminated], reward[terminated])
            assert (info["final_obs"][terminated] != observation[terminated]).any(axis=1).all()
            assert np.isfinite(info["final_loss"][terminated]).all()
            # progress of the last interval is 1, of the fresh one small
            progress = FEATURES.index("progress")
            assert (info["final_obs"][terminated, progress] == 1.0).all()
            assert (observation[terminated, progress] < 0).all()
            for i in np.flatnonzero(terminated):
                entry = next(e for e in pool.entries if e.spec.task == info["task"][i])
                assert reward[i] == entry.frontier.log2_speed(info["final_loss"][i])
    assert ends >= 3


def test_a_state_taken_in_mid_episode_continues_to_the_bit(
    pool: TaskPool, config: EnvConfig
) -> None:
    whole, other = make(pool, config, seed=5), make(pool, config, seed=99)
    whole.reset()
    roll(whole, 3)
    other.load_state(pickle.loads(pickle.dumps(whole.state())))
    same(roll(whole, 12, seed=1), roll(other, 12, seed=1))


def test_taking_a_state_leaves_the_episode_alone(pool: TaskPool, config: EnvConfig) -> None:
    entry = pool.entries[0]
    drawn = draw(config, np.random.default_rng(0), 2)
    episode = Episode(entry.task, entry.spec.steps, config, drawn, entry.frontier)
    saved = episode.state()
    chosen = np.zeros((2, 6))
    observations = []
    while not episode.finished:
        observations.append(episode.step(chosen))
    for _ in range(2):  # twice: a state may be restored more than once
        again = Episode.restore(entry.task, config, entry.frontier, saved)
        for wanted in observations:
            np.testing.assert_array_equal(again.step(chosen), wanted)
        np.testing.assert_array_equal(again.reward, episode.reward)


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "lhopt.SteerableAdamW"])
def test_a_diverged_run_gets_the_floor_and_waits_for_its_bucket(
    frontier: Frontier, optimizer: str
) -> None:
    config = EnvConfig(optimizer=optimizer, intervals=(5, 5), noise_scale=0.0)
    drawn = draw(config, np.random.default_rng(0), 3)
    drawn.start[1, [COLUMN["learning_rate"], COLUMN["weight_decay"]]] = 100.0, 10.0
    episode = Episode(get_task("noisy-quadratic/3"), 20, config, drawn, frontier)
    while not episode.finished:
        observation = episode.step(np.zeros((3, 6)))
        assert np.isfinite(observation).all()
    assert episode.alive.tolist() == [True, False, True]
    assert episode.reward[1] == SPEED_BOUNDS[0]
    assert episode.final_loss[1] == np.inf
    assert observation[1, FEATURES.index("loss/is_nan")] == 1.0


def test_a_run_that_breaks_at_its_last_step_has_diverged(
    pool: TaskPool, config: EnvConfig, break_next: Callable[[Episode, int], None]
) -> None:
    env = make(pool, config, n_buckets=1)
    env.reset(seed=0)
    hold = noop(config.controls, 3)
    for _ in range(env._episodes[0].n_decisions - 1):
        env.step(hold)
    episode = env._episodes[0]
    break_next(episode, 1)
    observation, reward, terminated, _, info = env.step(hold)
    assert terminated.all()
    assert episode.alive.all()
    assert info["diverged"].tolist() == [False, True, False]
    assert info["final_loss"][1] == np.inf
    assert reward[1] == SPEED_BOUNDS[0]
    assert np.isfinite(observation).all()
    assert np.isfinite(info["final_obs"]).all()


def test_without_a_frontier_there_is_no_reward(config: EnvConfig) -> None:
    drawn = draw(config, np.random.default_rng(0), 2)
    episode = Episode(get_task("noisy-quadratic/3"), 12, config, drawn)
    while not episode.finished:
        episode.step(np.zeros((2, 6)))
    assert np.isnan(episode.reward).all()
    assert np.isfinite(episode.final_loss).all()


def test_hidden_starts_lie_in_the_noise_around_the_start() -> None:
    config = EnvConfig(start={"learning_rate": 1e-2}, noise_scale=0.5)
    start = draw(config, np.random.default_rng(0), 400).start
    decades = np.log10(start[:, 0] / 1e-2)
    assert np.abs(decades).max() <= 1.0
    assert np.abs(decades).max() > 0.95
    assert np.isnan(start[:, 5]).all()  # AdamW does not clip
    still = draw(EnvConfig(noise_scale=0.0), np.random.default_rng(0), 4).start
    np.testing.assert_allclose(still[:, 0], 3e-3)


def test_a_wrong_action_is_refused(pool: TaskPool, config: EnvConfig) -> None:
    env = make(pool, config)
    env.reset(seed=0)
    with pytest.raises(ControlError, match=r"one whole index"):
        env.step(np.zeros((6, 3), np.int64))
    with pytest.raises(ControlError, match="has the choices 0 to 8"):
        env.step(np.full((6, 4), 9))


def test_settings_out_of_range_are_refused(pool: TaskPool, config: EnvConfig) -> None:
    with pytest.raises(ConfigurationError, match="both must be >= 1"):
        make(pool, config, n_buckets=0)
    with pytest.raises(ConfigurationError, match="two numbers from 2 to 129"):
        EnvConfig(intervals=(40, 25))
    with pytest.raises(UnknownNameError, match=r"torch\.optim\.AdamW"):
        EnvConfig(optimizer="torch.optim.Adam")
    with pytest.raises(ConfigurationError, match="empty"):
        TaskPool([])


def test_specs_are_drawn_alike_and_within_their_lengths() -> None:
    specs = draw_specs(["noisy-quadratic", "digits-mlp"], 4, (100, 500), seed=2)
    assert specs == draw_specs(["noisy-quadratic", "digits-mlp"], 4, (100, 500), seed=2)
    assert [s.family for s in specs] == ["noisy-quadratic"] * 4 + ["digits-mlp"] * 4
    assert all(100 <= s.steps <= 500 and s.steps % 10 == 0 for s in specs)


def test_the_pool_evens_out_families() -> None:
    from lhopt.env.pool import Entry, TaskSpec

    from_family = [("a/1", 100), ("a/2", 400), ("b/1", 100)]
    task = get_task("noisy-quadratic/3")
    frontier = Frontier("x", 1, (1.0,), (1.0,), (1.0,), 0.1, 2.0)
    entries = [Entry(TaskSpec(name, n), task, frontier) for name, n in from_family]
    np.testing.assert_allclose(TaskPool(entries).weights, [1 / 3, 1 / 6, 1 / 2])
    drawn = [TaskPool(entries).sample(np.random.default_rng(i)).spec.task for i in range(200)]
    assert 70 < drawn.count("b/1") < 130
