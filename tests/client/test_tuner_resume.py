from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from lhopt.client import Tuner
from lhopt.core.errors import ResumeError
from lhopt.policy.artifact import Policy


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("stop", [1, 5, 13, 20, 57])
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_run_is_the_uninterrupted_run(
    stop: int, optimizer_first: bool, make_job: Any, policy: Policy
) -> None:
    def begin() -> tuple[Any, torch.optim.Optimizer, Tuner]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())
        return job, optimizer, Tuner(optimizer, 60, interval=5, policy=policy)

    whole, optimizer, tuner = begin()
    whole.run(optimizer, tuner, range(60))
    expected = {r.index: (r.step, r.moves, r.values, r.statistics) for r in tuner.history}
    tuner.close()

    job, optimizer, tuner = begin()
    job.run(optimizer, tuner, range(stop))
    saved = through_a_file(
        {
            "net": job.net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "tuner": tuner.state_dict(),
        }
    )
    del job, optimizer, tuner

    job, optimizer, tuner = begin()
    job.net.load_state_dict(saved["net"])
    if optimizer_first:
        optimizer.load_state_dict(saved["optimizer"])
        tuner.load_state_dict(saved["tuner"])
    else:
        tuner.load_state_dict(saved["tuner"])
        optimizer.load_state_dict(saved["optimizer"])
    job.run(optimizer, tuner, range(stop, 60))
    for record in tuner.history:
        got = (record.step, record.moves, record.values, record.statistics)
        assert got == expected[record.index]
    assert len(tuner.history) == 11 - stop // 5
    assert torch.equal(job.weights(), whole.weights())
    tuner.close()


def test_restored_values_are_written_even_if_the_optimizer_was_not_restored(
    make_job: Any, policy: Policy
) -> None:
    job = make_job()
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(20))
    fresh = torch.optim.AdamW(make_job().groups())
    other = Tuner(fresh, 60, interval=5, policy=policy)
    other.load_state_dict(tuner.state_dict())
    assert other.values == tuner.values
    assert fresh.param_groups[1]["lr"] == optimizer.param_groups[1]["lr"]


def test_a_declared_scheduler_resumes_without_our_factor_counted_twice(
    make_job: Any, policy: Policy
) -> None:
    def begin() -> tuple[Any, Any, Any, Tuner]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        tuner = Tuner(optimizer, 60, interval=5, policy=policy, scheduler=scheduler)
        return job, optimizer, scheduler, tuner

    whole, optimizer, scheduler, tuner = begin()
    whole.run(optimizer, tuner, range(60), scheduler)
    job, optimizer, scheduler, tuner = begin()
    job.run(optimizer, tuner, range(23), scheduler)
    saved = through_a_file(
        {
            "net": job.net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "tuner": tuner.state_dict(),
        }
    )
    for order in (("optimizer", "scheduler", "tuner"), ("tuner", "scheduler", "optimizer")):
        job, optimizer, scheduler, tuner = begin()
        job.net.load_state_dict(saved["net"])
        parts = {"optimizer": optimizer, "scheduler": scheduler, "tuner": tuner}
        for name in order:
            # a copy, because an optimizer trains on with the very tensors it was given
            parts[name].load_state_dict(copy.deepcopy(saved[name]))
        job.run(optimizer, tuner, range(23, 60), scheduler)
        assert torch.equal(job.weights(), whole.weights())


def test_a_checkpoint_of_other_settings_is_refused(
    make_job: Any, policy: Policy, flat_policy: Policy
) -> None:
    def tuner(total: int, chosen: Policy) -> Tuner:
        return Tuner(torch.optim.AdamW(make_job().groups()), total, interval=5, policy=chosen)

    state = tuner(60, policy).state_dict()
    with pytest.raises(ResumeError, match=r"same settings"):
        tuner(80, policy).load_state_dict(state)
    with pytest.raises(ResumeError, match=r"same policy="):
        tuner(60, flat_policy).load_state_dict(state)


def test_a_resume_that_is_told_otherwise_of_the_data_says_so(
    make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    def begin(**told: Any) -> Tuner:
        return Tuner(torch.optim.AdamW(make_job().groups()), 60, interval=5, policy=policy, **told)

    state = through_a_file(begin(epochs=3, labels=50_000).state_dict())
    begin(epochs=3.0, labels=50_000).load_state_dict(state)
    del state["told"]  # one of before it was kept
    begin(epochs=4).load_state_dict(state)
    assert not caplog.records
    state = begin(epochs=3).state_dict()
    begin(epochs=4).load_state_dict(state)
    begin(epochs=3, labels=50_000).load_state_dict(state)
    first, second = caplog.messages
    assert "'epochs': 3.0" in first
    assert "'epochs': 4.0" in first
    assert "'labels': 50000.0" in second


def test_a_checkpoint_of_other_parameter_groups_is_refused(make_job: Any, policy: Policy) -> None:
    two = torch.optim.AdamW(make_job().groups())
    state = Tuner(two, 60, interval=5, policy=policy).state_dict()
    one = torch.optim.AdamW(make_job().net.parameters(), lr=0.02)
    tuner = Tuner(one, 60, interval=5, policy=policy)
    before = tuner.values
    with pytest.raises(ResumeError, match=r"2 parameter groups; this optimizer has 1.*the same"):
        tuner.load_state_dict(state)
    assert tuner.values == before


def test_a_group_added_since_the_last_decision_is_in_the_checkpoint(
    make_job: Any, policy: Policy
) -> None:
    def begin() -> tuple[Any, torch.optim.Optimizer, Tuner]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups()[:1])
        return job, optimizer, Tuner(optimizer, 60, interval=5, policy=policy)

    job, optimizer, tuner = begin()
    job.run(optimizer, tuner, range(12))
    optimizer.add_param_group(job.groups()[1])
    parts = {"net": job.net, "optimizer": optimizer, "tuner": tuner}
    saved = through_a_file({name: part.state_dict() for name, part in parts.items()})
    job.run(optimizer, tuner, range(12, 30))

    again, resumed, other = begin()
    resumed.add_param_group(again.groups()[1])
    again.net.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["tuner"])
    again.run(resumed, other, range(12, 30))
    assert torch.equal(job.weights(), again.weights())
    for ours, theirs in zip(optimizer.param_groups, resumed.param_groups, strict=True):
        assert ours["lr"] == theirs["lr"]


@pytest.mark.parametrize("stop", [1, 5, 13])
@pytest.mark.parametrize("case", ["frozen-rate", "frozen-decay", "one-cycle"])
def test_what_is_not_steered_resumes_as_the_job_has_it(
    case: str, stop: int, make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    schedulers = torch.optim.lr_scheduler

    def begin() -> tuple[Any, torch.optim.Optimizer, Any, Tuner]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.net.parameters(), lr=0.01)
        scheduler: Any = None
        settings: dict[str, Any] = {}
        if case == "frozen-rate":
            scheduler = schedulers.ExponentialLR(optimizer, 0.9)
            settings = {"frozen": {"learning_rate"}}
        elif case == "frozen-decay":
            settings = {"frozen": {"weight_decay"}}
        else:
            scheduler = schedulers.OneCycleLR(optimizer, 0.01, total_steps=61)
            settings = {"scheduler": scheduler}
        return (
            job,
            optimizer,
            scheduler,
            Tuner(optimizer, 60, interval=5, policy=policy, **settings),
        )

    def theirs(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
        group = optimizer.param_groups[0]
        return {
            "frozen-rate": (group["lr"],),
            "frozen-decay": (group["weight_decay"],),
            "one-cycle": (group["betas"][0],),
        }[case]

    job, optimizer, scheduler, tuner = begin()
    if case == "frozen-decay":
        optimizer.param_groups[0]["weight_decay"] = 0.5
    job.run(optimizer, tuner, range(stop), scheduler)
    saved = {
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "scheduler": scheduler and copy.deepcopy(scheduler.state_dict()),
        "tuner": through_a_file(tuner.state_dict()),
    }
    expected = theirs(optimizer)

    job, optimizer, scheduler, tuner = begin()
    optimizer.load_state_dict(saved["optimizer"])
    if scheduler:
        scheduler.load_state_dict(saved["scheduler"])
    tuner.load_state_dict(saved["tuner"])
    assert theirs(optimizer) == expected
    job.run(optimizer, tuner, range(stop, stop + 6), scheduler)
    if case == "frozen-rate":
        assert theirs(optimizer)[0] == pytest.approx(0.01 * 0.9 ** (stop + 6))
    assert not caplog.records
    tuner.close()


@pytest.mark.parametrize("stop", [4, 13, 20])
def test_a_checkpoint_in_mid_interval_changes_nothing_where_fused_amp_skips(
    stop: int, make_job: Any, policy: Policy
) -> None:
    def begin() -> tuple[Any, torch.optim.Optimizer, Any, Tuner]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups(), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
        return job, optimizer, scaler, Tuner(optimizer, 40, interval=10, policy=policy)

    def run(job: Any, optimizer: Any, scaler: Any, tuner: Tuner, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss = job.loss(step)
            scaler.scale(loss * (float("inf") if step in (2, 17) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            tuner.report(loss)

    def taken(tuner: Tuner) -> list[Any]:
        return [(r.step, r.moves, r.statistics) for r in tuner.history]

    whole, optimizer, scaler, uninterrupted = begin()
    run(whole, optimizer, scaler, uninterrupted, range(42))

    job, optimizer, scaler, tuner = begin()
    run(job, optimizer, scaler, tuner, range(stop))
    names = ("net", "optimizer", "scaler", "tuner")
    parts = dict(zip(names, (job.net, optimizer, scaler, tuner), strict=True))
    saved = through_a_file({name: part.state_dict() for name, part in parts.items()})
    run(job, optimizer, scaler, tuner, range(stop, 42))
    assert taken(tuner) == taken(uninterrupted)
    assert torch.equal(job.weights(), whole.weights())

    job, optimizer, scaler, tuner = begin()
    for name, part in zip(names, (job.net, optimizer, scaler, tuner), strict=True):
        part.load_state_dict(saved[name])
    run(job, optimizer, scaler, tuner, range(stop, 42))
    assert taken(tuner) == taken(uninterrupted)[-len(tuner.history) :]
    assert torch.equal(job.weights(), whole.weights())
    del saved["tuner"]["log"]["skipped"]  # one of before it was kept
    tuner.load_state_dict(saved["tuner"])
