from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from lhopt.client import Tuner
from lhopt.core.errors import ConfigurationError, SchedulerConflict
from lhopt.policy.artifact import Policy


class Plateau(schedulers.ReduceLROnPlateau):
    """Of a loss that never falls."""

    def step(self, *args: Any) -> None:
        super().step(1.0)


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
    "plateau": lambda o: Plateau(o, factor=0.5, patience=4, min_lr=1e-4),
    "swa": lambda o: SWALR(o, swa_lr=0.005, anneal_epochs=30),
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


@pytest.mark.parametrize("name", SCHEDULERS)
def test_in_whatever_order_it_is_loaded_a_run_with_a_scheduler_goes_on(
    name: str, make_job: Callable[[], Any], policy: Policy
) -> None:
    def begin() -> tuple[Any, dict[str, Any]]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())
        scheduler = SCHEDULERS[name](optimizer)
        tuner = Tuner(optimizer, 60, interval=5, policy=policy, scheduler=scheduler)
        return job, {"optimizer": optimizer, "scheduler": scheduler, "tuner": tuner}

    def run(job: Any, parts: dict[str, Any], steps: range) -> None:
        job.run(parts["optimizer"], parts["tuner"], steps, parts["scheduler"])

    whole, parts = begin()
    run(whole, parts, range(23))
    weights = copy.deepcopy(whole.net.state_dict())
    saved = {key: copy.deepcopy(part.state_dict()) for key, part in parts.items()}
    rates = [group["lr"] for group in parts["optimizer"].param_groups]
    run(whole, parts, range(23, 40))
    for order in permutations(saved):
        job, resumed = begin()
        job.net.load_state_dict(weights)
        for key in order:
            resumed[key].load_state_dict(copy.deepcopy(saved[key]))
        assert [group["lr"] for group in resumed["optimizer"].param_groups] == rates, order
        assert resumed["scheduler"].get_last_lr() == saved["scheduler"]["_last_lr"], order
        run(job, resumed, range(23, 40))
        assert torch.equal(job.weights(), whole.weights()), order


def test_a_checkpoint_of_before_bases_were_kept_resumes_with_a_plateau(
    make_job: Callable[[], Any], policy: Policy
) -> None:
    def begin() -> tuple[Any, ...]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())
        scheduler = SCHEDULERS["plateau"](optimizer)
        return (
            job,
            optimizer,
            scheduler,
            Tuner(optimizer, 60, interval=5, policy=policy, scheduler=scheduler),
        )

    job, optimizer, scheduler, tuner = begin()
    job.run(optimizer, tuner, range(23), scheduler)
    saved = copy.deepcopy([p.state_dict() for p in (optimizer, scheduler, tuner)])
    for group in saved[0]["param_groups"]:
        del group["initial_lr"]
    del saved[2]["steering"]["hyperparameters"]["bases"]
    _, *parts = begin()
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    for ours, theirs in zip(parts[0].param_groups, optimizer.param_groups, strict=True):
        assert ours["lr"] == theirs["lr"]
        assert ours["initial_lr"] == pytest.approx(theirs["initial_lr"])


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"plateau", "one-cycle"}))
def test_a_scheduler_constructed_after_the_tuner_gets_the_rate_without_our_factor(
    name: str, make_job: Callable[[], Any], policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    alone, job = make_job(), make_job()
    plain, optimizer = (torch.optim.AdamW(j.groups()) for j in (alone, job))
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    factor = optimizer.param_groups[0]["lr"] / 0.01
    assert factor < 0.2  # the schedule's warm-up
    theirs, ours = SCHEDULERS[name](plain), SCHEDULERS[name](optimizer)
    for step in range(60):
        alone.run(plain, None, range(step, step + 1), theirs)
        job.run(optimizer, tuner, range(step, step + 1), ours)
        for a, b in zip(optimizer.param_groups, plain.param_groups, strict=True):
            assert a["lr"] == pytest.approx(b["lr"], rel=1e-9, abs=1e-15)
    (message,) = caplog.messages
    assert f"its factor on it was {factor:.3g}, and is taken out" in message
    assert "construct that first and pass scheduler=..." in message
    # the rest is still steered
    assert tuner.history[-1].values["weight_decay"] != tuner.history[2].values["weight_decay"]


def test_a_rate_that_a_scheduler_takes_over_in_mid_run_goes_on_from_where_it_is(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(12))
    reached = optimizer.param_groups[0]["lr"]
    scheduler = schedulers.StepLR(optimizer, 20, 0.5)
    job.run(optimizer, tuner, range(12, 60), scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.25 * reached
    (message,) = caplog.messages
    assert f"its factor on it was {reached / 0.01:.3g})" in message
    assert all(record.moves["learning_rate"] == 1.0 for record in tuner.history[3:])


def test_a_plateau_that_was_not_declared_is_seen_when_it_first_writes(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    scheduler = Plateau(optimizer, patience=7)
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(8), scheduler)
    reached = optimizer.param_groups[0]["lr"]
    job.run(optimizer, tuner, range(8, 15), scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * reached)
    (message,) = caplog.messages
    assert f"its factor on it was {reached / 0.01:.3g})" in message


@pytest.mark.parametrize("name", ["cosine", "lambda", "plateau"])
def test_groups_that_share_one_tensor_get_the_factor_once(
    name: str, job: Any, policy: Policy
) -> None:
    rate = torch.tensor(0.01, dtype=torch.float64)
    groups = [{"params": list(job.net[i].parameters())} for i in (0, 2)]
    optimizer = torch.optim.AdamW(groups, lr=rate, foreach=False)
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    scheduler = SCHEDULERS[name](optimizer)
    tuner = Tuner(optimizer, 60, interval=5, policy=policy, scheduler=scheduler)
    for step in range(12):
        before, taken = float(rate), len(tuner.history)
        job.run(optimizer, tuner, range(step, step + 1))
        factor = tuner.history[-1].moves["learning_rate"] if len(tuner.history) > taken else 1.0
        assert float(rate) == pytest.approx(factor * before)
        scheduler.step()


def test_a_scheduler_that_keeps_its_rates_elsewhere_is_told_once(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    class Elsewhere:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            self.base_values = [group["lr"] for group in optimizer.param_groups]

        def step(self) -> None:
            for group, value in zip(self.optimizer.param_groups, self.base_values, strict=True):
                group["lr"] = value

    optimizer = torch.optim.AdamW(job.groups())
    scheduler = SimpleNamespace(scheduler=Elsewhere(optimizer), step=lambda: None)  # wrapped
    Tuner(optimizer, 60, policy=policy, scheduler=scheduler, frozen={"learning_rate"})
    assert not caplog.records
    tuner = Tuner(optimizer, 60, interval=5, policy=policy, scheduler=scheduler)
    job.run(optimizer, tuner, range(60), scheduler.scheduler)
    (message,) = caplog.messages
    assert "Elsewhere keeps its rates where the Tuner does not look" in message
    assert "frozen={'learning_rate'}" in message
