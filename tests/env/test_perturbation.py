"""What is held beside an episode's decisions changes the run, not what the policy is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.core.features import FEATURES
from lhopt.env.config import OPTIMIZERS, EnvConfig
from lhopt.env.episode import Draw, Episode, MatrixChange, Perturbation
from lhopt.inner_tasks.registry import get_task

STEERABLE = "lhopt.SteerableAdamW"
TOLD = [i for i, name in enumerate(FEATURES) if name.split("/")[0] in ("control", "last")]


def _episode(perturbation: Perturbation | None = None, optimizer: str = STEERABLE) -> Episode:
    config = EnvConfig(optimizer=optimizer)
    start = np.full((2, N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    drawn = Draw((1, 2), start, 5, reports_valid=False)
    return Episode(get_task("grammar-mlp/0"), 50, config, drawn, perturbation=perturbation)


def _run(episode: Episode) -> list[np.ndarray]:
    """The flat weights after each interval; a decision halves the rate each time."""
    down = np.zeros((2, N_CONTROLS))
    down[:, COLUMN["learning_rate"]] = -np.log(2.0)
    seen = [episode.runs.flat.numpy().copy()]
    while not episode.finished:
        episode.step(down)
        seen.append(episode.runs.flat.numpy().copy())
    return seen


def test_it_begins_after_its_share_and_is_not_told() -> None:
    plain, held = _episode(), _episode(Perturbation({"learning_rate": np.log(3.0)}, after=0.4))
    assert TOLD
    for i, (one, other) in enumerate(zip(_run(plain), _run(held), strict=True)):
        # intervals end at .2, .4, .6, .8 and 1: the third is the first that it touches
        assert np.array_equal(one, other) == (i < 2)
    assert np.array_equal(plain.values, held.values, equal_nan=True)
    assert plain.observation[:, TOLD].tolist() == held.observation[:, TOLD].tolist()
    ratio = held.runs.settings.array("learning_rate", 2) / plain.runs.settings.array(
        "learning_rate", 2
    )
    assert ratio == pytest.approx(3.0)


@pytest.mark.parametrize("control", ["learning_rate", "weight_decay"])
def test_a_change_of_a_matrix_begins_after_its_share(control: str) -> None:
    change = MatrixChange("first", control, 3.0)
    plain, held = _episode(), _episode(Perturbation(after=0.4, matrices=(change,)))
    for i, (one, other) in enumerate(zip(_run(plain), _run(held), strict=True)):
        assert np.array_equal(one, other) == (i < 2)
    assert np.array_equal(plain.values, held.values, equal_nan=True)


def test_a_value_stays_within_its_bounds() -> None:
    held = _episode(Perturbation({"weight_decay": 50.0}))
    assert held.runs.settings.array("weight_decay", 2).tolist() == [10.0, 10.0]


def test_another_rule_is_that_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    held = _run(_episode(Perturbation(rule={"cautious": False, "vector_scale": 1.0})))
    own = OPTIMIZERS[STEERABLE]
    rule = replace(own.rule, cautious=False, vector_scale=1.0)
    monkeypatch.setitem(OPTIMIZERS, STEERABLE, replace(own, rule=rule))
    assert np.array_equal(held[-1], _run(_episode())[-1])
    monkeypatch.undo()
    assert not np.array_equal(held[-1], _run(_episode())[-1])


@pytest.mark.parametrize(("matrix", "place"), [("first", 0), ("last", -1)])
def test_a_matrix_is_changed_alone(matrix: str, place: int) -> None:
    """In the first step of the third interval, where it begins, nothing else grows apart."""
    change = MatrixChange(matrix, "learning_rate", 3.0)
    plain, held = _episode(), _episode(Perturbation(after=0.4, matrices=(change,)))
    zero = np.zeros((2, N_CONTROLS))
    plain.step(zero)
    held.step(zero)
    assert torch.equal(plain.runs.flat, held.runs.flat)
    begun = plain.runs.flat.clone()
    for episode in (plain, held):
        episode.runs.set(episode._settings(), episode._matrix_factors())
        episode.runs.advance(1)
    inside = torch.zeros(begun.shape[1], dtype=torch.bool)
    one = episode.runs._matrices[place]
    inside[one.start : one.stop] = True
    mine, theirs = plain.runs.flat - begun, held.runs.flat - begun
    torch.testing.assert_close(theirs[:, inside], 3.0 * mine[:, inside], rtol=1e-3, atol=1e-7)
    assert torch.equal(plain.runs.flat[:, ~inside], held.runs.flat[:, ~inside])
    assert plain.values.tolist() == held.values.tolist()  # what the policy is told of


def test_factors_of_a_matrix_go_with_the_runs_that_are_kept() -> None:
    changes = (
        MatrixChange("first", "learning_rate", 3.0),
        MatrixChange("last", "weight_decay", 5.0),
    )
    episode, other = (_episode(Perturbation(matrices=changes)) for _ in range(2))
    episode.runs.keep(np.array([1]))
    assert torch.equal(episode.runs.flat[0], other.runs.flat[1])
    for one in (episode, other):
        one.runs.advance(3)
    torch.testing.assert_close(episode.runs.flat[0], other.runs.flat[1])


def test_it_is_restored_with_the_episode() -> None:
    perturbation = Perturbation(
        {"learning_rate": 1.0},
        after=0.5,
        rule={"ns_steps": 1},
        matrices=(MatrixChange("first", "weight_decay", 9.0),),
    )
    first = _episode(perturbation)
    other = Episode.restore(first.task, first.config, None, first.state())
    assert torch.equal(torch.tensor(_run(first)[-1]), torch.tensor(_run(other)[-1]))


def test_runs_are_restored_with_the_factors_of_their_matrices() -> None:
    """Before its next decision, which sets them anew."""
    first = _episode(Perturbation(matrices=(MatrixChange("first", "weight_decay", 9.0),)))
    other = Episode.restore(first.task, first.config, None, first.state())
    for episode in (first, other):
        episode.runs.advance(3)
    assert torch.equal(first.runs.flat, other.runs.flat)


def test_a_state_of_before_there_was_one_is_restored() -> None:
    first = _episode()
    state = first.state()
    del state["own"]["perturbation"]
    other = Episode.restore(first.task, first.config, None, state)
    assert np.array_equal(_run(first)[-1], _run(other)[-1])


def test_what_the_optimizer_lacks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'clip_ratio'; torch\.optim\.AdamW has learning"):
        _episode(Perturbation({"clip_ratio": 1.0}), "torch.optim.AdamW")
    with pytest.raises(UnknownNameError, match="matrix"):
        MatrixChange("second", "learning_rate", 2.0)
    with pytest.raises(UnknownNameError, match="control of a matrix 'clip_ratio'"):
        MatrixChange("first", "clip_ratio", 2.0)
    for factor in (0.0, -1.0, np.nan, np.inf, 1e7, 1e-7):
        with pytest.raises(ConfigurationError, match=r"learning_rate; from 1e-06 to 1e\+06"):
            MatrixChange("first", "learning_rate", factor)
    with pytest.raises(UnknownNameError, match="update rule"):
        Perturbation(rule={"vector_size": 2.0})
    with pytest.raises(ConfigurationError, match="share from 0"):
        Perturbation({"learning_rate": 1.0}, after=1.0)
