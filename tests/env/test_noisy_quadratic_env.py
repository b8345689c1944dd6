from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from lhopt.cli.main import main
from lhopt.core.errors import ConfigurationError
from lhopt.env.noisy_quadratic import (
    INTERVAL,
    OBSERVATIONS,
    RATE,
    SIZES,
    STEPS,
    NoisyQuadraticEnv,
    evaluate,
    make_env,
)
from lhopt.env.quadratic_pool import Problems, Spectra, draw, get_problems, greedy
from lhopt.inner_tasks import quadratic_dynamics as dynamics
from lhopt.inner_tasks.quadratic_schedules import greedy_schedule, optimal_schedule
from lhopt.policy.small import SmallPolicy, bundled

DECISIONS = STEPS // INTERVAL - 1


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Problems:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LHOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return get_problems(0, 6, STEPS)


def reference(problems: Problems, k: int) -> tuple[Any, Any, Any]:
    d = int((problems.curvature[k] > 0).sum())
    mean = np.sqrt(problems.start[k, :d])
    start = dynamics.start(mean, np.zeros(d))
    return start, problems.curvature[k, :d], np.sqrt(problems.variance[k, :d])


def test_the_pools_optimum_is_that_of_the_exact_schedules(problems: Problems) -> None:
    for k in (0, 3):
        start, h, noise = reference(problems, k)
        exact = optimal_schedule(start, h, noise, STEPS, tolerance=1e-7)
        assert problems.optimal_loss[k] == pytest.approx(exact.loss, rel=1e-4)
        assert (problems.optimal_lrs[k] * h.max()).max() <= 1.99 * (1 + 1e-12)
    lrs, losses = greedy(problems.curvature, problems.start, problems.variance, 60)
    for k in range(len(problems)):
        theirs = greedy_schedule(*reference(problems, k), 60)
        np.testing.assert_allclose(lrs[k], theirs.lrs, rtol=1e-9)
        np.testing.assert_allclose(losses[k], theirs.losses, rtol=1e-9)


def test_a_run_is_expected_sgd_at_the_rates_it_reports(problems: Problems) -> None:
    env = NoisyQuadraticEnv(problems, 6, in_order=True)
    env.reset()
    rates = [env._start_lr.copy()]
    rng = np.random.default_rng(0)
    noop = RATE.noop
    for _ in range(DECISIONS):
        _, reward, ended, _, info = env.step(rng.integers(noop - 2, noop + 2, 6))
        rates.append(info["learning_rate"])
    assert ended.all()
    for k in range(6):
        moments, h, noise = reference(problems, k)
        for lr in np.repeat(np.stack(rates)[:, k], INTERVAL):
            moments = dynamics.advance(moments, lr, np.asarray(0.0), h, noise)
        loss = float(dynamics.expected_loss(moments, h))
        assert info["excess_loss"][k] == pytest.approx(loss, rel=1e-9)
        wanted = np.clip(-np.log(loss / problems.optimal_loss[k]), -5, 5)
        assert reward[k] == pytest.approx(wanted, rel=1e-9)


def test_the_expert_comes_near_the_optimum(problems: Problems) -> None:
    env = NoisyQuadraticEnv(problems, 6, in_order=True)
    env.reset()
    for _ in range(DECISIONS):
        _, reward, *_ = env.step(env.expert())
    assert reward.mean() > -0.15
    held = NoisyQuadraticEnv(problems, 6, in_order=True)
    held.reset()
    for _ in range(DECISIONS):
        _, without, *_ = held.step(np.full(6, RATE.noop))
    assert without.mean() < -0.5


def test_scaling_the_loss_or_the_parameters_changes_no_observation(problems: Problems) -> None:
    scaled = Problems(
        problems.curvature * 7.0,
        problems.start * 100.0,
        problems.variance * 100.0,
        problems.optimal_lrs / 7.0,
        problems.optimal_loss * 700.0,
    )
    a, b = (NoisyQuadraticEnv(p, 12, seed=3, runs_per_bucket=2) for p in (problems, scaled))
    rng = np.random.default_rng(1)
    x, y = a.reset()[0], b.reset()[0]
    for _ in range(DECISIONS):
        np.testing.assert_allclose(x, y, atol=1e-4)
        assert np.abs(x).max() <= 5
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(a.expert(), b.expert())
        action = rng.integers(2, 7, 12)
        (x, reward, *_), (y, other, *_) = a.step(action), b.step(action)
    np.testing.assert_allclose(reward, other, rtol=1e-6)


def test_the_start_is_hidden_within_a_decade(problems: Problems) -> None:
    env = NoisyQuadraticEnv(problems, 600, seed=1)
    observation, _ = env.reset()
    sharpness = env._start_lr * env._problem.curvature.max(axis=1)
    assert sharpness.max() / sharpness.min() <= 10.0
    assert sharpness.max() / sharpness.min() > 9.0
    # relative to itself the start reads 0 in every run
    assert not observation[:, OBSERVATIONS.index("log10 lr / start")].any()


def test_windows_go_on_where_they_ended_and_pay_what_they_gained(problems: Problems) -> None:
    whole = NoisyQuadraticEnv(problems, 6, in_order=True)
    windows = NoisyQuadraticEnv(problems, 6, in_order=True, horizon=25)
    rng = np.random.default_rng(2)
    x, y = whole.reset()[0], windows.reset()[0]
    total, ends = np.zeros(6), []
    for i in range(DECISIONS):
        np.testing.assert_array_equal(x, y)
        action = rng.integers(2, 6, 6)
        x, _, _, _, info = whole.step(action)
        y, reward, ended, _, told = windows.step(action)
        np.testing.assert_array_equal(info["excess_loss"], told["excess_loss"])
        assert ended.all() or not reward.any()
        total += reward
        if ended.all():
            ends.append((i + 2) * INTERVAL)
            if i < DECISIONS - 1:  # the next episode begins where this one ended
                np.testing.assert_array_equal(told["final_obs"], y)
    assert ends == list(range(25, 251, 25))
    first = 0.5 * (problems.curvature * problems.start).sum(1)
    np.testing.assert_allclose(total, np.log(first / info["excess_loss"]), rtol=1e-9)


def test_a_diverged_run_waits_and_is_paid_the_least(problems: Problems) -> None:
    env = NoisyQuadraticEnv(problems, 6, in_order=True)
    env.reset()
    up = len(RATE.choices) - 1
    for i in range(DECISIONS):
        observation, reward, *_, info = env.step(np.full(6, up if i < 20 else RATE.noop))
        assert np.isfinite(observation).all()
        if i == 25:
            stands = info["excess_loss"]
    np.testing.assert_array_equal(info["excess_loss"], stands)
    np.testing.assert_array_equal(reward, -5.0)


def test_a_state_continues_to_the_bit_and_a_seed_repeats(problems: Problems) -> None:
    a = NoisyQuadraticEnv(problems, 8, seed=5, runs_per_bucket=4, horizon=50)
    b = NoisyQuadraticEnv(problems, 8, seed=9, runs_per_bucket=4, horizon=50)
    assert a.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    first, _ = a.reset()
    rng = np.random.default_rng(0)
    for _ in range(30):
        a.step(rng.integers(2, 6, 8))
    b.load_state(a.state())
    for _ in range(60):  # into the next run
        action = rng.integers(2, 6, 8)
        for x, y in zip(a.step(action)[:4], b.step(action)[:4], strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.reset(seed=5)[0], first)
    assert not np.array_equal(a.reset()[0], first)
    assert np.array_equal(a._rows[:4], np.repeat(a._rows[0], 4))  # a bucket shares its problem
    assert len(set(a._start_lr * a._problem.curvature.max(1))) == 8


def test_splits_share_no_spectrum_and_optima_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    small = Spectra(dims=(2, 4))
    rows = [tuple(row) for split in range(3) for row in draw(0, 40, split, small)[0]]
    assert len(set(rows)) == 120
    env = make_env("valid", 3, 0, problems=2)
    assert env._rows.shape == (3,)
    monkeypatch.setattr("lhopt.env.quadratic_pool.optimal_lrs", None)  # not called again
    again = make_env("valid", 3, 0, problems=2)
    np.testing.assert_array_equal(again.problems.optimal_lrs, env.problems.optimal_lrs)
    h, a, variance = draw(0, 200, 0, Spectra())
    for k in range(200):
        own = h[k] > 0
        assert 16 <= own.sum() <= 64
        assert 29.99 <= h[k].max() / h[k][own].min() <= 1000.1
        level = (h[k] ** 2 @ variance[k]) / (h[k].max() * (h[k] @ a[k]))
        assert 0.1999 <= level <= 2.001


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"horizon": 30}, "horizon=30: it must be a multiple of 5 that divides 250"),
        ({"horizon": 2}, "horizon=2"),
        ({"runs_per_bucket": 4}, "runs_per_bucket=4"),
    ],
)
def test_settings_out_of_range_are_refused(
    problems: Problems, words: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        NoisyQuadraticEnv(problems, 6, **words)


def test_the_command_trains_in_it_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    monkeypatch.setitem(SIZES, "test", 5)
    settings = {
        "n_envs": 8, "n_valid": 4, "batch_size": 196, "n_epochs": 1, "lstm": 8,
        "imitation": {"steps": 49, "rounds": 1, "passes": 1}, "evaluate_every": 1,
        "env": {"problems": 3}, "critic_warmup": 0,
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings))
    words = ["train", str(tmp_path / "run"), "--env", "noisy-quadratic", "--updates"]
    assert main([*words, "1", "--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert "final loss / optimal, 5 unseen spectra" in said
    assert main([*words, "2", "--resume"]) == 0
    policy = SmallPolicy.load(tmp_path / "run" / "noisy-quadratic")
    assert policy.observations == OBSERVATIONS
    assert policy.actions == {"learning_rate factor": RATE.choices}
    assert [row["update"] for row in policy.training["curve"]] == [0, 1, 2]


def test_the_columns_of_the_table_stay_apart_whatever_the_policy_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    monkeypatch.setitem(SIZES, "test", 4)

    def played(policy: SmallPolicy, env: NoisyQuadraticEnv, episodes: int) -> tuple[None, Any]:
        return None, [{"excess_loss": env.problems.optimal_loss * np.array([1, 1e9, 1e9, 2e9])}]

    monkeypatch.setattr("lhopt.env.noisy_quadratic.play", played)
    head, policy, greedy_row = evaluate(bundled("noisy-quadratic")).splitlines()
    assert re.split(" {2,}", head)[1:] == ["geo. mean", "median", "worst"]
    assert re.split(" {2,}", policy) == ["policy", "6.687e+06", "1e+09", "2e+09"]
    assert len(re.split(" {2,}", greedy_row)) == 4
    assert len(head) == len(policy) == len(greedy_row)
