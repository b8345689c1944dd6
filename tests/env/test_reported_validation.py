"""A validation loss that an episode reports is in the unit of its train loss."""

from __future__ import annotations

import numpy as np
import pytest

from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.features import FEATURES
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Draw, Episode
from lhopt.inner_tasks import get_family
from lhopt.inner_tasks.supervised import SupervisedFamily


def _episode(scale: float) -> Episode:
    family = get_family("clusters-few")
    assert isinstance(family, SupervisedFamily)
    config = EnvConfig()
    start = np.full((2, N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    drawn = Draw((1, 2), start, 5, reports_valid=True)
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
