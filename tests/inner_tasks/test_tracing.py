"""Recorded gradients are those of `torch.func`, to the bit."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from lhopt.inner_tasks import get_task
from lhopt.inner_tasks.base import Batch
from lhopt.inner_tasks.engine import BatchedRuns, Settings
from lhopt.inner_tasks.nets import Weights
from lhopt.inner_tasks.tracing import PATIENCE, Gradient
from lhopt.optimizers.update import STEERABLE

#: One of each kind of net; none needs a download.
FAMILIES = (
    "noisy-quadratic", "digits-vit", "digits-cnn", "parity-rnn", "char-gru", "tabular-mlp",
    "clusters-resmlp", "sets-net", "topics-bag", "zipf-bilinear", "graph-distance", "recommender",
    "signal-conv", "names-conv", "coordinate-sine", "friedman-rbf", "forest-cross", "recall-linear",
    "glyphs-mixer",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recording_gives_the_same_numbers(
    family: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lhopt")

    def losses(patience: int) -> tuple[np.ndarray, Tensor]:
        monkeypatch.setattr("lhopt.inner_tasks.tracing.PATIENCE", patience)
        runs = BatchedRuns(get_task(f"{family}/1"), [1, 2], Settings(1e-3), rule=STEERABLE)
        return runs.advance(6).losses, runs.flat

    plain, recorded = losses(10**9), losses(2)
    assert not caplog.records
    np.testing.assert_array_equal(recorded[0], plain[0])
    assert torch.equal(recorded[1], plain[1])


def test_runs_of_a_task_share_a_recording_and_fewer_runs_have_their_own() -> None:
    task = get_task("noisy-quadratic/3")
    settings = Settings(np.full(3, 1e-3))
    runs = BatchedRuns(task, [1, 2, 3], settings)
    alone = BatchedRuns(get_task("noisy-quadratic/3"), [1, 3], Settings(np.full(2, 1e-3)))
    runs.advance(PATIENCE + 5)
    assert runs._gradient._recorded is not None
    again = BatchedRuns(task, [4, 5, 6], settings)
    assert again._gradient is runs._gradient
    runs.keep(np.array([0, 2]))
    runs.advance(PATIENCE + 5)
    alone.advance(PATIENCE + 5)
    alone.advance(PATIENCE + 5)
    assert runs._gradient is not again._gradient
    assert runs._gradient._recorded is not None
    assert torch.equal(runs.flat, alone.flat)


def test_copies_and_pickles_of_a_task_have_gradients_of_their_own() -> None:
    task = get_task("tabular-mlp/1")
    before = BatchedRuns(task, [1, 2]).advance(1).losses
    for other in (copy.copy(task), copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        other.loss_scale = 5.0 * task.loss_scale
        np.testing.assert_allclose(BatchedRuns(other, [1, 2]).advance(1).losses, 5.0 * before)
    np.testing.assert_array_equal(BatchedRuns(task, [1, 2]).advance(1).losses, before)


def test_what_cannot_be_recorded_is_said_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lhopt")
    monkeypatch.setattr("lhopt.inner_tasks.tracing.PATIENCE", 2)
    task = get_task("noisy-quadratic/3")
    plain = Gradient(task)
    calls = []

    def fails_second(params: Weights, batch: Batch) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no recording of this")
        return type(task).loss(task, params, batch)

    monkeypatch.setattr(task, "loss", fails_second)
    odd = Gradient(task)
    runs = BatchedRuns(task, [1, 2])
    batch = runs._gather(torch.zeros(2, task.batch_size, dtype=torch.int64))
    for _ in range(4):
        mine, theirs = odd(runs.params(), batch), plain(runs.params(), batch)
        assert torch.equal(mine[1], theirs[1])
    assert "cannot be recorded: no recording of this" in caplog.text
