from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lhopt.core.controls import get_controls
from lhopt.core.features import FEATURES
from lhopt.core.schedules import Schedule
from lhopt.core.types import FloatArray
from lhopt.env.config import get_optimizer
from lhopt.policy.artifact import Policy

MakePolicy = Callable[..., Policy]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_policy() -> MakePolicy:
    """A policy with drawn weights: it moves every control, a little, by what it sees."""

    def make(optimizer: str = "torch.optim.AdamW", *, head: float = 0.3, width: int = 8) -> Policy:
        controls = get_controls(get_optimizer(optimizer).controls)
        n_choices = sum(len(control.choices) for control in controls)
        rng = np.random.default_rng(0)

        def drawn(*shape: int, scale: float = 0.3) -> FloatArray:
            return (scale * rng.normal(size=shape)).astype(np.float32)

        return Policy(
            name=optimizer.split(".")[-1].lower(),
            features=FEATURES,
            controls=controls,
            schedule=Schedule(),
            selection="mean",
            optimizer=optimizer,
            weights={
                "lstm.weight_ih": drawn(4 * width, len(FEATURES)),
                "lstm.weight_hh": drawn(4 * width, width),
                "lstm.bias": drawn(4 * width),
                "hidden.weight": drawn(width, width),
                "hidden.bias": drawn(width),
                "head.weight": drawn(n_choices, width, scale=head),
                "head.bias": np.zeros(n_choices, np.float32),
            },
        )

    return make
