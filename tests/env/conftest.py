from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskPool, TaskSpec
from lhopt.inner_tasks import get_task

torch.set_num_threads(1)

TASK = "noisy-quadratic/3"


def by_hand(task: str = TASK, steps: int = 24) -> Frontier:
    """A frontier whose losses halve with each octave: speeds are then read off by hand."""
    return Frontier(
        task=task,
        steps=steps,
        budgets=(0.5, 1.0, 2.0),
        losses=(2.0, 1.0, 0.5),
        best_rates=(0.1, 0.1, 0.1),
        noise=0.1,
        untrained=64.0,
        rates=(0.01, 0.1, 1.0),
    )


@pytest.fixture
def frontier() -> Frontier:
    return by_hand()


@pytest.fixture
def config() -> EnvConfig:
    return EnvConfig(intervals=(4, 6), valid_share=0.5)


@pytest.fixture(scope="session")
def pool() -> TaskPool:
    rows = [("noisy-quadratic/3", 24), ("noisy-quadratic/4", 18)]
    return TaskPool([Entry(TaskSpec(t, n), get_task(t), by_hand(t, n)) for t, n in rows])


@pytest.fixture
def break_next(monkeypatch: pytest.MonkeyPatch) -> Callable[[Episode, int], None]:
    """Make a run's weights infinite at the last step of the next interval, unseen by its losses."""

    def patch(episode: Episode, row: int) -> None:
        advance = episode.runs.advance

        def breaking(*args: Any) -> Any:
            seen = advance(*args)
            episode.runs.flat[row] = torch.inf
            return seen

        monkeypatch.setattr(episode.runs, "advance", breaking)

    return patch
