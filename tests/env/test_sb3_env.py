from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor

from lhopt.core.errors import ConfigurationError
from lhopt.env.config import EnvConfig
from lhopt.env.pool import TaskPool
from lhopt.env.sb3 import Sb3VecEnv
from lhopt.env.vector import HyperparameterVectorEnv


def make(pool: TaskPool, config: EnvConfig, **words: Any) -> tuple[Sb3VecEnv, Any]:
    a, b = (
        HyperparameterVectorEnv(pool, config, n_buckets=2, runs_per_bucket=4, seed=3)
        for _ in range(2)
    )
    return Sb3VecEnv(a, seed=1, **words), b


def test_rows_are_permuted_and_map_back(pool: TaskPool, config: EnvConfig) -> None:
    vec, plain = make(pool, config, baseline=False)
    order = vec._order
    assert sorted(order) == list(range(8))
    assert order.tolist() != list(range(8))
    observation = vec.reset()
    wanted, _ = plain.reset()
    np.testing.assert_array_equal(observation, wanted[order])
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(10):
        actions = rng.integers(0, 3, (8, 4))  # in SB3's order
        by_bucket = np.empty_like(actions)
        by_bucket[order] = actions
        observation, reward, done, infos = vec.step(actions)
        wanted, wanted_reward, terminated, _, info = plain.step(by_bucket)
        np.testing.assert_array_equal(observation, wanted[order])
        np.testing.assert_array_equal(reward, wanted_reward[order].astype(np.float32))
        np.testing.assert_array_equal(done, terminated[order])
        for row, i in enumerate(order):
            if not terminated[i]:
                assert infos[row] == {}
                continue
            ends += 1
            np.testing.assert_array_equal(infos[row]["terminal_observation"], info["final_obs"][i])
            assert infos[row]["episode"]["r"] == wanted_reward[i]
            assert infos[row]["TimeLimit.truncated"] is False
            assert infos[row]["task"] == info["task"][i]
    assert ends
    assert len(vec.finished) == ends


def test_the_baseline_is_the_mean_of_the_others_of_the_bucket(
    pool: TaskPool, config: EnvConfig
) -> None:
    vec, _ = make(pool, config)
    vec.reset()
    for _ in range(10):
        _, reward, done, infos = vec.step(np.ones((8, 4), np.int64))
        group = (vec._order // 4)[done]
        true = np.array([info["episode"]["r"] for info in infos if info])
        for i, (g, r) in enumerate(zip(group, true, strict=True)):
            others = [t for j, t in enumerate(true) if group[j] == g and j != i]
            assert len(others) == 3
            assert reward[done][i] == pytest.approx(r - np.mean(others), abs=1e-6)
        assert (reward[~done] == 0).all()


def test_bounds_hold_for_the_learner_and_not_for_the_record(
    pool: TaskPool, config: EnvConfig
) -> None:
    free, _ = make(pool, config, baseline=False)
    held, _ = make(pool, config, baseline=False, bounds=(-0.5, -0.25))
    free.reset(), held.reset()
    ends = 0
    for _ in range(10):
        action = np.ones((8, 4), np.int64)
        (_, reward, done, _), (_, earned, _, infos) = free.step(action), held.step(action)
        np.testing.assert_allclose(earned[done], np.clip(reward[done], -0.5, -0.25))
        assert (earned[~done] == 0.0).all()
        assert [i["episode"]["r"] for i in infos if i] == pytest.approx(reward[done].tolist())
        ends += int(((reward[done] > -0.25) | (reward[done] < -0.5)).sum())
    assert ends  # some were bounded


def test_a_floor_lets_every_bucket_teach_alike(pool: TaskPool, config: EnvConfig) -> None:
    plain, _ = make(pool, config)
    alike, _ = make(pool, config, floor=1e-9)
    high, _ = make(pool, config, floor=100.0)
    for vec in (plain, alike, high):
        vec.reset()
    rng, ends = np.random.default_rng(1), 0
    for _ in range(10):
        action = rng.integers(0, 3, (8, 4))
        _, reward, done, infos = plain.step(action)
        _, scaled, _, _ = alike.step(action)
        _, small, _, theirs = high.step(action)
        np.testing.assert_allclose(small, reward / 100.0, rtol=1e-5)
        assert [i for i in infos if i] or not done.any()
        assert [i["episode"]["r"] for i in theirs if i] == [i["episode"]["r"] for i in infos if i]
        for bucket in set((plain._order // 4)[done].tolist()):
            rows = plain._order // 4 == bucket
            if not reward[rows].any():  # all at one bound: nobody did better than another
                continue
            assert np.sqrt(np.mean(scaled[rows] ** 2)) == pytest.approx(1.0, rel=1e-5)
            np.testing.assert_array_equal(np.sign(scaled[rows]), np.sign(reward[rows]))
            ends += 1
    assert ends


@pytest.mark.parametrize(("floor", "baseline"), [(-1.0, True), (0.1, False)])
def test_a_floor_that_makes_no_sense_is_refused(
    pool: TaskPool, config: EnvConfig, floor: float, baseline: bool
) -> None:
    with pytest.raises(ConfigurationError, match=f"floor is {floor}"):
        make(pool, config, floor=floor, baseline=baseline)


def test_bounds_that_are_no_interval_are_refused(pool: TaskPool, config: EnvConfig) -> None:
    with pytest.raises(ConfigurationError, match="lower one comes first"):
        make(pool, config, bounds=(1.5, -2.0))


def test_episode_lengths_are_counted(pool: TaskPool) -> None:
    vec, _ = make(pool, EnvConfig(intervals=(4, 4)))
    vec.reset()
    lengths = [
        info["episode"]["l"]
        for _ in range(6)
        for info in vec.step(np.ones((8, 4), np.int64))[3]
        if info
    ]
    assert set(lengths) == {3}


def test_next_step_autoreset_is_refused(pool: TaskPool, config: EnvConfig) -> None:
    env = HyperparameterVectorEnv(pool, config, n_buckets=1, runs_per_bucket=2)
    env.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    with pytest.raises(ConfigurationError, match="SAME_STEP"):
        Sb3VecEnv(env)


def test_a_state_continues_to_the_bit(pool: TaskPool, config: EnvConfig) -> None:
    a, _ = make(pool, config)
    b, _ = make(pool, config)
    a.reset()
    for _ in range(2):
        a.step(np.ones((8, 4), np.int64))
    b.load_state(a.state())
    for _ in range(8):
        x, y = a.step(np.zeros((8, 4), np.int64)), b.step(np.zeros((8, 4), np.int64))
        for i in range(3):
            np.testing.assert_array_equal(x[i], y[i])
        lengths = [[info["episode"]["l"] for info in z[3] if info] for z in (x, y)]
        assert lengths[0] == lengths[1]


def test_sb3s_questions_are_answered(pool: TaskPool, config: EnvConfig) -> None:
    vec, _ = make(pool, config)
    assert vec.env_is_wrapped(Monitor) == [True] * 8
    assert vec.get_attr("n_buckets", [0, 1]) == [2, 2]
    assert vec.get_attr("n_buckets", 0) == [2]
    vec.set_attr("note", "x")
    assert vec.get_attr("note") == ["x"] * 8
    assert len(vec.env_method("state")) == 1
    vec.close()


def test_the_baseline_of_a_group_is_the_mean_of_its_others(
    pool: TaskPool, config: EnvConfig
) -> None:
    env = HyperparameterVectorEnv(
        pool, replace(config, group_size=2), n_buckets=2, runs_per_bucket=4, seed=3
    )
    vec = Sb3VecEnv(env, seed=1)
    vec.reset()
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(10):
        _, reward, done, infos = vec.step(rng.integers(0, 3, (8, 4)))
        true = {i: infos[row]["episode"]["r"] for row, i in enumerate(vec._order) if done[row]}
        for row, i in enumerate(vec._order):
            if done[row]:
                ends += 1
                assert reward[row] == pytest.approx(true[i] - true[i ^ 1], abs=1e-6)
    assert ends
