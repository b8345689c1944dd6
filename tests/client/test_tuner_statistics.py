from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lhopt.client import Tuner
from lhopt.core.errors import ConfigurationError
from lhopt.core.sampling import measured_steps
from lhopt.core.statistics import INDEX, STEP_STATISTICS
from lhopt.policy.artifact import Policy


def phi(x: float) -> float:
    return 0.5 * (1.0 + float(torch.erf(torch.tensor(x, dtype=torch.float64) / 2**0.5)))


def logit(p: float) -> float:
    p = min(max(p, 1e-8), 1 - 1e-8)
    return float(np.log(p / (1 - p)))


def slow_step(job: Any, optimizer: torch.optim.AdamW, step: int) -> dict[str, float]:
    """One step of AdamW and its statistics, tensor by tensor, in float64, nothing sampled."""
    group = optimizer.param_groups[0]
    before = [p.detach().double().clone() for p in group["params"]]
    optimizer.zero_grad()
    job.loss(step).backward()
    grads = [p.grad.double().clone() for p in group["params"]]
    optimizer.step()
    rows = []
    beta1, beta2 = group["betas"]
    for p, old, g in zip(group["params"], before, grads, strict=True):
        state, t = optimizer.state[p], step + 1
        m = state["exp_avg"].double() / (1 - beta1**t)
        v = state["exp_avg_sq"].double() / (1 - beta2**t)
        u = (old - p.detach().double()) / group["lr"]

        def norm(x: torch.Tensor) -> float:
            return float(x.norm())

        def cos(a: torch.Tensor, b: torch.Tensor) -> float:
            return float((a * b).sum()) / (norm(a) * norm(b))

        root = old.numel() ** 0.5
        rows.append(
            {
                "adam_like": float((v.sqrt() > group["eps"]).double().mean()),
                "log_update_abs": float((u.abs() + 1e-8).log().mean()),
                "log_momentum_over_grad": np.log(norm(m) / norm(g)),
                "log_update_over_param": np.log(group["lr"] * norm(u) / norm(old)),
                "log_noise_scale": np.log(norm(m) / norm(m - g)),
                "cos_grad_momentum": cos(g, m),
                "cos_grad_param": cos(g, old),
                "log_param_over_update": np.log(norm(old) / norm(u)),
                "cos_grad_update": cos(g, u),
                "phi_cos_grad_momentum": logit(phi(root * cos(g, m))),
                "phi_cos_grad_update": logit(phi(root * cos(g, u))),
                "phi_cos_grad_param": phi(root * cos(g, old)),
            }
        )
    out = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    out["log_grad_norm"] = float(torch.cat([g.flatten() for g in grads]).norm().log())
    out["log_param_norm"] = float(torch.cat([p.flatten() for p in before]).norm().log())
    return out


def test_statistics_equal_a_slow_reference(job: Any, make_job: Any, flat_policy: Policy) -> None:
    # step 0 is left out: there the momentum is the gradient and log(|m| / |m - g|) is rounding
    interval, every = 8, 4
    optimizer = torch.optim.AdamW(job.net.parameters(), lr=0.01, weight_decay=0.1)
    twin = make_job()
    reference = torch.optim.AdamW(twin.net.parameters(), lr=0.01, weight_decay=0.1)
    job.run(optimizer, None, range(3))
    for step in range(3):
        slow_step(twin, reference, step)
    tuner = Tuner(optimizer, 80, interval=interval, policy=flat_policy, measure_every=every)
    start = twin.weights().double()
    steps, losses = [], []
    for step in range(3, 3 + interval):
        losses.append(float(twin.loss(step).detach()))
        steps.append(slow_step(twin, reference, step))
    job.run(optimizer, tuner, range(3, 3 + interval))
    tuner.close()

    got = tuner.history[1].statistics
    measured = [steps[i] for i in measured_steps(interval, every)]
    assert len(measured) == 2
    for name in STEP_STATISTICS:
        if name != "clipped":
            wanted = np.mean([row[name] for row in measured])
            assert got[name] == pytest.approx(wanted, rel=1e-4, abs=1e-4), name
    moved = float((twin.weights().double() - start).norm() / start.norm())
    assert got["log_displacement"] == pytest.approx(np.log(moved), abs=1e-4)
    assert got["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert got["train_loss_last"] == pytest.approx(np.mean(losses[4:]), rel=1e-6)
    assert set(got) <= set(INDEX)
    # the interval's own rate: the default schedule begins low
    rate, decay = tuner.history[0].values["learning_rate"], 0.1
    assert got["log_decay"] == pytest.approx(np.log(rate * decay * interval))
    assert got["log_beta1_windows"] == pytest.approx(np.log(0.1 * interval))
    assert {"log_epochs", "log_params_per_label"}.isdisjoint(got)  # nobody told


def test_epochs_are_told_per_interval_and_labels_as_they_are(job: Any, flat_policy: Policy) -> None:
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in job.net.parameters() if p.ndim < 2], "weight_decay": 0.0},
            {"params": [p for p in job.net.parameters() if p.ndim > 1], "weight_decay": 0.2},
        ],
        lr=0.01,
    )
    with Tuner(optimizer, 80, interval=8, policy=flat_policy, epochs=5, labels=40) as tuner:
        job.run(optimizer, tuner, range(8))
    got = tuner.history[1].statistics
    assert np.exp(got["log_epochs"]) == pytest.approx(0.5)
    n_params = sum(p.numel() for p in job.net.parameters())
    assert np.exp(got["log_params_per_label"]) == pytest.approx(n_params / 40)
    # the matrices' decay counts, not the biases', which come first
    rate = tuner.history[0].values["learning_rate"]
    assert np.exp(got["log_decay"]) == pytest.approx(rate * 0.2 * 8)
    for wrong in (0, -1.0, float("nan"), "3", True):
        for name in ("epochs", "labels"):
            with pytest.raises(ConfigurationError, match=rf"{name} is .*greater than 0"):
                Tuner(optimizer, 80, policy=flat_policy, **{name: wrong})  # type: ignore[arg-type]


def test_listening_changes_no_weight_and_no_random_number(
    job: Any, make_job: Any, flat_policy: Policy
) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    optimizer = torch.optim.AdamW(job.groups())
    tuner = Tuner(optimizer, 400, interval=200, policy=flat_policy)
    job.run(optimizer, tuner, range(150))
    drawn = float(torch.rand(())), float(np.random.rand())  # noqa: NPY002

    twin = make_job()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    twin.run(torch.optim.AdamW(twin.groups()), None, range(150))
    assert torch.equal(job.weights(), twin.weights())
    assert drawn == (float(torch.rand(())), float(np.random.rand()))  # noqa: NPY002
    tuner.close()


def test_large_tensors_are_sampled(job: Any, policy: Policy) -> None:
    norms = []
    for entries in (7, 65_536):
        twin = type(job)()
        optimizer = torch.optim.SGD(twin.groups())
        tuner = Tuner(optimizer, 20, interval=5, policy=policy, max_entries=entries)
        twin.run(optimizer, tuner, range(6))
        norms.append(tuner.history[1].statistics["log_grad_norm"])
        tuner.close()
    assert norms[0] < norms[1]


def test_many_losses_of_one_interval_are_joined_in_order(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.SGD(job.groups())
    tuner = Tuner(optimizer, 1200, interval=600, policy=policy)
    job.loss(0).backward()
    expected = []
    for i in range(600):
        optimizer.step()
        value = float(i)
        expected.append(value)
        kinds = (value, torch.tensor(value), torch.tensor([value], dtype=torch.float64))
        tuner.report(kinds[(i // 50) % 3])
    got = tuner.history[1].statistics
    assert got["train_loss"] == pytest.approx(np.mean(expected))
    assert got["train_loss_last"] == pytest.approx(np.mean(expected[300:]))
    tuner.close()


def test_the_overhead_is_counted(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.SGD(job.groups())
    tuner = Tuner(optimizer, 20, policy=policy)
    before = tuner.overhead_seconds
    job.run(optimizer, tuner, range(5))
    assert tuner.overhead_seconds > before > 0
    tuner.close()


def test_measuring_leaves_nothing_in_the_optimizers_state(job: Any, policy: Policy) -> None:
    optimizer = torch.optim.SGD(job.groups())
    tuner = Tuner(optimizer, 20, interval=5, policy=policy)
    before = set(optimizer.state)
    job.run(optimizer, None, range(1))
    plain = torch.optim.SGD(job.groups())
    job.run(plain, None, range(1))
    assert before == set()
    assert set(optimizer.state) == set(plain.state)
    tuner.close()


def test_a_model_of_very_many_tensors_is_sampled_thinly(policy: Policy) -> None:
    params = [torch.nn.Parameter(torch.ones(5000)) for _ in range(4000)]
    tuner = Tuner(torch.optim.SGD(params, lr=0.1), 20, interval=5, policy=policy)
    assert tuner._log._max_entries == 4 * 2**20 // 4000
    tuner.close()


@pytest.mark.parametrize("interval", [1, 4, 10])
def test_losses_reported_inside_a_closure_count_as_if_reported_after_the_step(
    interval: int, make_job: Any, policy: Policy
) -> None:
    def train(inside: bool) -> tuple[torch.Tensor, Any]:
        job = make_job()
        optimizer = torch.optim.AdamW(job.groups())
        tuner = Tuner(optimizer, 6 * interval, interval=interval, policy=policy)
        for step in range(6 * interval):

            def closure(step: int = step) -> torch.Tensor:
                optimizer.zero_grad()
                loss: torch.Tensor = job.loss(step)
                if inside:
                    tuner.report(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            loss = optimizer.step(closure)
            if not inside:
                tuner.report(loss)
        return job.weights(), [(r.step, r.moves, r.statistics) for r in tuner.history]

    (weights, taken), (reference, expected) = train(True), train(False)
    assert all("log_grad_norm" in statistics for _, _, statistics in taken[1:])
    assert taken == expected
    assert torch.equal(weights, reference)
