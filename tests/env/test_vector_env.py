from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from lhopt.core.actions import COLUMN, noop
from lhopt.core.errors import ConfigurationError, ControlError, UnknownNameError
from lhopt.core.features import FEATURES
from lhopt.env.config import EnvConfig, get_optimizer
from lhopt.env.episode import Episode, draw
from lhopt.env.frontier import SPEED_BOUNDS, Frontier
from lhopt.env.pool import TIMED_STEPS, TaskPool, draw_specs, seconds_per_run_step
from lhopt.env.vector import HyperparameterVectorEnv, action_space
from lhopt.inner_tasks import InnerTask, get_task
from lhopt.inner_tasks.engine import BatchedRuns
from lhopt.optimizers.steerable_adamw import SteerableAdamW
from lhopt.optimizers.update import ADAMW


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
    floor = SPEED_BOUNDS[0] - 5.0
    bounds = (floor, SPEED_BOUNDS[1])
    config = EnvConfig(optimizer, intervals=(5, 5), noise_scale=0.0, speed_bounds=bounds)
    drawn = draw(config, np.random.default_rng(0), 3)
    drawn.start[1, [COLUMN["learning_rate"], COLUMN["weight_decay"]]] = 100.0, 10.0
    episode = Episode(get_task("noisy-quadratic/3"), 20, config, drawn, frontier)
    while not episode.finished:
        observation = episode.step(np.zeros((3, 6)))
        assert np.isfinite(observation).all()
    assert episode.alive.tolist() == [True, False, True]
    assert episode.reward[1] == floor
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
    with pytest.raises(ControlError, match=r"whole numbers of shape \(6, 4\) are wanted"):
        env.step(np.zeros((6, 3), np.int64))
    with pytest.raises(ControlError, match="its choices are 0 to 8"):
        env.step(np.full((6, 4), 9))


def test_settings_out_of_range_are_refused(pool: TaskPool, config: EnvConfig) -> None:
    with pytest.raises(ConfigurationError, match="both must be >= 1"):
        make(pool, config, n_buckets=0)
    with pytest.raises(ConfigurationError, match="two whole numbers from 2 to 129"):
        EnvConfig(intervals=(40, 25))
    for wrong in ((2.0, -3.0), (-np.inf, 2.0), 5, ("a", 1.0), (np.nan, 1.0)):
        with pytest.raises(ConfigurationError, match="speed_bounds is"):
            EnvConfig(speed_bounds=wrong)  # type: ignore[arg-type]
    for name in ("valid_share", "slope_share", "epochs_share", "labels_share"):
        for wrong_share in (1.5, -0.1, "all", float("nan")):
            with pytest.raises(ConfigurationError, match=f"{name} is"):
                EnvConfig(**{name: wrong_share})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="averages is"):
        EnvConfig(averages="yes")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"torch\.optim\.AdamW"):
        EnvConfig(optimizer="torch.optim.Adam")
    with pytest.raises(ConfigurationError, match="empty"):
        TaskPool([])


def test_specs_are_drawn_alike_and_within_their_lengths() -> None:
    specs = draw_specs(["noisy-quadratic", "digits-mlp"], 4, (100, 500), seed=2)
    assert specs == draw_specs(["noisy-quadratic", "digits-mlp"], 4, (100, 500), seed=2)
    assert [s.family for s in specs] == ["noisy-quadratic"] * 4 + ["digits-mlp"] * 4
    assert all(100 <= s.steps <= 500 and s.steps % 10 == 0 for s in specs)
    short = draw_specs(["noisy-quadratic"], 20, (3, 6))
    assert {s.steps for s in short} <= {3, 4, 5, 6}
    for wrong in ((0, 5), (5, 3)):
        with pytest.raises(ConfigurationError, match="two numbers of at least 2 are wanted"):
            draw_specs(["noisy-quadratic"], 1, wrong)


def test_the_pool_evens_out_families() -> None:
    from lhopt.env.pool import Entry, TaskSpec

    from_family = [("a/1", 100), ("a/2", 400), ("b/1", 100)]
    task = get_task("noisy-quadratic/3")
    frontier = Frontier("x", 1, (1.0,), (1.0,), (1.0,), 0.1, 2.0)
    entries = [Entry(TaskSpec(name, n), task, frontier) for name, n in from_family]
    np.testing.assert_allclose(TaskPool(entries).weights, [1 / 3, 1 / 6, 1 / 2])
    drawn = [TaskPool(entries).sample(np.random.default_rng(i)).spec.task for i in range(200)]
    assert 70 < drawn.count("b/1") < 130


def test_runs_of_a_group_differ_in_their_decisions_alone(pool: TaskPool, config: EnvConfig) -> None:
    grouped = replace(config, group_size=2)
    drawn = draw(grouped, np.random.default_rng(0), 6)
    assert drawn.seeds[::2] == drawn.seeds[1::2]
    assert len(set(drawn.seeds)) == 3
    np.testing.assert_array_equal(drawn.start[::2], drawn.start[1::2])
    env = make(pool, grouped, n_buckets=1, runs_per_bucket=4)
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation[::2], observation[1::2], atol=1e-4)
    assert np.abs(observation[0] - observation[2]).max() > 1e-2
    actions = noop(config.controls, 4)
    actions[1, 0] = 0
    observation = env.step(actions)[0]
    assert np.abs(observation[0] - observation[1]).max() > 1e-2
    np.testing.assert_allclose(observation[2], observation[3], atol=1e-4)


def test_a_bucket_is_whole_groups(pool: TaskPool, config: EnvConfig) -> None:
    grouped = replace(config, group_size=2)
    with pytest.raises(ConfigurationError, match="whole groups"):
        make(pool, grouped, runs_per_bucket=3)
    with pytest.raises(ConfigurationError, match="cannot be parted"):
        draw(grouped, np.random.default_rng(0), 3)
    with pytest.raises(ConfigurationError, match="at least 2 runs"):
        replace(config, group_size=1)


def test_privileged_columns_follow_the_features(pool: TaskPool, config: EnvConfig) -> None:
    plain = make(pool, config, seed=2)
    env = make(pool, replace(config, privileged=True), seed=2)
    n = len(FEATURES)
    a, _ = plain.reset()
    b, _ = env.reset()
    for _ in range(8):
        assert env.observation_space.contains(b)
        np.testing.assert_array_equal(a, b[:, :n])
        for i, episode in enumerate(env._episodes):
            rows, among = np.split(b[3 * i : 3 * i + 3, n:], [-7], axis=1)
            code = [episode.task.name == entry.spec.task for entry in pool.entries]
            np.testing.assert_array_equal(rows[:, :2], np.tile(np.array(code, np.float32), (3, 1)))
            off = np.log10(episode.start[:, COLUMN["learning_rate"]] / 3e-3)
            np.testing.assert_allclose(rows[:, 2], off, atol=1e-6)
            length, slope = rows[0, -8], rows[0, -7]
            assert length == pytest.approx(0.5 * np.log2(episode.steps / 512), rel=1e-5)
            assert slope == pytest.approx(np.log(2.0), rel=1e-5)  # losses halve per octave
            # the frontier by hand: 2, 1, 0.5 at budgets 0.5, 1, 2, untrained 64
            logs = 0.5 * np.log(np.array([2.0, 2.0, 1.0, 0.5]) / 64.0)
            np.testing.assert_allclose(rows[0, -6:-2], logs.clip(-3), rtol=1e-5)
            assert (rows[:, -2] == episode.drawn.reports_valid).all()
            assert episode.statistics is not None
            now = np.log(episode.statistics["train_loss"]).clip(-3, 3)
            np.testing.assert_allclose(rows[:, -1], now, atol=1e-5)
            # three leads in octaves, four controls; the runs of a bucket are one group here
            np.testing.assert_allclose(among[:, :3].mean(axis=0), 0.0, atol=1e-6)
            octaves = np.log2(episode.statistics["train_loss"])
            np.testing.assert_allclose(among[:, 0], octaves - octaves.mean(), rtol=1e-4, atol=1e-5)
            rate = np.log(episode.values[:, COLUMN["learning_rate"]])
            lead = (rate - rate.mean()).clip(-3, 3)
            np.testing.assert_allclose(among[:, 3], lead, rtol=1e-4, atol=1e-5)
        actions = np.ones((6, 4), np.int64)
        a, b = plain.step(actions)[0], env.step(actions)[0]


def test_tasks_of_a_pool_are_made_when_they_are_first_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lhopt.env import pool as module

    made = []

    def counted(name: str) -> InnerTask:
        made.append(name)
        return get_task(name)

    monkeypatch.setattr(module, "get_task", counted)
    frontier = Frontier("x", 1, (0.5, 1.0), (1.0, 0.5), (0.1, 0.1), 0.1, 2.0)
    names = [f"noisy-quadratic/0{i}" for i in range(6)]  # not quite as tasks write their names
    entries = [module.Entry(module.TaskSpec(name, 40), None, frontier) for name in names]
    config = EnvConfig(privileged=True)
    env = HyperparameterVectorEnv(TaskPool(entries), config, n_buckets=2, runs_per_bucket=2)
    assert not made
    env.reset(seed=1)
    drawn = {episode.task.name for episode in env._episodes}
    assert sorted(name.replace("/0", "/") for name in made) == sorted(drawn)
    assert {entry.name for entry in entries} >= drawn
    assert entries[0].task is entries[0].task
    env.load_state(env.state())


def test_cost_evens_out_what_families_take() -> None:
    from lhopt.env.pool import Entry, TaskSpec

    task = get_task("noisy-quadratic/3")
    frontier = Frontier("x", 1, (1.0,), (1.0,), (1.0,), 0.1, 2.0)
    rows = [("a/1", 100, 1e-3), ("a/2", 400, 2e-3), ("b/1", 100, 1e-2), ("c/1", 300, 5e-3)]
    entries = [Entry(TaskSpec(name, n), task, frontier, cost) for name, n, cost in rows]
    weights = TaskPool(entries, steps_power=1.0, cost_power=1.0).weights
    seconds = np.array([n * cost for _, n, cost in rows]) * weights
    np.testing.assert_allclose([seconds[:2].sum(), *seconds[2:]], seconds.sum() / 3)
    assert weights[0] / weights[1] == pytest.approx(4.0)
    turned = TaskPool(
        entries, steps_power=1.0, cost_power=1.0, family_weights={"a": 0.5, "c": 2.0, "d": 3.0}
    ).weights
    assert turned.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(turned / turned[2], weights / weights[2] * [0.5, 0.5, 1.0, 2.0])


def test_a_state_carries_the_measured_weights(pool: TaskPool, config: EnvConfig) -> None:
    whole = make(pool.weighted(np.array([0.9, 0.1])), config, seed=5)
    other = make(pool, config, seed=5)
    whole.reset()
    other.load_state(pickle.loads(pickle.dumps(whole.state())))
    same(roll(whole, 12, seed=1), roll(other, 12, seed=1))
    np.testing.assert_array_equal(other.pool.weights, [0.9, 0.1])
    assert (pool.weights != other.pool.weights).any()


def test_a_steps_cost_is_that_of_the_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = [0.0], iter([9.0] * TIMED_STEPS)
    monkeypatch.setattr("lhopt.env.pool.time.process_time", lambda: now[0])
    advance = BatchedRuns.advance

    def timed(runs: BatchedRuns, n: int) -> Any:
        if n == 1:  # one step of the many that nobody disturbs
            now[0] += 0.8 if runs.step == 7 else next(taken)
        return advance(runs, n)

    monkeypatch.setattr(BatchedRuns, "advance", timed)
    cost = seconds_per_run_step(get_task("noisy-quadratic/3"), ADAMW, 4)
    assert cost == pytest.approx(0.8 / 4)
    assert now[0] == pytest.approx(0.8 + 9.0 * (TIMED_STEPS - 1))


def test_environments_start_where_the_optimizer_does_when_nothing_is_named() -> None:
    defaults = SteerableAdamW([torch.zeros(2)]).defaults
    start = get_optimizer("lhopt.SteerableAdamW").start
    assert start["learning_rate"] == defaults["lr"]
    betas = [1 - start["one_minus_beta1"], 1 - start["one_minus_beta2"]]
    np.testing.assert_allclose(betas, defaults["betas"])
    for name in ("eps", "weight_decay", "clip_ratio"):
        assert start[name] == defaults[name]
