"""Inner runs compute without denormal numbers, and leave the caller's arithmetic as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode, draw
from lhopt.inner_tasks.engine import BatchedRuns
from lhopt.inner_tasks.registry import get_task
from lhopt.optimizers import SteerableAdamW
from lhopt.optimizers.denormals import denormals_flushed

CONFIG = EnvConfig(optimizer="lhopt.SteerableAdamW", intervals=(8, 8))


def flushed() -> bool:
    """Whether half of torch's smallest normal number is 0."""
    half = torch.full((), torch.finfo(torch.float32).tiny) * 0.5
    assert (half.item() == 0.0) == (sys.float_info.min / 2.0 == 0.0)
    return half.item() == 0.0


@pytest.fixture(params=[False, True])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    if not torch.set_flush_denormal(request.param):
        pytest.skip("this processor cannot flush denormals")
    yield request.param
    torch.set_flush_denormal(False)


def test_what_was_before_comes_back_after_an_error_too(before: bool) -> None:
    def fail() -> None:
        with denormals_flushed():
            assert flushed()
            with denormals_flushed():
                pass
            assert flushed()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert flushed() == before


def test_every_step_and_every_evaluation_of_an_episode_is_flushed(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    advance, evaluate = BatchedRuns.advance, BatchedRuns.evaluate

    def watched_advance(self: BatchedRuns, *args: Any, **kwargs: Any) -> Any:
        seen.append(flushed())
        return advance(self, *args, **kwargs)

    def watched_evaluate(self: BatchedRuns, *args: Any, **kwargs: Any) -> Any:
        seen.append(flushed())
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(BatchedRuns, "advance", watched_advance)
    monkeypatch.setattr(BatchedRuns, "evaluate", watched_evaluate)
    drawn = draw(CONFIG, np.random.default_rng(0), 2)
    episode = Episode(get_task("friedman-mlp/0"), 40, CONFIG, drawn)
    while not episode.finished:
        episode.step(np.zeros((2, episode.start.shape[1])))
        assert flushed() == before
    assert len(seen) >= 8
    assert all(seen)


def test_what_a_dead_unit_leaves_decays_to_nothing(before: bool) -> None:
    """Not to denormal numbers, which a processor takes thirty times as long for."""
    weights = torch.nn.Parameter(torch.ones(6, 4))
    optimizer = SteerableAdamW([weights])
    dead = torch.arange(6) < 3
    for step in range(700):  # 0.85 ** 560 is below the smallest normal number
        gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        weights.grad = torch.where(dead[:, None] & (step > 0), 0.0, gradient)
        optimizer.step()
        assert flushed() == before
    momentum = optimizer.state[weights]["exp_avg"]
    bits = momentum[dead].view(torch.int32)  # comparisons of numbers may flush them
    assert int((bits & 0x7FFFFFFF).max()) == 0
    assert bool((momentum[~dead] != 0.0).all())
