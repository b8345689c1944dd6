"""Values of an optimizer, as we start, move and read them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.client.hyperparameters import Hyperparameters
from lhopt.core.actions import COLUMN, N_CONTROLS, Decision
from lhopt.core.adapters import adapter_for


def moved(name: str, delta: float) -> Decision:
    row = np.zeros((1, N_CONTROLS))
    row[0, COLUMN[name]] = delta
    return replace(Decision.hold(), delta=row)


def test_a_beta_that_was_moved_to_0_is_still_there_and_comes_back(job: Any) -> None:
    optimizer = torch.optim.AdamW(job.net.parameters(), lr=0.01, betas=(0.9, 0.999))
    held = Hyperparameters(optimizer, adapter_for(optimizer))
    held.apply(moved("one_minus_beta1", 5.0))
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.999)
    assert held.values()["one_minus_beta1"] == 1.0
    assert not held.foreign(None, tensors=True)
    held.apply(moved("one_minus_beta1", -np.log(4.0)))
    assert held.values()["one_minus_beta1"] == pytest.approx(0.25)


def test_a_beta_that_was_0_from_the_start_is_nobody_s_to_move(job: Any) -> None:
    optimizer = torch.optim.AdamW(job.net.parameters(), lr=0.01, betas=(0.0, 0.999))
    held = Hyperparameters(optimizer, adapter_for(optimizer))
    assert "one_minus_beta1" not in held.names
    assert "one_minus_beta1" not in held.values()
