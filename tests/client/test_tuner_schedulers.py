from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from lhopt.client import Tuner
from lhopt.core.errors import ConfigurationError, SchedulerConflict
from lhopt.policy.artifact import Policy

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1.0 / (1.0 + 0.1 * step)),
    "lambda-warmup-from-0": lambda o: schedulers.LambdaLR(o, lambda step: min(1.0, step / 20)),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 60, eta_min=1e-4),
    "cosine-restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 13, eta_min=1e-4),
    "one-cycle": lambda o: schedulers.OneCycleLR(o, [0.01, 0.001], total_steps=61),
    "step": lambda o: schedulers.StepLR(o, 7, 0.5),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.98),
    "sequential": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, 0.1, total_iters=10), schedulers.CosineAnnealingLR(o, 50)],
        [10],
    ),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o, 0.1, total_iters=10), schedulers.ExponentialLR(o, 0.99)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_our_factor_multiplies_the_scheduler(
    name: str,
    make_job: Callable[[], Any],
    policy: Policy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone, job = make_job(), make_job()
    plain = torch.optim.AdamW(alone.groups())
    plain_scheduler = SCHEDULERS[name](plain)
    optimizer = torch.optim.AdamW(job.groups())
    scheduler = SCHEDULERS[name](optimizer)
    tuner = Tuner(optimizer, 60, interval=5, policy=policy, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]  # default shape off
    factor = 1.0
    for step in range(60):
        alone.run(plain, None, range(step, step + 1), plain_scheduler)
        taken = len(tuner.history)
        job.run(optimizer, tuner, range(step, step + 1), scheduler)
        if len(tuner.history) > taken:
            factor *= tuner.history[-1].moves["learning_rate"]
        for ours, theirs in zip(optimizer.param_groups, plain.param_groups, strict=True):
            assert ours["lr"] == pytest.approx(factor * theirs["lr"], rel=1e-6, abs=1e-15)
    assert factor != pytest.approx(1.0)
    assert all(r.source == "policy" for r in tuner.history)
    assert not caplog.records  # what a scheduler writes that was declared is no news
    if name == "one-cycle":
        assert all(r.moves["one_minus_beta1"] == 1.0 for r in tuner.history)
    tuner.close()


def test_a_rate_that_its_scheduler_has_taken_to_0_is_told_as_that(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    scheduler = schedulers.LinearLR(optimizer, 1.0, 0.0, total_iters=20)
    tuner = Tuner(optimizer, 40, interval=5, policy=policy, scheduler=scheduler)
    job.run(optimizer, tuner, range(10), scheduler)
    assert tuner.values["learning_rate"] > 0.0
    job.run(optimizer, tuner, range(10, 40), scheduler)
    assert tuner.values["learning_rate"] == 0.0
    assert tuner.history[-1].values["learning_rate"] == 0.0
    # what never had a value has none
    plain = Tuner(torch.optim.SGD(job.groups(), momentum=0.0), 40, interval=5, policy=policy)
    assert "one_minus_beta1" not in plain.values


def test_a_scheduler_that_was_not_declared_is_refused(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    schedulers.CosineAnnealingLR(optimizer, 60)
    with pytest.raises(SchedulerConflict, match=r"scheduler=\.\.\."):
        Tuner(optimizer, 60, policy=policy)
    # without the learning rate there is nothing to share
    Tuner(optimizer, 60, policy=policy, controls=["weight_decay"]).close()
    Tuner(optimizer, 60, policy=policy, frozen={"learning_rate"}).close()


def test_a_scheduler_of_another_optimizer_is_refused(job: Any, policy: Policy) -> None:
    optimizer, other = (torch.optim.AdamW(job.groups()) for _ in range(2))
    with pytest.raises(ConfigurationError, match="another optimizer"):
        Tuner(optimizer, 60, policy=policy, scheduler=schedulers.StepLR(other, 3))
    with pytest.raises(ConfigurationError, match=r"step\(\)"):
        Tuner(optimizer, 60, policy=policy, scheduler="cosine")
    with pytest.raises(ConfigurationError, match=r"a class; pass the object"):
        Tuner(optimizer, 60, policy=policy, scheduler=schedulers.StepLR)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_rate_that_somebody_else_writes_is_let_go(
    tensor: bool, job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    lr = torch.tensor(0.01) if tensor else 0.01
    optimizer = torch.optim.AdamW(job.net.parameters(), lr=lr, foreach=False)
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(12))
    if tensor:
        optimizer.param_groups[0]["lr"].fill_(0.005)
    else:
        optimizer.param_groups[0]["lr"] = 0.005
    job.run(optimizer, tuner, range(12, 60))
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.005)
    assert len(caplog.records) == 1
    assert "learning_rate was changed by somebody else" in caplog.text
    assert tuner.history[-1].moves["learning_rate"] == 1.0
    # the rest is still steered
    assert tuner.history[-1].values["weight_decay"] != tuner.history[2].values["weight_decay"]
    tuner.close()
