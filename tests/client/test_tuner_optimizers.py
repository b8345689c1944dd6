from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.client import Tuner, measurement
from lhopt.core.adapters import adapter_for
from lhopt.core.errors import ConfigurationError
from lhopt.optimizers.steerable_adamw import SteerableAdamW
from lhopt.policy.artifact import Policy

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], set[str]]] = {
    "sgd": (torch.optim.SGD, {"learning_rate"}),
    "sgd-momentum": (
        lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-3),
        {"learning_rate", "one_minus_beta1", "weight_decay"},
    ),
    "adam": (
        torch.optim.Adam,
        {"learning_rate", "one_minus_beta1", "one_minus_beta2", "eps"},
    ),
    "adamw": (
        torch.optim.AdamW,
        {"learning_rate", "one_minus_beta1", "one_minus_beta2", "eps", "weight_decay"},
    ),
    "adamw-foreach": (
        lambda groups: torch.optim.AdamW(groups, foreach=True, amsgrad=True),
        {"learning_rate", "one_minus_beta1", "one_minus_beta2", "eps", "weight_decay"},
    ),
    "adamw-fused": (
        lambda groups: torch.optim.AdamW(groups, fused=True),
        {"learning_rate", "one_minus_beta1", "one_minus_beta2", "eps", "weight_decay"},
    ),
    "nadam": (
        lambda groups: torch.optim.NAdam(groups, weight_decay=0.01),
        {"learning_rate", "one_minus_beta1", "one_minus_beta2", "eps", "weight_decay"},
    ),
    "rmsprop": (
        lambda groups: torch.optim.RMSprop(groups, momentum=0.5, weight_decay=1e-4),
        {"learning_rate", "one_minus_beta1", "one_minus_beta2", "eps", "weight_decay"},
    ),
    "adagrad": (torch.optim.Adagrad, {"learning_rate", "eps"}),
    "unregistered": (torch.optim.Adamax, {"learning_rate"}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_steered_and_measured(name: str, job: Any, policy: Policy) -> None:
    make, controls = OPTIMIZERS[name]
    optimizer = make(job.groups())
    start = [group["lr"] for group in optimizer.param_groups]
    with Tuner(optimizer, 60, interval=5, policy=policy) as tuner:
        assert set(tuner.values) == controls
        job.run(optimizer, tuner, range(60))
    assert [r.source for r in tuner.history] == ["policy"] * 12
    assert [r.step for r in tuner.history] == list(range(0, 60, 5))
    moved = {n for r in tuner.history[1:] for n, m in r.moves.items() if m not in (0.0, 1.0)}
    assert moved == controls
    # the second group began at a tenth of the first, and still is there
    first, second = (float(group["lr"]) for group in optimizer.param_groups)
    assert first != start[0]
    assert second / first == pytest.approx(0.1)
    for record in tuner.history[1:]:
        assert np.isfinite(list(record.statistics.values())).all()
        assert {"log_grad_norm", "cos_grad_momentum", "log_displacement"} <= set(record.statistics)
        has_second_moment = name.startswith(("adam", "nadam", "rms", "adag"))
        assert ("adam_like" in record.statistics) == has_second_moment
    assert torch.isfinite(job.weights()).all()


@pytest.mark.parametrize("kind", ["lr", "betas"])
def test_tensor_values_are_written_in_place(kind: str, job: Any, policy: Policy) -> None:
    lr = torch.tensor(0.01)
    betas = (torch.tensor(0.9), torch.tensor(0.999)) if kind == "betas" else (0.9, 0.999)
    optimizer = torch.optim.AdamW(job.net.parameters(), lr=lr, betas=betas, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    tuner = Tuner(optimizer, 40, interval=5, policy=policy)
    job.run(optimizer, tuner, range(40))
    tuner.close()
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(tuner.values["learning_rate"])
    assert float(held) != pytest.approx(0.01)
    if kind == "betas":
        assert optimizer.param_groups[0]["betas"][0] is betas[0]
        assert float(betas[0]) != pytest.approx(0.9)
    assert all(record.source == "policy" for record in tuner.history)


def test_values_stay_inside_the_bounds_and_follow_the_moves(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(60))
    for before, after in zip(tuner.history, tuner.history[1:], strict=False):
        moved = before.values["learning_rate"] * after.moves["learning_rate"]
        assert after.values["learning_rate"] == pytest.approx(moved)
    tuner.close()


def test_accumulated_gradients_count_optimizer_steps_and_every_loss(
    job: Any, policy: Policy
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 20, interval=5, policy=policy)
    for step in range(20):
        optimizer.zero_grad()
        for micro in range(4):
            loss = job.loss(4 * step + micro)
            (loss / 4).backward()
            tuner.report(loss)
        optimizer.step()
    assert len(tuner.history) == 4
    assert tuner.steps == 20
    tuner.close()


def test_other_peoples_losses_are_left_out_without_stopping(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 20, interval=5, policy=policy)
    for step in range(20):
        job.run(optimizer, None, range(step, step + 1))
        tuner.report(torch.ones(3))
        tuner.report("a loss")  # type: ignore[arg-type]
        tuner.report_validation(None)  # type: ignore[arg-type]
        tuner.report(1.0)
    assert [r.source for r in tuner.history] == ["policy"] * 4
    assert len(caplog.records) == 2  # one for losses, one for validation values
    tuner.close()


def test_a_diverged_loss_brakes(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.SGD(job.groups())
    tuner = Tuner(optimizer, 40, interval=5, policy=policy)
    for step in range(40):
        job.run(optimizer, None, range(step, step + 1))
        tuner.report(torch.tensor(float("nan")))
    assert all("non-finite-statistics" in r.reasons for r in tuner.history[1:])
    assert tuner.values["learning_rate"] < 1e-3
    tuner.close()


def test_frozen_parameters_and_sparse_gradients_are_no_obstacle(policy: Policy) -> None:
    embedding = torch.nn.Embedding(50, 4, sparse=True)
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = torch.optim.SGD([*embedding.parameters(), frozen], lr=0.1)
    tuner = Tuner(optimizer, 20, interval=5, policy=policy)
    for step in range(20):
        optimizer.zero_grad()
        loss = embedding(torch.tensor([step, step + 1])).square().sum()
        loss.backward()
        optimizer.step()
        tuner.report(loss)
    assert [r.source for r in tuner.history] == ["policy"] * 4
    assert np.isfinite(tuner.history[-1].statistics["log_grad_norm"])
    tuner.close()


def test_a_closure_is_measured_with_the_gradient_it_made(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.SGD(job.groups())
    tuner = Tuner(optimizer, 20, interval=5, policy=policy)
    for step in range(20):

        def closure(step: int = step) -> float:
            optimizer.zero_grad()
            loss = job.loss(step)
            loss.backward()
            return float(loss.detach())

        tuner.report(optimizer.step(closure))
    # plain SGD moves along its gradient: their cosine is 1 (but the first step had none before)
    assert tuner.history[-1].statistics["cos_grad_update"] == pytest.approx(1.0, abs=1e-3)
    tuner.close()


def test_added_groups_are_steered_from_the_value_they_came_with(job: Any, policy: Policy) -> None:
    first, second = job.groups()
    optimizer = torch.optim.AdamW([first])
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(12))
    optimizer.add_param_group({**second, "lr": optimizer.param_groups[0]["lr"] * 3.0})
    job.run(optimizer, tuner, range(12, 60))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] / rates[0] == pytest.approx(3.0)
    tuner.close()


def test_scaled_steps_that_amp_skips_do_not_count(job: Any, policy: Policy) -> None:
    for fused in (False, True):
        optimizer = torch.optim.AdamW(job.groups(), fused=fused)
        tuner = Tuner(optimizer, 20, interval=5, policy=policy)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
        for step in range(24):
            optimizer.zero_grad()
            loss = job.loss(step)
            scaler.scale(loss * (float("inf") if step % 6 == 3 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            tuner.report(loss)
        assert tuner.steps == 20, fused
        assert [r.step for r in tuner.history] == [0, 5, 10, 15]
        statistics = [r.statistics for r in tuner.history[1:]]
        assert all(np.isfinite(list(s.values())).all() for s in statistics), fused
        # gradients are measured without the scale
        assert all(abs(s["log_grad_norm"]) < 4 for s in statistics), fused
        tuner.close()


def test_steerable_adamw_is_steered_in_everything(job: Any, policy: Policy) -> None:
    module = pytest.importorskip("lhopt.optimizers.steerable_adamw")
    optimizer = module.SteerableAdamW(job.net.parameters(), lr=0.01, weight_decay=0.01)
    assert adapter_for(optimizer).name == "lhopt.SteerableAdamW"
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(60))
    assert [r.source for r in tuner.history] == ["policy"] * 12
    assert set(tuner.values) >= {"learning_rate", "clip_ratio", "one_minus_beta1"}
    assert {"adam_like", "clipped"} <= set(tuner.history[-1].statistics)
    tuner.close()


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_that_calls_its_bases_step_is_one_step(
    base: Any, make_job: Any, policy: Policy
) -> None:
    class Derived(base):  # type: ignore[misc]
        fails = ""

        def step(self, closure: Any = None) -> Any:
            if self.fails == "before":
                raise RuntimeError(self.fails)
            if self.fails == "inside":  # the base's step begins, and does not end
                with pytest.raises(ZeroDivisionError):
                    super().step(lambda: 1 // 0)
            super().step(closure)
            if self.fails == "after":
                raise RuntimeError(self.fails)

    base(make_job().groups(), lr=0.1)  # torch puts hooks around the `step` of this class, too
    twin = make_job()
    plain = base(twin.groups())
    reference = Tuner(plain, 60, interval=5, policy=policy)
    twin.run(plain, reference, range(60))

    job = make_job()
    optimizer = Derived(job.groups())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    job.run(optimizer, tuner, range(13))
    optimizer.fails = "before"
    with pytest.raises(RuntimeError, match="before"):
        optimizer.step()
    optimizer.fails = "inside"
    job.run(optimizer, tuner, range(13, 14))
    optimizer.fails = ""
    job.run(optimizer, tuner, range(14, 60))
    assert torch.equal(job.weights(), twin.weights())
    assert [(r.step, r.moves) for r in tuner.history] == [
        (r.step, r.moves) for r in reference.history
    ]
    optimizer.fails = "after"
    with pytest.raises(RuntimeError, match="after"):
        optimizer.step()
    assert tuner.steps == 60


def test_a_wrapper_without_hooks_is_refused_before_anything_moves(job: Any, policy: Policy) -> None:
    class Wrapper(torch.optim.Optimizer):  # as accelerate's: no `super().__init__`
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)

    optimizer = torch.optim.AdamW(job.groups())
    with pytest.raises(ConfigurationError, match=r"a Wrapper;.* pass the wrapped one"):
        Tuner(Wrapper(optimizer), 60, policy=policy)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.001]


class Sharpness(torch.optim.Optimizer):
    """As implementations of SAM: nobody calls `step` of this one."""

    def __init__(self, groups: Any) -> None:
        self.base = torch.optim.SGD(groups, lr=0.1)
        super().__init__(self.base.param_groups, {})
        self.param_groups = self.base.param_groups

    def second_step(self) -> None:
        self.base.step()


def test_steps_that_hooks_do_not_see_are_told_and_the_opening_is_taken_back(
    job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = Sharpness(job.net.parameters())
    tuner = Tuner(optimizer, 60, interval=5, policy=policy)
    assert optimizer.param_groups[0]["lr"] < 0.02
    for step in range(300):
        job.loss(step).backward()
        optimizer.second_step()
        tuner.report(1.0)
        assert (optimizer.param_groups[0]["lr"] == 0.1) == (step >= 255)
    (message,) = caplog.messages
    assert "256 losses were reported since the last call of optimizer.step()" in message
    assert "values of before it are back" in message
    held = tuner.state_dict()["steering"]["hyperparameters"]["value"]["learning_rate"]
    assert held == [pytest.approx(tuner.history[0].values["learning_rate"])]
    tuner.close()
    assert len(caplog.messages) == 1
    # a short run is told at its end
    short = Tuner(Sharpness(job.net.parameters()), 60, interval=5, policy=policy)
    short.report(1.0)
    short.close()
    assert short.values["learning_rate"] == 0.1
    assert "1 losses were reported since" in caplog.messages[1]


def test_very_many_micro_batches_change_nothing(
    make_job: Any, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    weights, histories = [], []
    for reports in (1, 300):
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())
        tuner = Tuner(optimizer, 20, interval=5, policy=policy)
        for step in range(20):
            for _ in range(reports):
                tuner.report(1.0)
            job.run(optimizer, None, range(step, step + 1))
        weights.append(job.weights())
        histories.append([(r.step, r.moves["learning_rate"]) for r in tuner.history])
    assert len(caplog.records) == 1
    assert histories[0] == histories[1]
    assert torch.equal(*weights)


def test_rmsprops_momentum_never_falls_to_0(job: Any) -> None:
    late = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.RMSprop([*job.net.parameters(), late], lr=1e-3, momentum=0.5)
    (group,) = optimizer.param_groups
    slot = adapter_for(optimizer).slots["one_minus_beta1"]
    job.run(optimizer, None, range(2))
    slot.write(group, 1.0)
    assert group["momentum"] == 1e-12
    # the first gradient of a parameter comes now: torch makes it no buffer later
    for value in (1.0, 0.1):
        slot.write(group, value)
        optimizer.zero_grad()
        (job.loss(0) + late.square().sum()).backward()
        optimizer.step()
    assert "momentum_buffer" in optimizer.state[late]
    # what was made without momentum stays so
    plain = torch.optim.RMSprop(job.net.parameters())
    slot.write(plain.param_groups[0], 1.0)
    assert plain.param_groups[0]["momentum"] == 0.0


def test_a_sparse_gradient_is_measured_as_the_dense_one_would_be() -> None:
    generator = torch.Generator().manual_seed(0)
    for rest in ((), (4,), (3, 2)):
        for n_rows in (0, 1, 500):
            rows = torch.randint(50, (1, n_rows), generator=generator)
            values = torch.randn(n_rows, *rest, generator=generator)
            sparse = torch.sparse_coo_tensor(rows, values, (50, *rest), check_invariants=True)
            for entries in (7, 64, 1000):
                want = measurement.entries(sparse.to_dense(), entries)[0]
                assert torch.equal(measurement.sparse_entries(sparse, entries), want)


def test_whether_a_step_clipped_is_not_asked_before_the_decision(
    job: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = SteerableAdamW(job.net.parameters(), lr=0.01)

    def waits(self: Any) -> float:
        raise AssertionError("asked the device")

    monkeypatch.setattr(SteerableAdamW, "last_clipped", property(waits))
    tuner = Tuner(optimizer, 20, interval=5, policy=policy)
    job.run(optimizer, tuner, range(10))
    assert 0.0 <= tuner.history[-1].statistics["clipped"] <= 1.0
    tuner.close()
