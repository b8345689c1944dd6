from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.core.controls import get_controls
from lhopt.core.features import FEATURES
from lhopt.core.schedules import Schedule
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskPool, TaskSpec
from lhopt.inner_tasks import get_task
from lhopt.policy.artifact import Policy

torch.set_num_threads(1)

Make = Callable[..., Policy]


def make_policy(seed: int = 0, hidden: int = 8, **words: Any) -> Policy:
    """Random weights; every field may be overridden."""
    rng = np.random.default_rng(seed)
    controls = words.get("controls", get_controls(["learning_rate", "eps", "clip_ratio"]))
    features = words.get("features", FEATURES)
    choices, width = sum(len(c.choices) for c in controls), 6

    def weight(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    plain: dict[str, Any] = {
        "name": "random",
        "features": features,
        "controls": controls,
        "schedule": Schedule(),
        "selection": "mean",
        "optimizer": "torch.optim.AdamW",
        "training": {"config": {"seed": 3}, "updates": 5},
        "weights": {
            "lstm.weight_ih": weight(4 * hidden, len(features)),
            "lstm.weight_hh": weight(4 * hidden, hidden),
            "lstm.bias": weight(4 * hidden),
            "hidden.weight": weight(width, hidden),
            "hidden.bias": weight(width),
            "head.weight": weight(choices, width),
            "head.bias": weight(choices),
        },
    }
    return Policy(**{**plain, **words})


@pytest.fixture(scope="session")
def make() -> Make:
    return make_policy


@pytest.fixture(scope="session")
def policy() -> Policy:
    return make_policy()


@pytest.fixture(scope="session")
def pool() -> TaskPool:
    """Two tiny tasks with a made-up yardstick."""
    entries = []
    for name, steps in (("noisy-quadratic/3", 24), ("noisy-quadratic/4", 18)):
        frontier = Frontier(
            name, steps, (0.5, 1.0, 2.0), (2.0, 1.0, 0.5), (0.1,) * 3, 0.1, 64.0, (0.01, 0.1, 1.0)
        )
        entries.append(Entry(TaskSpec(name, steps), get_task(name), frontier))
    return TaskPool(entries)
