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
from lhopt.env.episode import Draw, Episode, Perturbation
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


def test_it_is_restored_with_the_episode() -> None:
    perturbation = Perturbation({"learning_rate": 1.0}, after=0.5, rule={"ns_steps": 1})
    first = _episode(perturbation)
    other = Episode.restore(first.task, first.config, None, first.state())
    assert torch.equal(torch.tensor(_run(first)[-1]), torch.tensor(_run(other)[-1]))


def test_a_state_of_before_there_was_one_is_restored() -> None:
    first = _episode()
    state = first.state()
    del state["own"]["perturbation"]
    other = Episode.restore(first.task, first.config, None, state)
    assert np.array_equal(_run(first)[-1], _run(other)[-1])


def test_what_the_optimizer_lacks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'clip_ratio'; torch\.optim\.AdamW has learning"):
        _episode(Perturbation({"clip_ratio": 1.0}), "torch.optim.AdamW")
    with pytest.raises(UnknownNameError, match="update rule"):
        Perturbation(rule={"vector_size": 2.0})
    with pytest.raises(ConfigurationError, match="share from 0"):
        Perturbation({"learning_rate": 1.0}, after=1.0)
