"""`Tuner(validate=...)`: the Tuner measures a held-out loss and its slope, and leaves no trace."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lhopt.client import Tuner, ranks
from lhopt.client.validation import Validation
from lhopt.core.errors import ConfigurationError
from lhopt.core.features import FEATURES
from lhopt.core.statistics import SLOPE_STEP
from lhopt.optimizers import SteerableAdamW
from lhopt.policy.artifact import Policy

STEPS, INTERVAL = 24, 8


def without_slope(policy: Policy) -> Policy:
    """The same policy, but for that feature."""
    features = tuple(name for name in FEATURES if name != "valid/slope")
    weights = dict(policy.weights)
    kept = [i for i, name in enumerate(FEATURES) if name != "valid/slope"]
    weights["lstm.weight_ih"] = weights["lstm.weight_ih"][:, kept]
    return replace(policy, features=features, weights=weights)


def held_out(job: Any) -> Tensor:
    """On the job's last rows, which is no held-out data, but a function of the weights."""
    loss: Tensor = (job.net(job.x[48:]) - job.y[48:]).square().mean()
    return loss


@pytest.mark.parametrize("kind", ["adamw", "averaged"])
def test_loss_and_slope_are_those_of_the_weights_and_nothing_else_changes(
    job: Any, make_job: Any, policy: Policy, kind: str
) -> None:
    """Up to the first decision, a run that validates is to the bit the one that does not."""

    def make(of: Any) -> torch.optim.Optimizer:
        if kind == "adamw":
            return torch.optim.AdamW(of.net.parameters(), lr=0.01)
        return SteerableAdamW(of.net.parameters(), lr=0.01)

    frozen: dict[str, Any] = {
        "frozen": [c.name for c in policy.controls if c.name != "weight_decay"]
    }
    optimizer, calls = make(job), []

    def validate() -> Tensor:
        torch.rand(3)  # as a data loader draws its seed
        np.random.rand(3)  # noqa: NPY002
        random.random()
        assert not torch.is_grad_enabled()
        calls.append(job.weights())
        return held_out(job)

    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy, validate=validate, **frozen)

    def states() -> tuple[list[int], Any, Any]:
        numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
        numpy = (numpy["pos"], numpy["key"].tolist())
        return torch.get_rng_state().tolist(), random.getstate(), numpy

    before = states()
    job.run(optimizer, tuner, range(INTERVAL))
    assert states() == before
    twin = make_job()
    plain = make(twin)
    silent = Tuner(plain, STEPS, interval=INTERVAL, policy=policy, **frozen)
    twin.run(plain, silent, range(INTERVAL))
    assert torch.equal(job.weights(), twin.weights())

    assert len(calls) == 4
    raw = twin.weights()
    torch.testing.assert_close(calls[1], raw * (1 - SLOPE_STEP))
    torch.testing.assert_close(calls[2], raw * (1 + SLOPE_STEP))
    assert torch.equal(calls[3], raw)
    assert torch.equal(calls[0], raw) == (kind == "adamw")  # else the averaged ones
    got = tuner.history[1].statistics
    losses = []
    for weights in calls:
        torch.nn.utils.vector_to_parameters(weights, twin.net.parameters())
        losses.append(float(held_out(twin).detach()))
    assert got["valid_loss"] == pytest.approx(losses[0])
    slope = (losses[2] - losses[1]) / (2 * SLOPE_STEP) / ((losses[1] + losses[2]) / 2)
    assert got["valid_slope"] == pytest.approx(slope, rel=1e-4)
    bend = (losses[1] + losses[2] - 2 * losses[3]) / SLOPE_STEP**2 / losses[3]
    assert got["valid_curvature"] == pytest.approx(bend, rel=1e-4)
    assert "valid_slope" not in silent.history[1].statistics


def test_a_policy_that_does_not_read_the_slope_costs_one_call(job: Any, policy: Policy) -> None:
    optimizer, calls = torch.optim.AdamW(job.net.parameters()), []

    def validate() -> float:
        calls.append(0)
        return 2.5

    tuner = Tuner(
        optimizer, STEPS, interval=INTERVAL, policy=without_slope(policy), validate=validate
    )
    job.run(optimizer, tuner, range(STEPS))
    assert len(calls) == 2  # the end of a run is no decision
    assert tuner.history[1].statistics["valid_loss"] == 2.5
    assert "valid_slope" not in tuner.history[1].statistics


@pytest.mark.parametrize("failing", [1, 2, 3, 4], ids=["loss", "smaller", "larger", "same"])
def test_a_validation_that_fails_gives_the_weights_back_and_warns_once(
    job: Any, make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture, failing: int
) -> None:
    """And what was measured before stays: a slope that fails is no loss that diverged."""
    optimizer, calls = SteerableAdamW(job.net.parameters(), lr=0.01), []
    seen: list[Tensor] = []

    def validate() -> Tensor:
        calls.append(0)
        # where one of a slope's calls fails, the next are not made
        at = (len(calls) - 1) % (4 if failing == 1 else failing) + 1
        if at == failing:
            raise RuntimeError("no such file")
        return held_out(job)

    names = [c.name for c in policy.controls]
    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy, validate=validate,
                  controls=names[:1])  # fmt: skip
    with caplog.at_level(logging.WARNING, "lhopt"):
        for step in range(INTERVAL):
            job.run(optimizer, tuner, range(step, step + 1))
            seen.append(job.weights())
    what = "validation" if failing == 1 else "the validation's slope"
    assert [r.message for r in caplog.records] == [
        f"lhopt: {what} failed and was left out; training goes on: RuntimeError: no such file"
    ]
    got = tuner.history[1].statistics
    assert ("valid_loss" in got) == (failing != 1)
    assert ("valid_slope" in got) == (failing == 1)
    twin = make_job()
    plain = SteerableAdamW(twin.net.parameters(), lr=0.01)
    silent = Tuner(plain, STEPS, interval=INTERVAL, policy=policy, controls=names[:1])
    twin.run(plain, silent, range(INTERVAL))
    assert torch.equal(seen[-1], twin.weights())


def test_a_loop_that_reports_before_its_backward_pass_goes_on(job: Any, policy: Policy) -> None:
    optimizer = SteerableAdamW(job.net.parameters(), lr=0.01)
    tuner = Tuner(
        optimizer, STEPS, interval=INTERVAL, policy=policy, validate=lambda: held_out(job)
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = job.loss(step)
        tuner.report(loss)
        loss.backward()
        optimizer.step()
    assert "valid_slope" in tuner.history[1].statistics


def test_a_validation_that_shuffles_sees_the_same_examples_every_time(
    job: Any, policy: Policy
) -> None:
    optimizer, drawn = torch.optim.AdamW(job.net.parameters()), []

    def validate() -> Tensor:
        drawn.append(torch.randperm(64)[:8])
        loss: Tensor = (job.net(job.x[drawn[-1]]) - job.y[drawn[-1]]).square().mean()
        return loss

    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy, validate=validate)
    job.run(optimizer, tuner, range(INTERVAL))
    assert len(drawn) == 4
    assert all(torch.equal(rows, drawn[0]) for rows in drawn)


def test_a_validation_of_a_copy_is_told_once_and_has_no_slope(
    job: Any, make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, copied = torch.optim.AdamW(job.net.parameters()), make_job()
    tuner = Tuner(
        optimizer, STEPS, interval=INTERVAL, policy=policy, validate=lambda: held_out(copied)
    )
    with caplog.at_level(logging.WARNING, "lhopt"):
        job.run(optimizer, tuner, range(STEPS))
    assert len(caplog.records) == 1
    assert "no copy of it" in caplog.records[0].message
    assert "valid_loss" in tuner.history[1].statistics
    assert "valid_slope" not in tuner.history[1].statistics


def test_over_http_a_server_that_does_not_ask_for_the_slope_gets_the_loss_alone(
    job: Any, fake_server: Any
) -> None:
    optimizer, calls = torch.optim.AdamW(job.net.parameters()), []

    def validate() -> float:
        calls.append(0)
        return 1.5

    with fake_server.client() as client:
        tuner = Tuner(optimizer, STEPS, interval=INTERVAL, client=client, validate=validate)
        job.run(optimizer, tuner, range(STEPS))
        tuner.close()
    assert len(calls) == 2
    assert tuner.history[1].statistics["valid_loss"] == 1.5
    assert tuner.history[1].source == "policy"


def test_a_loss_that_is_no_number_has_no_slope(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.net.parameters())
    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy, validate=lambda: float("inf"))
    job.run(optimizer, tuner, range(STEPS))
    assert "valid_slope" not in tuner.history[1].statistics
    assert {record.source for record in tuner.history} == {"policy"}


def test_a_checkpoint_holds_it_and_one_of_before_is_read(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.net.parameters())
    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy)
    job.run(optimizer, tuner, range(INTERVAL + 2))
    tuner._log.valid_slope = 0.25
    state = tuner.state_dict()
    assert state["log"]["valid_slope"] == 0.25
    other = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy)
    other.load_state_dict(state)
    assert other._log.valid_slope == 0.25
    del state["log"]["valid_slope"]
    other.load_state_dict(state)
    assert other._log.valid_slope is None


def test_what_cannot_be_called_or_would_wait_for_others_is_refused(
    job: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = torch.optim.AdamW(job.net.parameters())
    with pytest.raises(ConfigurationError, match="a function without arguments"):
        Tuner(optimizer, STEPS, policy=policy, validate=np.float64(1.0))  # type: ignore[arg-type]
    monkeypatch.setattr(ranks, "alone", lambda: False)
    with pytest.raises(ConfigurationError, match="report_validation"):
        Tuner(optimizer, STEPS, policy=policy, validate=lambda: 1.0)


def test_inside_autocast_each_call_and_the_training_see_the_weights_that_are_there() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    x, y = torch.randn(64, 8), torch.randn(64, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    validation = Validation(optimizer, lambda: (net(x).float() - y).square().mean())
    outside = validation.slope_and_curvature()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = net(x)  # keeps its casts of the weights
        slope, _ = validation.slope_and_curvature()
        after = net(x)
    assert slope == pytest.approx(outside[0], rel=0.2, abs=0.05)
    assert torch.equal(before, after)


def test_a_training_whose_forward_pass_comes_after_the_report_keeps_its_casts_to_itself() -> None:
    torch.manual_seed(0)
    net, x = torch.nn.Linear(8, 4), torch.randn(64, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    validation = Validation(optimizer, lambda: net(x).float().square().mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        validation.slope_and_curvature()
        assert torch.equal(net(x), plain)
