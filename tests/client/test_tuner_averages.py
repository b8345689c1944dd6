"""`Tuner(averages=True)` and `best_weights`: the best of a run's averages, and no trace after."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lhopt.client import Tuner
from lhopt.core.averages import LAST, LONG, MIXES, OWN, SHORT, UPDATES, share, stride
from lhopt.core.errors import ConfigurationError, ResumeError
from lhopt.optimizers import SteerableAdamW
from lhopt.policy.artifact import Policy

from .test_tuner_resume import through_a_file
from .test_tuner_validate import held_out

STEPS, INTERVAL = 24, 8


def make(kind: str, of: Any, lr: float = 0.05) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(of.net.parameters(), lr=lr)
    return SteerableAdamW(of.net.parameters(), lr=lr)


def tuned(job: Any, optimizer: Any, policy: Policy, validate: Any, **words: Any) -> Tuner:
    steps = words.pop("steps", STEPS)
    return Tuner(
        optimizer, steps, interval=INTERVAL, policy=policy, validate=validate, averages=True,
        **words,
    )  # fmt: skip


@pytest.mark.parametrize("another", [False, True])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", ["adamw", "averaged"])
def test_the_best_mix_by_the_held_out_loss_is_in_the_model_and_the_last_weights_come_back(
    job: Any, policy: Policy, kind: str, every: int, another: bool
) -> None:
    optimizer, steps = make(kind, job), every * UPDATES
    assert stride(steps) == every
    seen: list[Tensor] = []

    def validate() -> Tensor:
        seen.append(job.weights())
        return held_out(job)

    tuner = tuned(job, optimizer, policy, (lambda: 2.5) if another else validate, steps=steps)
    taken: list[Tensor] = []
    for step in range(STEPS + 1):
        job.run(optimizer, tuner, range(step, step + 1))
        if (step + 1) % every == 0:
            taken.append(job.weights())
    last = job.weights()
    # in closed form: at horizon 1/2 the k-th of n counts k times, at 1/10 by a power of nine
    sums = {}
    for horizon in (SHORT, LONG):
        sums[horizon] = taken[0]
        for count, weights in enumerate(taken[1:], 2):
            sums[horizon] = sums[horizon] + share(horizon, count) * (weights - sums[horizon])
    counts = torch.arange(1, len(taken) + 1)
    by_count = sum(float(k) * w for k, w in zip(counts, taken, strict=True)) / counts.sum()
    torch.testing.assert_close(sums[LONG], by_count)
    if kind == "averaged":  # its own, of every step
        assert isinstance(optimizer, SteerableAdamW)
        with optimizer.averaged_weights():
            sums[SHORT] = job.weights()
    tuner.close()
    seen.clear()
    with tuner.best_weights(validate if another else None) as mix:
        inside = job.weights()
    assert torch.equal(job.weights(), last)
    losses = []
    for asked, weights in zip(MIXES, seen, strict=True):
        mixed = asked.last * last + asked.short * sums[SHORT] + asked.long * sums[LONG]
        torch.testing.assert_close(weights, mixed)
        torch.nn.utils.vector_to_parameters(weights, job.net.parameters())
        losses.append(float(held_out(job).detach()))
    assert mix == MIXES[losses.index(min(losses))]
    assert torch.equal(inside, seen[MIXES.index(mix)])


def test_a_run_with_averages_is_to_the_bit_the_one_without(
    job: Any, make_job: Any, policy: Policy
) -> None:
    optimizer = make("averaged", job)
    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    twin = make_job()
    plain = make("averaged", twin)
    silent = Tuner(plain, STEPS, interval=INTERVAL, policy=policy, validate=lambda: held_out(twin))
    for step in range(STEPS):
        job.run(optimizer, tuner, range(step, step + 1))
        twin.run(plain, silent, range(step, step + 1))
        if step == 13:
            with tuner.best_weights():  # half-way, and training goes on
                pass
    assert torch.equal(job.weights(), twin.weights())


@pytest.mark.parametrize("kind", ["adamw", "averaged"])
def test_a_validation_that_fails_leaves_the_optimizers_average_and_a_warning_each_time(
    job: Any, policy: Policy, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = make(kind, job)

    def broken() -> Tensor:
        raise RuntimeError("the disk is gone")

    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    job.run(optimizer, tuner, range(STEPS))
    last = job.weights()
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "lhopt"), tuner.best_weights(broken) as mix:
            inside = job.weights()
    assert [record.getMessage() for record in caplog.records] == 2 * [
        "lhopt: best_weights: validate gave no finite loss of any of the averages, "
        + ("the optimizer's own average" if kind == "averaged" else "the last weights")
        + (" is used" if kind == "averaged" else " are used")
        + ": RuntimeError: the disk is gone"
    ]
    if kind == "averaged":
        assert isinstance(optimizer, SteerableAdamW)
        assert mix == MIXES[OWN]
        with optimizer.averaged_weights():
            assert torch.equal(job.weights(), inside)
    else:
        assert mix == MIXES[LAST]
        assert torch.equal(last, inside)
    assert torch.equal(job.weights(), last)


def test_one_that_fails_now_and_then_leaves_those_mixes_out(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, asked = make("adamw", job), []

    def validate() -> float:
        asked.append(0)
        if len(asked) % 2:
            raise RuntimeError("busy")
        return 10.0 - len(asked)

    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    job.run(optimizer, tuner, range(STEPS))
    with caplog.at_level(logging.WARNING, "lhopt"), tuner.best_weights(validate) as mix:
        pass
    assert mix == MIXES[-1]
    assert "some of the averages" in caplog.text
    assert len(caplog.records) == 1


def test_one_that_does_not_see_the_weights_is_told(
    job: Any, make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, copied = make("averaged", job), make_job()
    assert isinstance(optimizer, SteerableAdamW)
    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    job.run(optimizer, tuner, range(STEPS))

    def averaged() -> Tensor:
        with optimizer.averaged_weights():
            return held_out(job)

    with caplog.at_level(logging.WARNING, "lhopt"):
        with tuner.best_weights(lambda: held_out(copied)):
            pass
        assert "no copy of it" in caplog.records.pop().getMessage()
        with tuner.best_weights(averaged):
            pass
        assert "inside averaged_weights() or best_weights()" in caplog.text


def test_the_last_weights_come_back_and_random_numbers_go_on_after_an_exception(
    job: Any, policy: Policy
) -> None:
    optimizer = make("averaged", job)

    def validate() -> Tensor:
        torch.rand(3)
        return held_out(job)

    tuner = tuned(job, optimizer, policy, validate)
    job.run(optimizer, tuner, range(STEPS))
    last, random = job.weights(), torch.get_rng_state()

    def interrupted() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyError), tuner.best_weights():
        raise KeyError("in the body")
    assert torch.equal(job.weights(), last)
    with pytest.raises(KeyboardInterrupt), tuner.best_weights(interrupted):
        pass
    assert torch.equal(job.weights(), last)
    assert torch.equal(torch.get_rng_state(), random)
    job.run(optimizer, tuner, range(1))  # a step may be taken again


def test_weights_that_are_not_finite_spoil_no_other_mix(job: Any, policy: Policy) -> None:
    optimizer = make("adamw", job)
    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    job.run(optimizer, tuner, range(STEPS))
    with torch.no_grad():
        job.net[0].weight[0, 0] = torch.inf
    with tuner.best_weights() as mix:
        assert torch.isfinite(job.weights()).all()
    assert mix.last == 0.0
    assert torch.isinf(job.weights()).any()


def test_before_the_first_step_the_best_weights_are_the_weights(job: Any, policy: Policy) -> None:
    tuner = tuned(job, make("adamw", job), policy, lambda: held_out(job))
    before = job.weights()
    with tuner.best_weights() as mix:
        assert torch.equal(job.weights(), before)
    assert mix == MIXES[LAST]  # none is better


def test_a_parameter_that_joins_late_has_averages_from_then_and_a_frozen_one_none(
    job: Any, policy: Policy
) -> None:
    job.net[0].bias.requires_grad_(False)
    optimizer, late = torch.optim.AdamW(job.net[0].parameters(), lr=0.01), []
    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    job.run(optimizer, tuner, range(10))
    optimizer.add_param_group({"params": list(job.net[2].parameters()), "lr": 0.01})
    for step in range(10, STEPS):
        job.run(optimizer, tuner, range(step, step + 1))
        late.append(job.net[2].bias.detach().clone())
    state = tuner.state_dict()["averages"]
    assert state["taken"] == [STEPS, 0, STEPS - 10, STEPS - 10]
    counts = range(1, len(late) + 1)
    by_count = sum(k * w for k, w in zip(counts, late, strict=True)) / sum(counts)
    torch.testing.assert_close(state["kept"][3][-1], by_count)
    assert state["kept"][1] == []
    frozen = job.net[0].bias.detach().clone()
    with tuner.best_weights():
        assert torch.equal(job.net[0].bias, frozen)


@pytest.mark.parametrize("kind", ["adamw", "averaged"])
def test_averages_of_bfloat16_are_kept_in_float32(policy: Policy, kind: str) -> None:
    """There the share of new weights at the end of a run is less than rounding keeps."""
    net = nn.Linear(4, 1, dtype=torch.bfloat16)
    x = torch.ones(8, 4, dtype=torch.bfloat16)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    if kind == "averaged":
        optimizer = SteerableAdamW(net.parameters(), lr=1e-2)
    tuner = Tuner(
        optimizer, 400, interval=100, policy=policy, averages=True,
        validate=lambda: float(net(x).float().mean()),
    )  # fmt: skip
    for _ in range(400):
        optimizer.zero_grad()
        loss = net(x).float().mean()
        loss.backward()
        optimizer.step()
        tuner.report(loss)
    saved = tuner.state_dict()
    kept = saved["averages"]["kept"]
    n = 1 if kind == "averaged" else 2  # one is the optimizer's own
    assert [[k.dtype for k in row] for row in kept] == 2 * [n * [torch.float32]]
    if isinstance(optimizer, SteerableAdamW):
        own = optimizer.average(net.weight)
        assert own is not None
        assert own.dtype is torch.float32
        # a checkpoint of before has a short average too, which goes unused
        saved["averages"]["kept"] = [[torch.zeros_like(row[0]), *row] for row in kept]
        tuner.load_state_dict(saved)
        assert all(
            map(
                torch.equal,
                [row[0] for row in kept],
                [row[0] for row in tuner.state_dict()["averages"]["kept"]],
            )
        )
    with tuner.best_weights():
        assert net.weight.dtype is torch.bfloat16


def test_long_runs_are_averaged_by_a_stride(job: Any, policy: Policy) -> None:
    steps = 2000
    optimizer = make("adamw", job)
    tuner = tuned(job, optimizer, policy, lambda: held_out(job), steps=steps)
    job.run(optimizer, tuner, range(3))
    assert stride(steps) == 4
    assert tuner.state_dict()["averages"]["taken"] == [0] * 4
    job.run(optimizer, tuner, range(3, 13))
    assert tuner.state_dict()["averages"]["taken"] == [3] * 4


@pytest.mark.parametrize("kind", ["adamw", "averaged"])
def test_a_resumed_run_ends_with_the_same_best_weights(
    make_job: Any, policy: Policy, kind: str
) -> None:
    ends = []
    for stop in (None, 11):
        job = make_job()
        optimizer = make(kind, job)
        tuner = tuned(job, optimizer, policy, lambda job=job: held_out(job))
        if stop is not None:
            job.run(optimizer, tuner, range(stop))
            saved = through_a_file(
                {
                    "net": job.net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "tuner": tuner.state_dict(),
                }
            )
            job = make_job()
            optimizer = make(kind, job)
            tuner = tuned(job, optimizer, policy, lambda job=job: held_out(job))
            job.net.load_state_dict(saved["net"])
            optimizer.load_state_dict(saved["optimizer"])
            tuner.load_state_dict(saved["tuner"])
        job.run(optimizer, tuner, range(stop or 0, STEPS))
        with tuner.best_weights() as mix:
            ends.append((mix, job.weights()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])


def test_checkpoints_without_averages_and_of_other_parameters(
    job: Any, make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = make("adamw", job)
    silent = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy)
    job.run(optimizer, silent, range(5))
    other = make_job()
    tuner = tuned(other, make("adamw", other), policy, lambda: held_out(other))
    with caplog.at_level(logging.WARNING, "lhopt"):
        tuner.load_state_dict(silent.state_dict())
    assert "holds no averages" in caplog.text
    with caplog.at_level(logging.WARNING, "lhopt"):
        silent.load_state_dict(tuner.state_dict())
    assert "which are left; to go on with them" in caplog.text

    third = make_job()
    of_another_kind = tuned(third, make("averaged", third), policy, lambda: held_out(third))
    full = make_job()
    kept = tuned(full, make("adamw", full), policy, lambda: held_out(full))
    full.run(kept._log._optimizer, kept, range(5))
    with pytest.raises(ResumeError, match="averages"):
        of_another_kind.load_state_dict(kept.state_dict())
    assert of_another_kind.steps == 0  # nothing of it was taken


def test_what_cannot_be_is_refused(job: Any, policy: Policy) -> None:
    optimizer = make("adamw", job)
    with pytest.raises(ConfigurationError, match="averages=True without validate"):
        Tuner(optimizer, STEPS, policy=policy, averages=True)
    with pytest.raises(ConfigurationError, match="True or False"):
        Tuner(optimizer, STEPS, policy=policy, averages=0.5)  # type: ignore[arg-type]
    plain = Tuner(optimizer, STEPS, policy=policy, validate=lambda: held_out(job))
    with pytest.raises(ConfigurationError, match="averages=True"), plain.best_weights():
        pass
    plain.close()
    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    with tuner.best_weights():
        with pytest.raises(ConfigurationError, match="inside best_weights"), tuner.best_weights():
            pass
        with pytest.raises(ConfigurationError, match=r"step\(\) inside best_weights"):
            job.run(optimizer, tuner, range(1))
    tuner.close()
    with tuner.best_weights(), pytest.raises(ConfigurationError, match="inside best_weights"):
        job.run(optimizer, None, range(1))


def test_averaged_and_best_weights_exclude_each_other(job: Any, policy: Policy) -> None:
    optimizer = make("averaged", job)
    assert isinstance(optimizer, SteerableAdamW)
    tuner = tuned(job, optimizer, policy, lambda: held_out(job))
    job.run(optimizer, tuner, range(9))
    last = job.weights()
    with (
        tuner.best_weights(),
        pytest.raises(ConfigurationError, match=r"or best_weights\(\)"),
        optimizer.averaged_weights(),
    ):
        pass
    with (
        optimizer.averaged_weights(),
        pytest.raises(ConfigurationError, match=r"or best_weights\(\)"),
        tuner.best_weights(),
    ):
        pass
    assert torch.equal(job.weights(), last)


def test_an_optimizer_that_swaps_weights_itself_is_refused(job: Any, policy: Policy) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(job.net.parameters())
    with pytest.raises(ConfigurationError, match=r"optimizer\.eval"):
        tuned(job, optimizer, policy, lambda: held_out(job))


def test_a_models_buffers_come_back_and_a_checkpoint_inside_is_warned_of(
    policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    x = torch.randn(32, 4)
    optimizer = SteerableAdamW(net.parameters(), lr=0.05)

    def loss() -> Tensor:
        out: Tensor = (net(x).squeeze(1) - x.sum(1)).square().mean()
        return out

    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy, validate=loss, averages=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tuner.report(value)
    before = {name: b.clone() for name, b in net.named_buffers()}
    with caplog.at_level(logging.WARNING, "lhopt"), tuner.best_weights(model=net):
        inside = dict(net.named_buffers())  # in training mode, every call moves them
        assert not torch.equal(inside["1.running_mean"], before["1.running_mean"])
        tuner.state_dict()
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name])
    assert [r.getMessage().split(":")[1] for r in caplog.records] == [
        " state_dict() inside best_weights()"
    ]


def test_a_validation_without_a_number_is_told_once(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = make("adamw", job)
    tuner = Tuner(optimizer, STEPS, interval=INTERVAL, policy=policy, validate=lambda: float("nan"))
    with caplog.at_level(logging.WARNING, "lhopt"):
        job.run(optimizer, tuner, range(STEPS))
    assert "validate gave nan" in caplog.text
    assert len(caplog.records) == 1
