from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.controls import CONTROLS
from lhopt.core.feedback import Feedback
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode, draw
from lhopt.env.pool import TaskPool, TaskSpec
from lhopt.env.vector import action_space, observation_space
from lhopt.env.workers import Map, Workers
from lhopt.policy.experts import expert_name, find_expert, held_losses
from lhopt.policy.imitation import ImitationConfig, imitate, teacher, two_hot
from lhopt.policy.learner import HyperparameterPolicy


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "clip_ratio"])
def test_the_mean_of_a_two_hot_label_is_the_move_asked_for(name: str) -> None:
    control = CONTROLS[name]
    gap = np.linspace(-3.0, 3.0, 61)
    p = two_hot(gap, control)
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (p >= 0).all()
    assert ((p > 0).sum(1) <= 2).all()
    wanted = gap.clip(control.deltas.min(), control.deltas.max())
    np.testing.assert_allclose(p @ control.deltas, wanted, atol=1e-12)


def test_the_teachers_moves_lead_to_the_expert(
    pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    config, entry = EnvConfig(intervals=(6, 6), noise_scale=0.1), pool.entries[0]
    tiny = ImitationConfig(trials=8, top=2)
    expert = find_expert(entry.task, entry.spec.steps, config, tiny)
    steered = [COLUMN[c.name] for c in config.controls]
    assert np.isfinite(expert[steered]).all()
    np.testing.assert_array_equal(
        find_expert(entry.task, entry.spec.steps, config, tiny), expert
    )  # from the cache
    episode = Episode(
        entry.task, entry.spec.steps, config, draw(config, np.random.default_rng(0), 3),
        entry.frontier,
    )  # fmt: skip
    aim = expert.copy()
    aim[steered] = episode.start[0, steered] * 1.5  # within the reach of one decision
    for _ in range(2):
        episode.step(teacher(episode, aim))
    schedule = np.exp(episode.situation().schedule)
    values = episode.values.copy()
    values[:, COLUMN["learning_rate"]] /= schedule
    np.testing.assert_allclose(values[:, steered], np.tile(aim[steered], (3, 1)), rtol=1e-6)


def test_the_teacher_leaves_alone_what_feedback_does(pool: TaskPool) -> None:
    feedback = Feedback(gain=200.0)
    config = EnvConfig(intervals=(6, 6), noise_scale=0.0, slope_share=1.0, feedback=feedback)
    entry, column = pool.entries[0], COLUMN["weight_decay"]
    drawn = replace(draw(config, np.random.default_rng(0), 3), reports_valid=True, tells_slope=True)
    episode = Episode(entry.task, entry.spec.steps, config, drawn, entry.frontier)
    aim = episode.start[0].copy()  # nothing is to be moved
    for _ in range(4):
        episode.step(np.zeros((3, N_CONTROLS)))
    assert (np.abs(episode.fed) > 1e-3).any()
    np.testing.assert_allclose(
        np.log(episode.values[:, column] / episode.start[:, column]), episode.fed, atol=1e-9
    )
    taught = teacher(episode, aim)
    np.testing.assert_allclose(taught[:, column], 0.0, atol=1e-9)


def test_a_second_search_ends_lower_and_is_another_file(
    pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    config = EnvConfig()
    once, twice = ImitationConfig(trials=6, top=2), ImitationConfig(trials=6, top=2, refine=16)
    gains = []
    for entry in pool.entries:
        task, steps = entry.task, entry.spec.steps
        found = np.stack([find_expert(task, steps, config, each) for each in (once, twice)])
        assert expert_name(task, steps, config, once) != expert_name(task, steps, config, twice)
        np.testing.assert_array_equal(find_expert(task, steps, config, twice), found[1])
        # on a seed that neither search saw
        first, second = held_losses(task, steps, config, found, seed=1)
        gains.append(np.log(first / second))
    assert np.mean(gains) > 0


def test_a_search_without_statistics_ends_where_held_episodes_end(pool: TaskPool) -> None:
    config, entry = EnvConfig(intervals=(6, 6)), pool.entries[0]
    drawn = draw(config, np.random.default_rng(0), 5)
    drawn = replace(drawn, seeds=(4242,) * 5)
    episode = Episode(entry.task, entry.spec.steps, config, drawn)
    while not episode.finished:
        episode.step(np.zeros((5, N_CONTROLS)))
    loss = held_losses(entry.task, entry.spec.steps, config, drawn.start, n_intervals=6)
    np.testing.assert_allclose(loss, episode.final_loss, rtol=1e-5)
    # who goes on ends where it would have ended, the others are given up
    halved = held_losses(
        entry.task, entry.spec.steps, config, drawn.start, n_intervals=6, halving=((0.5, 0.4),)
    )
    assert np.isfinite(halved).sum() == 2
    on = np.isfinite(halved)
    np.testing.assert_allclose(halved[on], loss[on], rtol=1e-5)


def test_workers_change_nothing_about_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    config = EnvConfig(intervals=(4, 6))
    tiny = ImitationConfig(trials=4, top=2, rounds=2, runs=3, tasks=2, passes=1)
    specs = [TaskSpec("noisy-quadratic/3", 24), TaskSpec("noisy-quadratic/4", 18)]

    def fitted(each: Map) -> tuple[list[float], list[torch.Tensor]]:
        policy = HyperparameterPolicy(
            observation_space(), action_space(config), lambda _: 1e-3, controls=config.controls,
            lstm_hidden_size=8, net_arch={"pi": [8], "vf": [8]}, enable_critic_lstm=True,
        )  # fmt: skip
        for parameter in policy.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        losses = imitate(policy, specs, config, tiny, seed=1, each=each)
        return losses, list(policy.state_dict().values())

    losses, weights = fitted(map)
    with Workers(2) as workers:
        theirs, other = fitted(workers.map)
    assert theirs == losses
    assert losses[1] != losses[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True))
