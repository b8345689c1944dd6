"""Several policies as one network."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhopt.cli import policies as command
from lhopt.core.controls import get_controls
from lhopt.core.errors import ConfigurationError
from lhopt.core.features import FEATURES
from lhopt.core.schedules import Schedule
from lhopt.core.types import FloatArray
from lhopt.policy.artifact import Policy, load, save
from lhopt.policy.combine import combine
from lhopt.policy.lineage import families_met
from lhopt.policy.runtime import forward

#: Steps after which memory has its say.
STEPS = 6


def logits(policy: Policy, observations: FloatArray) -> FloatArray:
    """Of every step: `(T, K, F)` over all features to `(T, K, choices)`."""
    hidden = cell = np.zeros((observations.shape[1], policy.hidden_size), np.float32)
    out = []
    for observation in observations:
        hidden, cell, scores = forward(policy, hidden, cell, observation[:, policy.columns])
        out.append(scores)
    return np.stack(out)


@pytest.fixture
def observations() -> FloatArray:
    shape = (STEPS, 3, len(FEATURES))
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def test_the_combination_answers_with_the_mean_logits(
    make: Callable[..., Policy], observations: FloatArray
) -> None:
    """Of LSTMs of different widths that read different features."""
    parts = [
        make(1, hidden=8, features=FEATURES[:40], name="a"),
        make(2, hidden=5, features=(*FEATURES[3:7], FEATURES[90], FEATURES[1]), name="b"),
        make(3, hidden=12, features=FEATURES[30:], name="c"),
    ]
    whole = combine(parts, "whole")
    assert whole.hidden_size == 25
    assert whole.features == FEATURES
    expected = np.mean([logits(part, observations) for part in parts], axis=0)
    np.testing.assert_allclose(logits(whole, observations), expected, atol=2e-6)
    assert np.abs(expected - logits(parts[0], observations)).max() > 0.1
    pair = combine([parts[1], replace(parts[1], name="again")], "pair")
    assert set(pair.features) == set(parts[1].features)
    np.testing.assert_allclose(
        logits(pair, observations), logits(parts[1], observations), atol=2e-6
    )


def test_it_is_saved_and_says_what_it_comes_from(
    make: Callable[..., Policy], tmp_path: Path
) -> None:
    older = {"tasks": [["texture-cnn/1", 100]], "config": {}}
    a = make(1, name="a", training={"tasks": [["parity-rnn/1", 90]], "from": {"training": older}})
    b = make(2, name="b", training={"config": {"families": ["sets-net"]}})
    whole = combine([a, b], "whole")
    assert load(save(whole, tmp_path)).digest == whole.digest
    assert families_met(whole.training) == {"parity-rnn", "texture-cnn", "sets-net"}
    again = combine([whole, make(3)], "again")
    assert families_met(again.training) == families_met(whole.training)


def test_what_cannot_be_combined_is_refused(make: Callable[..., Policy]) -> None:
    one = make(1, name="one")
    for given in ([], [one], [one, make(2), one]):
        with pytest.raises(ConfigurationError, match="two or more policies, each once"):
            combine(given, "whole")
    for part, other in {
        "controls": make(2, controls=get_controls(["learning_rate"])),
        "schedule": make(2, schedule=Schedule(warmup=3)),
        "optimizer": make(2, optimizer="torch.optim.SGD"),
        "selection": make(2, selection="mode"),
    }.items():
        with pytest.raises(ConfigurationError, match=f"'one' and 'random' differ in {part};"):
            combine([one, other], "whole")


def test_the_command_writes_a_policy_and_shows_its_parts(
    make: Callable[..., Policy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> int:
        parser = argparse.ArgumentParser()
        command.add_parser(parser.add_subparsers())
        args = parser.parse_args(["policies", *words])
        return int(args.func(args))

    parts = [make(1, name="a"), make(2, name="b")]
    paths = [str(save(part, tmp_path)) for part in parts]
    assert run("combine", str(tmp_path / "new"), *paths, "--name", "whole") == 0
    whole = combine(parts, "whole")
    assert f"whole {whole.digest[:12]}, an LSTM of 16" in capsys.readouterr().out
    assert run("show", str(tmp_path / "new" / "whole.json")) == 0
    out = capsys.readouterr().out
    assert all(f"combined     {part.name} {part.digest[:12]}" in out for part in parts)
    assert run("combine", str(tmp_path), paths[0], "--name", "whole") == 2
    assert "two or more" in capsys.readouterr().err
