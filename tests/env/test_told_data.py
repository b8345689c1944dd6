"""What a job tells of its data reaches the policy: passes over them, and parameters per label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lhopt.core.features import FEATURES
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode, draw
from lhopt.inner_tasks import get_task

TASK = get_task("topics-bag/0")


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_shares_say_which_runs_tell(told: float) -> None:
    config = EnvConfig(epochs_share=1.0 - told, labels_share=told, intervals=(8, 8))
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = draw(config, rng, 2)
        assert (drawn.tells_labels, drawn.tells_epochs) == (bool(told), not told)
    seen = dict(zip(FEATURES, Episode(TASK, 16, config, drawn).observation[0], strict=True))
    assert (seen["run/params_per_label_known"], seen["run/epochs_known"]) == (told, 1.0 - told)
    n_params = sum(p.numel() for p in TASK.init(torch.Generator().manual_seed(0)).values())
    wanted = np.log(n_params / len(TASK.arrays("train")[0])) / 2.0 if told else 0.0
    assert seen["run/params_per_label"] == pytest.approx(wanted, abs=1e-6)


def test_every_entry_that_is_predicted_is_a_label() -> None:
    task = get_task("signal-denoise/0")
    inputs, targets = task.arrays("train")
    assert targets.ndim > 1
    assert task.n_labels() == targets.numel() > len(inputs)


def test_an_episode_that_is_restored_tells_the_same() -> None:
    config = EnvConfig(labels_share=1.0, intervals=(4, 4))
    episode = Episode(TASK, 16, config, draw(config, np.random.default_rng(1), 2))
    other = Episode.restore(TASK, replace(config), None, episode.state())
    still = np.zeros((2, episode.values.shape[1]))
    np.testing.assert_array_equal(other.step(still), episode.step(still))
