"""A policy under another optimizer: its heads for what both steer, and none of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from lhopt.cli.main import main
from lhopt.core.controls import CONTROLS, get_controls
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.core.features import FEATURES
from lhopt.env.config import OPTIMIZERS
from lhopt.policy.artifact import Policy, load, save
from lhopt.policy.lineage import families_met, families_trained_on
from lhopt.policy.runtime import forward
from lhopt.policy.transfer import transferred

ADAMW, STEERABLE = "torch.optim.AdamW", "lhopt.SteerableAdamW"


def _logits(policy: Policy) -> dict[str, np.ndarray]:
    """By control, after two steps."""
    rng = np.random.default_rng(2)
    hidden = cell = np.zeros((3, policy.hidden_size), np.float32)
    for observation in rng.standard_normal((2, 3, len(FEATURES))).astype(np.float32):
        hidden, cell, scores = forward(policy, hidden, cell, observation[:, policy.columns])
    ends = np.cumsum([len(control.choices) for control in policy.controls])[:-1]
    parts = np.split(scores, ends, axis=1)
    return {control.name: part for control, part in zip(policy.controls, parts, strict=True)}


def test_what_both_steer_is_steered_as_before(make: Callable[..., Policy]) -> None:
    met = {"config": {"families": ["docs-mlp"], "valid_families": ["sets-net"]}}
    controls = get_controls(OPTIMIZERS[STEERABLE].controls)
    policy = make(optimizer=STEERABLE, controls=controls, training=met)
    other = transferred(policy, ADAMW, "other")
    assert [control.name for control in other.controls] == list(OPTIMIZERS[ADAMW].controls)
    assert (other.name, other.optimizer) == ("other", ADAMW)
    before, after = _logits(policy), _logits(other)
    for name in OPTIMIZERS[ADAMW].controls:
        np.testing.assert_array_equal(after[name], before[name])
    assert families_met(other.training) == {"docs-mlp", "sets-net"}
    assert families_trained_on(other.training) == {"docs-mlp"}


def test_what_it_never_steered_is_held(policy: Policy) -> None:
    other = transferred(policy, STEERABLE, "other")
    assert [control.name for control in other.controls] == list(OPTIMIZERS[STEERABLE].controls)
    before, after = _logits(policy), _logits(other)
    for name in ("learning_rate", "clip_ratio"):
        np.testing.assert_array_equal(after[name], before[name])
    held = softmax(after["weight_decay"], axis=1)[:, CONTROLS["weight_decay"].noop]
    assert held == pytest.approx(0.7)
    back = transferred(other, ADAMW, "back")
    np.testing.assert_array_equal(_logits(back)["learning_rate"], before["learning_rate"])


def test_its_own_optimizer_and_an_unknown_one_are_refused(policy: Policy) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        transferred(policy, ADAMW, "x")
    with pytest.raises(UnknownNameError):
        transferred(policy, "torch.optim.SGD", "x")


def test_the_command_writes_a_policy(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(policy, tmp_path)
    words = ["policies", "transfer", str(tmp_path / "new"), str(tmp_path / "random.json")]
    assert main([*words, "--optimizer", STEERABLE, "--name", "moved"]) == 0
    assert "steers learning_rate, one_minus_beta1" in capsys.readouterr().out
    made = load(tmp_path / "new" / "moved")
    assert made.digest == transferred(policy, STEERABLE, "moved").digest
    assert main(["policies", "show", str(tmp_path / "new" / "moved.json")]) == 0
    assert f"transferred from random {policy.digest[:12]} of {ADAMW}" in capsys.readouterr().out
    assert main([*words, "--optimizer", ADAMW, "--name", "same"]) == 2
    assert main([*words, "--optimizer", STEERABLE, "--name", "../out"]) == 2
    assert not (tmp_path / "out.json").exists()


def test_a_control_with_choices_of_its_own_keeps_them(make: Callable[..., Policy]) -> None:
    """A policy of before a control's choices changed answers by those that its head is for."""
    fewer = replace(CONTROLS["learning_rate"], choices=(0.5, 1.0, 2.0))
    other = transferred(make(controls=(fewer,)), STEERABLE, "other")
    assert other.controls[0] == fewer
    assert _logits(other)["learning_rate"].shape == (3, 3)
