"""Inner runs compute without denormal numbers, and leave the caller's arithmetic as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.env.config import EnvConfig
from lhopt.env.denormals import denormals_flushed
from lhopt.env.episode import Episode, draw
from lhopt.inner_tasks.engine import BatchedRuns
from lhopt.inner_tasks.registry import get_task

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
