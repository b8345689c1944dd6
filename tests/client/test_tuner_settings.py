from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.client import Tuner
from lhopt.core.errors import (
    ConfigurationError,
    ControlError,
    LhoptError,
    UnknownNameError,
)
from lhopt.policy.artifact import Policy, save


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"total_steps": 0}, ["total_steps is 0", "greater than 0"]),
        ({"total_steps": -5}, ["total_steps is -5"]),
        ({"total_steps": 1.5}, ["total_steps is 1.5"]),
        ({"total_steps": True}, ["total_steps is True"]),
        ({"total_steps": "100"}, ["total_steps is '100'"]),
        ({"decisions": 0}, ["decisions is 0"]),
        ({"interval": 0}, ["interval is 0"]),
        ({"interval": 101}, ["interval is 101", "total_steps is 100"]),
        ({"timeout": 0}, ["timeout is 0"]),
        ({"timeout": float("nan")}, ["timeout is nan"]),
        ({"measure_every": 0}, ["measure_every is 0"]),
        ({"max_entries": -1}, ["max_entries is -1"]),
        ({"controls": ["clip_ratio"]}, ["'clip_ratio'", "learning_rate"]),
        ({"controls": ["learning_rat"]}, ["'learning_rat'", "learning_rate"]),
        ({"controls": "learning_rate"}, ["a list of names"]),
        ({"controls": ["eps"], "frozen": ["eps"]}, ["Nothing is left to steer"]),
        ({"frozen": ["learning_rat"]}, ["'learning_rat'", "Nearest: learning_rate"]),
        ({"policy": 3}, ["policy is of type int"]),
        ({"url": "http://localhost:1", "policy": "no/such.json"}, ["leave url out"]),
        ({"policy": "no-such-policy"}, ["no-such-policy"]),
        ({"policy": Path("no/such.json")}, ["is missing"]),
        ({"url": "http://localhost:1"}, ["leave url out"]),
        ({"url": "localhost:8000", "policy": None}, ["http://host:port"]),
        ({"url": "ftp://x", "policy": None}, ["ftp"]),
        ({"url": "http://x", "policy": None, "api_key": "a\nb"}, ["api_key"]),
    ],
)
def test_nonsense_is_refused_with_a_way_out(
    settings: dict[str, Any], words: list[str], job: Any, policy: Policy
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    options = {"total_steps": 100, "policy": policy, **settings}
    with pytest.raises(LhoptError) as caught:
        Tuner(optimizer, **options)
    for word in words:
        assert word in str(caught.value)
    # what was refused left nothing behind
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_what_is_no_optimizer_is_refused(policy: Policy) -> None:
    with pytest.raises(ConfigurationError, match=r"torch\.optim\.Optimizer"):
        Tuner("adamw", 100, policy=policy)  # type: ignore[arg-type]


def test_a_weight_decay_of_0_is_not_steered(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups(), weight_decay=0.0)
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(60))
    assert "weight_decay" not in tuner.values
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    with pytest.raises(ControlError, match="value of 0 cannot be scaled"):
        Tuner(optimizer, 60, policy=policy, controls=["weight_decay"])


def test_only_the_controls_asked_for_move(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy, controls=["learning_rate", "eps"])
    job.run(optimizer, tuner, range(60))
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.999)
    assert group["weight_decay"] == 0.01
    assert group["lr"] != 0.01
    assert group["eps"] != 1e-8


def test_policies_are_found_by_path(
    tmp_path: Path, job: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(policy, tmp_path)
    # a server's address in the environment is not asked about a file of ours
    monkeypatch.setenv("LHOPT_URL", "http://localhost:1")
    for named in (path, str(path), str(path.with_suffix(".safetensors"))):
        tuner = Tuner(torch.optim.AdamW(job.groups()), 60, policy=named)
        assert tuner.state_dict()["steering"]["backend"]["digest"] == policy.digest
        tuner.close()
    monkeypatch.delenv("LHOPT_URL")
    with pytest.raises(UnknownNameError):
        Tuner(torch.optim.AdamW(job.groups()), 60, policy="randon")


def test_an_interval_is_the_run_over_the_decisions(job: Any, policy: Policy) -> None:
    for total, decisions, interval in ((10_000, 32, 313), (10, 32, 1), (32, 32, 1), (1, 1, 1)):
        optimizer = torch.optim.AdamW(job.groups())
        tuner = Tuner(optimizer, total, decisions=decisions, policy=policy)
        assert tuner.interval == interval
        tuner.close()


def test_steps_beyond_the_end_change_nothing_and_are_told_once(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 23, interval=5, policy=policy)
    job.run(optimizer, tuner, range(23))
    values = tuner.values
    assert not caplog.records
    job.run(optimizer, tuner, range(23, 24))
    assert len(caplog.records) == 1  # at once, not where the interval would have ended
    job.run(optimizer, tuner, range(24, 50))
    assert tuner.values == values
    assert len(caplog.records) == 1
    assert "goes on after total_steps=23" in caplog.text
    assert [r.step for r in tuner.history] == [0, 5, 10, 15, 20]
    tuner.close()


def test_a_rate_of_0_is_told_unless_a_scheduler_raises_it_or_nobody_steers_it(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups(lr=0.0))
    Tuner(optimizer, 50, policy=policy, frozen={"learning_rate"}).close()
    Tuner(torch.optim.AdamW(job.groups()), 50, policy=policy).close()
    assert not caplog.records
    Tuner(optimizer, 50, policy=policy).close()
    assert "the learning rate is 0" in caplog.text
    caplog.clear()
    rising = torch.optim.AdamW(job.groups())
    scheduler = torch.optim.lr_scheduler.LambdaLR(rising, lambda step: min(step / 10, 1.0))
    assert rising.param_groups[0]["lr"] == 0.0
    Tuner(rising, 50, policy=policy, scheduler=scheduler).close()
    assert not caplog.records
    flat = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    Tuner(optimizer, 50, policy=policy, scheduler=flat).close()
    assert "the learning rate is 0" in caplog.text
    assert "scheduler=" not in caplog.text  # it has one


def test_closing_stops_listening(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    with Tuner(optimizer, 50, interval=5, policy=policy) as tuner:
        job.run(optimizer, tuner, range(10))
    values = tuner.values
    tuner.close()
    job.run(optimizer, tuner, range(10, 50))
    assert tuner.values == values
    assert tuner.steps == 10


def test_a_loop_that_never_reports_is_told_so_and_keeps_the_default_schedule(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    for step in range(60):
        optimizer.zero_grad()
        job.loss(step).backward()
        optimizer.step()
    assert {record.source for record in tuner.history[1:]} == {"hold:StatisticsError"}
    assert tuner.history[2].values["learning_rate"] > 0.003  # not the warm-up's 0.001
    assert sum("no decision" in record.message for record in caplog.records) == 1


def test_the_default_policy_is_not_taken_where_it_does_harm(job: Any) -> None:
    optimizer = torch.optim.Adadelta(job.groups())
    with pytest.raises(ConfigurationError, match=r"Adadelta.*policy='adamw'"):
        Tuner(optimizer, 60)
    Tuner(optimizer, 60, policy="adamw").close()


def test_a_policy_that_was_trained_for_another_optimizer_is_not_taken_in_silence(
    job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Tuner(torch.optim.SGD(job.groups()), 60).close()
    assert "no policy was trained for torch.optim.SGD; taking 'adamw'" in caplog.text
    caplog.clear()
    Tuner(torch.optim.AdamW(job.groups()), 60).close()
    assert caplog.text == ""


def test_a_second_tuner_takes_over_and_the_first_lets_go(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    first = Tuner(optimizer, total_steps=40, decisions=10, policy=policy)
    job.run(optimizer, first, range(9))
    value = optimizer.param_groups[0]["lr"]
    assert not caplog.records
    second = Tuner(optimizer, total_steps=40, decisions=10, policy=policy)
    assert "another Tuner steers this optimizer, at step 9 of 40" in caplog.text
    assert second.history[0].values["learning_rate"] <= value  # from what was in force
    taken, steps = len(first.history), first.steps
    job.run(optimizer, second, range(9))
    first.report(1.0)  # a loop that still has both
    assert (len(first.history), first.steps) == (taken, steps)
    assert (second.steps, len(second.history)) == (9, 3)
    first.close()
    job.run(optimizer, second, range(4))
    assert second.steps == 13


def test_a_second_phase_begins_without_a_word(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    """After a run that is over, closed or not; and a construction that fails takes nothing over."""
    optimizer = torch.optim.AdamW(job.groups())
    first = Tuner(optimizer, total_steps=8, decisions=4, policy=policy)
    with pytest.raises(ConfigurationError):
        Tuner(optimizer, total_steps=8, decisions=4, policy=policy, epochs=-1)
    job.run(optimizer, first, range(8))
    assert first.steps == 8
    second = Tuner(optimizer, total_steps=8, decisions=4, policy=policy)
    job.run(optimizer, second, range(8))
    second.close()
    third = Tuner(optimizer, total_steps=8, decisions=4, policy=policy)
    job.run(optimizer, third, range(2))
    assert (first.steps, second.steps, third.steps) == (8, 8, 2)
    assert not caplog.records


def test_numbers_of_numpy_are_numbers(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    more: Any = {"epochs": np.int64(3), "labels": np.float32(50)}
    Tuner(optimizer, 60, policy=policy, **more).close()
    with pytest.raises(ConfigurationError, match="epochs is"):
        Tuner(optimizer, 60, policy=policy, epochs=True)
