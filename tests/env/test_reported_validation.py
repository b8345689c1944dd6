"""A validation loss that an episode reports is in the unit of its train loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.features import FEATURES
from lhopt.core.statistics import slope
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Draw, Episode
from lhopt.env.frontier import Frontier
from lhopt.inner_tasks import get_family
from lhopt.inner_tasks.engine import BatchedRuns, Settings, split_params
from lhopt.inner_tasks.registry import get_task
from lhopt.inner_tasks.supervised import SupervisedFamily
from lhopt.optimizers.update import STEERABLE


def _episode(scale: float, tells_slope: bool = True) -> Episode:
    family = get_family("clusters-few")
    assert isinstance(family, SupervisedFamily)
    config = EnvConfig()
    start = np.full((2, N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    drawn = Draw((1, 2), start, 5, reports_valid=True, tells_slope=tells_slope)
    return Episode(family.build({"loss_scale": scale}), 60, config, drawn)


def test_a_scaled_loss_scales_both() -> None:
    plain, scaled = _episode(1.0), _episode(4.0)
    assert plain.statistics is not None
    assert scaled.statistics is not None
    for name in ("train_loss", "valid_loss"):
        # Adam does not see the scale, but for its eps
        assert scaled.statistics[name] == pytest.approx(4.0 * plain.statistics[name], rel=1e-3)
    ratio = FEATURES.index("valid/ratio_train")
    assert scaled.observation[:, ratio] == pytest.approx(plain.observation[:, ratio], abs=1e-3)
    assert np.abs(plain.observation[:, ratio]).max() < 0.5  # early, nothing is learned by heart


def test_the_slope_is_a_share_and_knows_no_unit() -> None:
    plain, scaled, silent = _episode(1.0), _episode(4.0), _episode(1.0, tells_slope=False)
    assert plain.statistics is not None
    assert scaled.statistics is not None
    assert silent.statistics is not None
    slope = plain.statistics["valid_slope"]
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0.01
    # Adam does not see the scale, but for its eps
    assert scaled.statistics["valid_slope"] == pytest.approx(slope, rel=0.05)
    assert np.isnan(silent.statistics["valid_slope"]).all()
    known = FEATURES.index("valid/slope_present")
    assert plain.observation[:, known] == pytest.approx(1.0)
    assert silent.observation[:, known] == pytest.approx(0.0)
    assert (silent.observation[:, FEATURES.index("valid/slope")] == 0.0).all()


def test_the_slope_is_the_derivative_by_the_size_of_the_raw_weights() -> None:
    task = get_task("friedman-mlp")
    runs = BatchedRuns(task, [1, 2], Settings(3e-2), rule=STEERABLE)
    runs.advance(30)
    before = runs.flat.clone()
    found, bent = runs.slope_and_curvature("inner_valid", limit=64)
    assert torch.equal(runs.flat, before)
    rows = tuple(a[:64] for a in task.arrays("inner_valid"))
    for i in range(2):
        size = torch.tensor(1.0, requires_grad=True)
        params = {k: v.detach() * size for k, v in split_params(runs, i).items()}
        loss = task.evaluate(params, rows)
        (gradient,) = torch.autograd.grad(loss, size, create_graph=True)
        (second,) = torch.autograd.grad(gradient, size)
        level = loss.detach()
        assert found[i] == pytest.approx(float(gradient.detach() / level), rel=0.1, abs=1e-2)
        assert bent[i] == pytest.approx(float(second / level), rel=0.1, abs=0.1)


def test_a_slope_without_a_number_is_not_measured() -> None:
    shrunk = np.array([1.0, np.inf, 0.0, np.nan, 1.0])
    grown = np.array([1.1, 1.0, 0.0, 1.0, np.inf])
    found = slope(shrunk, grown)
    assert found[0] == pytest.approx(0.1 / 0.04 / 1.05)
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("tells", [True, False])
def test_an_episode_ends_with_the_best_of_its_averages_where_the_job_validates(
    tells: bool,
) -> None:
    task = get_task("clusters-few/1")
    frontier = Frontier("x", 60, (1.0, 2.0), (3.0, 0.01), (0.1, 0.1), 0.0, 9.0)
    config = EnvConfig(optimizer="lhopt.SteerableAdamW", averages=True)
    start = np.full((4, N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    start[:, COLUMN["learning_rate"]] = np.geomspace(0.002, 0.4, 4)
    drawn = Draw((1, 2, 3, 4), start, 5, reports_valid=True, tells_slope=tells)

    def finished(config: EnvConfig) -> Episode:
        episode = Episode(task, 60, config, drawn, frontier)
        while not episode.finished:
            if episode.done == 24:  # a resume in between
                episode = Episode.restore(task, config, frontier, episode.state())
            episode.step(np.zeros((4, N_CONTROLS)))
        return episode

    chosen, plain = finished(config), finished(replace(config, averages=False))
    np.testing.assert_array_equal(plain.reward, plain.unchosen)
    np.testing.assert_array_equal(chosen.unchosen, plain.reward)
    if not tells:
        np.testing.assert_array_equal(chosen.reward, plain.reward)
        return
    assert (chosen.reward != plain.reward).any()
    held_out, own = (e.runs.evaluate("inner_valid") for e in (chosen, plain))
    assert (held_out <= own).all()  # by all of it: the first examples alone prefer others
    assert (held_out < own).any()
    np.testing.assert_array_equal(chosen.final_loss, chosen.runs.evaluate("outer_valid"))
