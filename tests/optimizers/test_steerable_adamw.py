from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lhopt.core.errors import ConfigurationError
from lhopt.optimizers import ADAMW, STEERABLE, SteerableAdamW, StepRule, pack, steerable_adamw
from lhopt.optimizers.blocks import matrices
from lhopt.optimizers.orthogonal import NS_COEFFICIENTS, orthogonalise
from lhopt.optimizers.update import (
    Hyperparameters,
    MatrixFactors,
    RunState,
    begin_step,
    update_block,
)

torch.set_num_threads(1)

SHAPES = ((4, 3), (3,), (3, 2, 2, 1), (5, 1))
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
PLAIN = StepRule()


def gradient(p: Tensor, step: int) -> Tensor:
    """Of a bumpy bowl that moves; any shape, entry by entry, so that runs may be stacked."""
    return p - 0.3 * torch.sin(3.0 * p + step) + 0.1 * float(np.cos(step))


def start(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]


def drive(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for step in steps:
        for p in params:
            p.grad = gradient(p.detach(), step)
        optimizer.step()


def values(step: int, run: int) -> dict[str, float]:
    """Hyperparameters that change twice on the way.

    At rates above 0.05 orthogonalised updates are chaotic: a start that differs by 1e-15 ends 0.1
    away after 100 steps, in torch.optim.Muon as here, and no two codes could be compared.
    """
    k = (step >= 30) + (step >= 60)
    return {
        "lr": 0.004 * (run + 1) * 1.7**k,
        "beta1": (0.75, 0.9, 0.5)[(run + k) % 3],
        "beta2": (0.99, 0.95, 0.999)[(run + k) % 3],
        "eps": 1e-8 * 10.0**k,
        "weight_decay": 0.1 / (k + 1),
        "clip_ratio": (0.8, 0.5, 0.95)[(run + k) % 3],
    }


def face_values(v: dict[str, float]) -> dict[str, Any]:
    rest = {k: x for k, x in v.items() if not k.startswith("beta")}
    return {**rest, "betas": (v["beta1"], v["beta2"])}


@pytest.mark.parametrize(
    "rule",
    [
        STEERABLE,
        ADAMW,
        StepRule(trust_power=1.0),
        StepRule(orthogonal=True, nesterov=False, average=0.5, clip=True, clip_decay=0.9),
        StepRule(relative_eps=True, cautious=True, vector_scale=0.3, clip=True),
        StepRule(orthogonal=True, ns_steps=0, vector_scale=0.3, relative_eps=True),
        StepRule(orthogonal=True, precondition=True, ns_steps=3, trust_power=0.25),
    ],
    ids=["steerable", "adamw", "lamb", "muon", "cautious", "rows", "preconditioned"],
)
def test_three_faces_equal_one_update_of_three_stacked_runs(rule: StepRule) -> None:
    runs = [start(seed) for seed in range(3)]
    flat = torch.stack([torch.cat([p.reshape(-1) for p in params]) for params in runs])
    m, v = torch.zeros_like(flat), torch.zeros_like(flat)
    average = flat.clone() if rule.average else None
    state = RunState.initial(flat, 3)
    for step in range(100):
        rows = [values(step, run) for run in range(3)]

        def column(name: str, rows: list[dict[str, float]] = rows) -> Tensor:
            return torch.tensor([[row[name]] for row in rows], dtype=torch.float64)

        hyper = Hyperparameters(
            column("lr"), 1 - column("beta1"), 1 - column("beta2"), column("eps"),
            column("weight_decay"), column("clip_ratio"),
        )  # fmt: skip
        g = gradient(flat, step)
        clip, _ = begin_step(rule, state, hyper, g.square().sum(1, keepdim=True), SIZE)
        update_block(rule, state, hyper, flat, g, m, v, average, matrices(SHAPES), clip)

    for i, params in enumerate(runs):
        optimizer = SteerableAdamW(params, **face_values(values(0, i)), rule=rule)
        for step in range(100):
            optimizer.param_groups[0].update(face_values(values(step, i)))
            drive(optimizer, params, range(step, step + 1))
        ours = torch.cat([p.reshape(-1) for p in params])
        torch.testing.assert_close(ours, flat[i], rtol=1e-10, atol=1e-10)
        if average is not None:
            with optimizer.averaged_weights():
                ours = torch.cat([p.reshape(-1) for p in params])
            torch.testing.assert_close(ours, average[i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", [STEERABLE, ADAMW], ids=["steerable", "adamw"])
def test_factors_of_a_matrix_are_a_parameter_group_of_its_own(rule: StepRule) -> None:
    params = start(0)
    flat = torch.cat([p.reshape(-1) for p in params])[None].clone()
    m, v = torch.zeros_like(flat), torch.zeros_like(flat)
    average = flat.clone() if rule.average else None
    state, inside = RunState.initial(flat, 1), matrices(SHAPES)
    lr, decay = (torch.ones(1, len(inside), dtype=torch.float64) for _ in range(2))
    lr[0, 0], decay[0, 0], decay[0, -1] = 0.5, 4.0, 0.25
    own = face_values(values(0, 0))
    shapes = [tuple(p.shape) for p in params]
    places = [i for i, shape in enumerate(shapes) if matrices((shape,))]
    groups = [{"params": [p], **own} for p in params]
    groups[places[0]] |= {"lr": own["lr"] * 0.5, "weight_decay": own["weight_decay"] * 4.0}
    groups[places[-1]] |= {"weight_decay": own["weight_decay"] * 0.25}
    optimizer = SteerableAdamW(groups, **own, rule=rule)
    row = values(0, 0)
    hyper = Hyperparameters(
        *(
            torch.tensor([[x]], dtype=torch.float64)
            for x in (row["lr"], 1 - row["beta1"], 1 - row["beta2"], row["eps"],
                      row["weight_decay"], row["clip_ratio"])
        )
    )  # fmt: skip
    for step in range(20):
        g = gradient(flat, step)
        clip, _ = begin_step(rule, state, hyper, g.square().sum(1, keepdim=True), SIZE)
        update_block(
            rule, state, hyper, flat, g, m, v, average, inside, clip,
            matrix_factors=MatrixFactors(lr, decay),
        )  # fmt: skip
        drive(optimizer, params, range(step, step + 1))
    ours = torch.cat([p.reshape(-1) for p in params])
    torch.testing.assert_close(ours, flat[0], rtol=1e-10, atol=1e-10)


def test_a_matrix_whose_decay_is_a_whole_step_goes_to_zero_and_no_further() -> None:
    flat, m, v = torch.ones(1, 6), torch.zeros(1, 6), torch.zeros(1, 6)
    state, one = RunState.initial(flat, 1), torch.ones(1, 1, dtype=torch.float64)
    hyper = Hyperparameters(one, 0.1 * one, 0.01 * one, 1e-8 * one, one, 0.9 * one)
    zero, factors = torch.zeros_like(flat), torch.full((1, 1), 3.0)
    begin_step(STEERABLE, state, hyper, zero.sum(1, keepdim=True))
    update_block(
        STEERABLE, state, hyper, flat, zero, m, v, flat.clone(), matrices(((2, 3),)), None,
        matrix_factors=MatrixFactors(torch.ones(1, 1), factors),
    )  # fmt: skip
    assert flat.tolist() == [[0.0] * 6]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_adamw_rule_is_torch_adamw(dtype: torch.dtype) -> None:
    ours, theirs = start(0, dtype), start(0, dtype)
    first = face_values(values(0, 0))
    a = SteerableAdamW(ours, **first, rule=ADAMW)
    b = torch.optim.AdamW(theirs, **{k: v for k, v in first.items() if k != "clip_ratio"})
    for step in range(100):
        now = face_values(values(step, 0))
        a.param_groups[0].update(now)
        b.param_groups[0].update({k: v for k, v in now.items() if k != "clip_ratio"})
        drive(a, ours, range(step, step + 1))
        drive(b, theirs, range(step, step + 1))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_the_muon_rule_is_torch_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code as it stands, but for the rounding to bfloat16, which would hide everything."""
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    rule = StepRule(orthogonal=True, ns_steps=5, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(s, generator=generator).double() for s in ((6, 4), (3, 5))]
    theirs = [p.clone() for p in ours]
    a = SteerableAdamW(ours, 0.02, betas=(0.95, 0.99), rule=rule)
    b = torch.optim.Muon(theirs, 0.02, momentum=0.95, adjust_lr_fn="original")
    for step in range(100):
        now = values(step, 1)
        shared = {"lr": now["lr"], "weight_decay": now["weight_decay"]}
        a.param_groups[0].update(shared, betas=(now["beta1"], 0.99))
        b.param_groups[0].update(shared, momentum=now["beta1"])
        drive(a, ours, range(step, step + 1))
        drive(b, theirs, range(step, step + 1))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)], ids=str)
def test_orthogonalise_in_bfloat16_is_torch_muons(shape: tuple[int, int]) -> None:
    from torch.optim._muon import _zeropower_via_newtonschulz

    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours = orthogonalise(x.bfloat16()[None], 5)[0]
    theirs = _zeropower_via_newtonschulz(x, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    # bfloat16 has 8 bits, and five quintics add a few of them up
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.04)


def test_orthogonalised_singular_values_lie_around_one() -> None:
    x = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0)).double()
    singular = torch.linalg.svdvals(orthogonalise(x * 1e-5, 5))
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


def test_trust_power_one_is_lamb_on_matrices_alone() -> None:
    p = [torch.full((2, 3), 0.5).double(), torch.full((3,), 0.5).double()]
    optimizer = SteerableAdamW(
        p, 0.1, betas=(0.9, 0.99), weight_decay=0.0, rule=replace(PLAIN, trust_power=1.0)
    )
    reference = [x.numpy().copy() for x in p]
    m = [np.zeros_like(x) for x in reference]
    v = [np.zeros_like(x) for x in reference]
    for step in range(1, 30):
        g = [gradient(torch.from_numpy(x), step).numpy() for x in reference]
        drive(optimizer, p, range(step, step + 1))
        for i in range(2):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.99 * v[i] + 0.01 * g[i] ** 2
            u = m[i] / (1 - 0.9**step) / (np.sqrt(v[i] / (1 - 0.99**step)) + 1e-8)
            ratio = np.linalg.norm(reference[i]) / np.linalg.norm(u) if i == 0 else 1.0
            reference[i] = reference[i] - 0.1 * ratio * u
    for ours, wanted in zip(p, reference, strict=True):
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-10)


def test_preconditioned_momentum_is_orthogonalised_adam() -> None:
    p = [torch.full((3, 2), 0.5).double()]
    rule = StepRule(orthogonal=True, precondition=True)
    optimizer = SteerableAdamW(p, 0.1, betas=(0.9, 0.99), weight_decay=0.0, rule=rule)
    reference, m, v = p[0].clone(), torch.zeros(3, 2).double(), torch.zeros(3, 2).double()
    for step in range(1, 30):
        g = gradient(reference, step) * torch.tensor([1.0, 1e3]).double()
        p[0].grad = g.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        adam = (0.9 * m + 0.1 * g) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
        o = orthogonalise(adam[None], 5)[0]
        reference = reference - 0.1 * 1.5**0.5 * o
    torch.testing.assert_close(p[0], reference, rtol=1e-9, atol=1e-9)


def test_cautious_updates_leave_out_what_would_climb_and_nothing_else() -> None:
    """The middle entry has no gradient, as a row of a table that no example asked for."""
    p, free = torch.zeros(3).double(), torch.zeros(3).double()
    rows = [
        (x, SteerableAdamW([x], 0.1, weight_decay=0.0, rule=replace(PLAIN, cautious=cautious)))
        for x, cautious in ((p, True), (free, False))
    ]
    for g in ([1.0, 1.0, 1.0], [1.0, 0.0, -0.1]):
        before = p.clone()
        for x, optimizer in rows:
            x.grad = torch.tensor(g).double()
            optimizer.step()
    # the momentum of the last entry still points down the first gradient, and up the second
    assert p[2] == before[2] != free[2]
    torch.testing.assert_close(p[:2], free[:2])
    assert p[1] < before[1]


def test_half_precision_survives_rows_without_a_gradient() -> None:
    """An eps of 1e-8 is 0 in float16, and so is the product of a small update and gradient."""
    p = torch.full((4, 4), 0.5, dtype=torch.float16)
    optimizer = SteerableAdamW([p])
    for step in range(4):
        g = gradient(p.double(), step).half() * 1e-3
        g[1] = 0.0
        p.grad = g
        before = p.clone()
        optimizer.step()
        assert torch.isfinite(p).all()
    assert not torch.equal(p, before)


def test_running_bias_correction_is_exact_while_betas_move() -> None:
    """With a constant gradient both corrected moments are g and g**2, whatever the betas."""
    p = torch.zeros(3).double()
    g = torch.tensor([1.0, -2.0, 0.5]).double()
    optimizer = SteerableAdamW([p], 0.1, eps=1e-12, weight_decay=0.0, rule=PLAIN)
    for step in range(20):
        optimizer.param_groups[0]["betas"] = (0.5 + 0.02 * step, 0.9 + 0.004 * step)
        p.grad = g.clone()
        optimizer.step()
        momentum, adam_like = optimizer.momentum(p), optimizer.adam_like(p)
        assert momentum is not None
        assert adam_like is not None
        torch.testing.assert_close(momentum, g, rtol=1e-12, atol=0)
        assert adam_like.dtype == torch.bool
        assert adam_like.all()
    torch.testing.assert_close(p, -0.1 * 20 * g.sign(), rtol=1e-9, atol=0)


def test_a_parameter_that_joins_late_has_its_own_bias_correction() -> None:
    early, late = torch.zeros(2).double(), torch.zeros(2).double()
    optimizer = SteerableAdamW([early, late], 0.1, weight_decay=0.0, rule=PLAIN)
    for step in range(10):
        early.grad = torch.ones(2).double()
        late.grad = torch.ones(2).double() if step >= 7 else None
        optimizer.step()
        assert (optimizer.momentum(late) is None) == (step < 7)
    torch.testing.assert_close(late, torch.full((2,), -0.3).double(), rtol=1e-6, atol=0)


def test_clipping_is_at_a_share_of_the_decaying_maximum_over_all_groups() -> None:
    rule = replace(PLAIN, clip=True, clip_decay=0.9)
    a, b = torch.zeros(2).double(), torch.zeros(1).double()
    groups: list[dict[str, Any]] = [{"params": [a]}, {"params": [b], "betas": (0.5, 0.9)}]
    optimizer = SteerableAdamW(groups, 0.1, betas=(0.0, 0.9), clip_ratio=0.5, rule=rule)
    assert optimizer.last_clipped is None
    largest, b_momentum, product = 0.0, 0.0, 1.0
    for scale in (1.0, 0.2, 3.0, 1.4, 1.0, 10.0, 0.1):
        ga, gb = np.array([0.6, 0.0]) * scale, 0.8 * scale
        a.grad, b.grad = torch.tensor(ga), torch.tensor([gb], dtype=torch.float64)
        kept = a.grad.clone()
        optimizer.step()
        limit = 0.5 * largest if largest else scale
        largest = max(0.9 * largest, scale)
        factor = min(1.0, limit / scale)
        assert optimizer.last_clipped == float(scale > limit)
        momentum = optimizer.momentum(a)
        assert momentum is not None
        np.testing.assert_allclose(momentum.numpy(), ga * factor, rtol=1e-12)
        b_momentum, product = 0.5 * b_momentum + 0.5 * gb * factor, product * 0.5
        momentum = optimizer.momentum(b)
        assert momentum is not None
        np.testing.assert_allclose(momentum.numpy(), b_momentum / (1 - product), rtol=1e-12)
        assert torch.equal(a.grad, kept)


def test_an_average_of_one_is_the_mean_of_all_weights() -> None:
    params = start(0)
    optimizer = SteerableAdamW(params, rule=replace(STEERABLE, average=1.0))
    seen = []
    for step in range(17):
        drive(optimizer, params, range(step, step + 1))
        seen.append(params[0].clone())
    with optimizer.averaged_weights():
        torch.testing.assert_close(params[0], torch.stack(seen).mean(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(params[0], seen[-1])


def test_averaged_weights_come_back_after_an_exception_and_refuse_misuse() -> None:
    params = start(0)
    optimizer = SteerableAdamW(params)
    with optimizer.averaged_weights():
        pass  # nothing has moved
    drive(optimizer, params, range(5))
    raw = [p.clone() for p in params]
    saved = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError), optimizer.averaged_weights():
        params[0].view(7)
    assert all(torch.equal(p, q) for p, q in zip(params, raw, strict=True))
    with optimizer.averaged_weights():
        with (
            pytest.raises(ConfigurationError, match="inside averaged_weights"),
            optimizer.averaged_weights(),
        ):
            pass
        assert not torch.equal(params[0], raw[0])
        with pytest.raises(ConfigurationError, match=r"step\(\) inside"):
            optimizer.step()
        with pytest.raises(ConfigurationError, match="inside averaged_weights"):
            optimizer.load_state_dict(saved)
    assert all(torch.equal(p, q) for p, q in zip(params, raw, strict=True))
    drive(optimizer, params, range(5, 6))


def test_without_averaging_the_weights_stay() -> None:
    params = start(0)
    optimizer = SteerableAdamW(params, rule=replace(STEERABLE, average=0.0))
    drive(optimizer, params, range(3))
    raw = params[0].clone()
    with optimizer.averaged_weights():
        assert torch.equal(params[0], raw)


def _network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).to(dtype)


def _train(net: nn.Module, optimizer: SteerableAdamW, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(5, 1, 3, 3, generator=generator).to(next(net.parameters()).dtype)
        optimizer.param_groups[0]["betas"] = (0.75 + 0.01 * step, 0.99)
        optimizer.zero_grad()
        torch.autograd.backward(net(x).square().mean())
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_saved_optimizer_continues_to_the_bit(dtype: torch.dtype) -> None:
    whole, cut = _network(dtype), _network(dtype)

    def make(net: nn.Module) -> SteerableAdamW:
        params = list(net.parameters())
        groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "lr": 0.01}]
        return SteerableAdamW(groups)

    a, b = make(whole), make(cut)
    _train(whole, a, range(12))
    _train(cut, b, range(6))
    file = io.BytesIO()
    torch.save({"net": cut.state_dict(), "optimizer": b.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = _network(dtype)
    resumed.load_state_dict(saved["net"])
    c = make(resumed)
    c.load_state_dict(saved["optimizer"])
    _train(resumed, c, range(6, 12))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    with a.averaged_weights(), c.averaged_weights():
        for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_checkpoint_whose_numbers_are_tensors_goes_on_alike() -> None:
    """As one written on a device is, and every one before numbers were floats on a CPU."""
    net = _network(torch.float32)
    optimizer = SteerableAdamW(net.parameters())
    _train(net, optimizer, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    for holder in (*saved["state"].values(), *saved["param_groups"]):
        for key in ("product1", "product2", "max_norm", "mean_square"):
            if key in holder:
                holder[key] = torch.tensor([[holder[key]]], dtype=torch.float64)
    other_net = copy.deepcopy(net)
    other = SteerableAdamW(other_net.parameters())
    other.load_state_dict(saved)
    _train(net, optimizer, range(4, 8))
    _train(other_net, other, range(4, 8))
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_numbers_of_one_run_are_the_same_as_floats_and_as_tensors(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """On a device they are tensors; here both, by what turns a value into a number."""

    def column(value: Any, device: torch.device) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=device).reshape(1, 1)

    def square(gradients: list[Tensor]) -> Tensor:
        return torch.stack([g.double().square().sum() for g in gradients]).sum().view(1, 1)

    for rule in (STEERABLE, StepRule(trust_power=0.5, relative_eps=True, clip=True), ADAMW):
        finals = []
        for tensors in (False, True):
            with monkeypatch.context() as patch:
                if tensors:
                    patch.setattr(steerable_adamw, "placed", column)
                    patch.setattr(pack, "placed", column)
                    patch.setattr(steerable_adamw, "_square_on_cpu", square)
                params = start(5, dtype)
                optimizer = SteerableAdamW(params, lr=0.01, rule=rule)
                for step in range(20):
                    optimizer.param_groups[0].update(face_values(values(step + 20, 1)))
                    drive(optimizer, params, range(step, step + 1))
                finals.append(torch.cat([p.reshape(-1) for p in params]))
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(finals[0], finals[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_moves_as_float64_does(dtype: torch.dtype) -> None:
    """With gradients whose root mean square is near the smallest that float16 can hold."""
    moved = []
    for kind in (dtype, torch.float64):
        p = torch.zeros(64).to(kind)  # around which half precision is finest
        optimizer = SteerableAdamW([p], lr=0.01)
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            p.grad = (0.01 + 0.003 * torch.randn(64, generator=generator)).to(kind)
            optimizer.step()
        moved.append(p.double())
    assert float((moved[0] - moved[1]).norm() / moved[1].norm()) < 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "rule",
    [STEERABLE, StepRule(trust_power=1.0), StepRule(orthogonal=True)],
    ids=["steerable", "lamb", "muon"],
)
def test_no_rate_and_no_gradient_leave_every_dtype_as_it_is(
    rule: StepRule, dtype: torch.dtype
) -> None:
    params = [torch.full((8, 8), 2.0, dtype=dtype), torch.full((3,), 2.0, dtype=dtype)]
    optimizer = SteerableAdamW(params, lr=0.0, rule=rule)
    for p in params:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    optimizer.step()
    assert all(torch.equal(p, torch.full_like(p, 2.0)) for p in params)
    fresh = SteerableAdamW(params, weight_decay=0.0, rule=rule)
    for p in params:
        p.grad = torch.zeros_like(p)
    fresh.step()
    assert all(torch.equal(p, torch.full_like(p, 2.0)) for p in params)


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_norms_beyond_float32s_squares_are_known(scale: float) -> None:
    rule = replace(PLAIN, clip=True, clip_decay=0.9)
    p = torch.zeros(4, 4)
    optimizer = SteerableAdamW([p], clip_ratio=0.5, rule=rule)
    for factor, clipped in ((1.0, 0.0), (0.4, 0.0), (0.9, 1.0)):
        p.grad = torch.full((4, 4), scale * factor)
        optimizer.step()
        assert optimizer.last_clipped == clipped
    assert optimizer.param_groups[0]["max_norm"] == pytest.approx(4.0 * 0.9 * scale, rel=1e-5)


def test_a_large_gradients_norm_adds_up() -> None:
    g = torch.full((3_000_001,), 0.1)
    found = steerable_adamw._square_on_cpu([g, g[:1], g[:0]])
    assert found == pytest.approx(float(g.double().square().sum()) + 0.01, rel=1e-4)


def test_betas_that_take_nothing_in_raise_nothing() -> None:
    p = torch.ones(2, 2)
    optimizer = SteerableAdamW([p])
    optimizer.param_groups[0]["betas"] = (1.0, 0.99)  # as an adventurous schedule may set them
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.isfinite(p).all()


def test_matrices_of_one_shape_are_orthogonalised_as_each_alone() -> None:
    """Two of one shape, one of them lying the other way, between vectors and another shape."""
    shapes = ((4, 6), (4,), (6, 4), (3, 3), (6,), (4, 6))
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(s, generator=generator).double() for s in shapes]
    together = [p.clone() for p in starts]
    apart = [p.clone() for p in starts]
    rule = replace(STEERABLE, clip=False)  # whose norm is of all
    drive(SteerableAdamW(together, lr=0.01, rule=rule), together, range(20))
    for p in apart:
        drive(SteerableAdamW([p], lr=0.01, rule=rule), [p], range(20))
    for p, q in zip(together, apart, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_a_deep_copy_goes_on_alike() -> None:
    net = _network(torch.float32)
    optimizer = SteerableAdamW(net.parameters(), rule=replace(STEERABLE, ns_steps=2))
    _train(net, optimizer, range(4))
    other_net, other = copy.deepcopy((net, optimizer))
    assert other.rule == optimizer.rule
    _train(net, optimizer, range(4, 8))
    _train(other_net, other, range(4, 8))
    for p, q in zip(net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("source", ["adamw", "no average"])
def test_a_state_of_another_rule_is_refused(source: str) -> None:
    params = start(0)
    other: torch.optim.Optimizer = (
        torch.optim.AdamW(params)
        if source == "adamw"
        else SteerableAdamW(params, rule=replace(STEERABLE, average=0.0))
    )
    drive(other, params, range(2))
    with pytest.raises(ConfigurationError, match="another optimizer, or was saved with"):
        SteerableAdamW(params).load_state_dict(other.state_dict())


def test_memory_that_is_out_of_order_trains_the_same() -> None:
    def make(transposed: bool) -> list[Tensor]:
        a: Tensor = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        b = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
        if not transposed:
            return [a, b]
        return [a.t().contiguous().t(), b.contiguous(memory_format=torch.channels_last)]

    plain, odd = make(False), make(True)
    assert not odd[0].is_contiguous()
    a, b = SteerableAdamW(plain), SteerableAdamW(odd)
    drive(a, plain, range(5))
    drive(b, odd, range(5))
    b.load_state_dict(copy.deepcopy(b.state_dict()))
    drive(a, plain, range(5, 10))
    drive(b, odd, range(5, 10))
    for p, q in zip(plain, odd, strict=True):
        torch.testing.assert_close(p, q)


def test_parameters_without_a_gradient_stay() -> None:
    params = [nn.Parameter(p) for p in start(0)]
    params[1].requires_grad_(False)
    before = [p.detach().clone() for p in params]
    optimizer = SteerableAdamW(params, weight_decay=0.1)
    optimizer.step()  # no gradient at all
    torch.autograd.backward(params[0].sum())
    optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(params, before, strict=True)]
    assert moved == [True, False, False, False]


def test_zero_gradients_give_finite_weights() -> None:
    params = [torch.zeros(3, 2), torch.zeros(2), torch.tensor(0.0), torch.zeros(0)]
    optimizer = SteerableAdamW(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(p, torch.zeros_like(p)) for p in params)
    assert optimizer.last_clipped == 0.0


def test_a_closure_is_called_with_gradients_on_and_its_loss_comes_back() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = SteerableAdamW([p], 0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    assert float(p.detach().max()) < 1.0


def test_a_tensor_learning_rate_is_read_anew_each_step() -> None:
    rate = torch.tensor(0.1)
    p = torch.zeros(1).double()
    optimizer = SteerableAdamW([p], rate, weight_decay=0.0, rule=PLAIN)
    for value in (0.1, 0.2):
        rate.fill_(value)
        p.grad = torch.ones(1).double()
        optimizer.step()
    assert float(p) == pytest.approx(-0.3)


def test_a_group_added_later_clips_at_the_same_maximum() -> None:
    first, second = torch.zeros(1).double(), torch.zeros(1).double()
    optimizer = SteerableAdamW([first], clip_ratio=0.5)
    first.grad = torch.tensor([4.0]).double()
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    first.grad, second.grad = torch.tensor([3.0]).double(), torch.tensor([4.0]).double()
    optimizer.step()
    assert optimizer.last_clipped == 1.0
    momentum = optimizer.momentum(second)
    assert momentum is not None
    assert float(momentum) == pytest.approx(4.0 * 2.0 / 5.0)


def _sparse() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    torch.autograd.backward(table(torch.tensor([1])).sum())
    SteerableAdamW(table.parameters()).step()


def _refusals() -> list[Any]:
    rows: list[Any] = []
    table: tuple[tuple[dict[str, Any], str], ...] = (
        ({"lr": -1.0}, "lr is -1.0; it must be a finite number of at least 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": torch.ones(2)}, "lr is tensor"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\); both must lie in \[0, 1\)"),
        ({"betas": 0.9}, "betas is 0.9; two numbers"),
        ({"eps": 0.0}, "eps is 0.0; it must be greater than 0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"clip_ratio": 1.0}, r"clip_ratio is 1.0; it must lie in \(0, 1\).*clip=False"),
    )
    for words, match in table:
        make = partial(SteerableAdamW, [torch.ones(2)], **words)
        rows.append(pytest.param(make, match, id=match))
    complex_values = partial(SteerableAdamW, [torch.ones(2, dtype=torch.complex64)])
    rows.append(pytest.param(complex_values, "complex", id="complex"))
    rows.append(pytest.param(_sparse, "sparse=False", id="sparse"))
    return rows


@pytest.mark.parametrize(("make", "match"), _refusals())
def test_bad_values_are_refused_with_what_is_allowed(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    optimizer = SteerableAdamW([torch.ones(2)], lr=3e-2)
    for group in ({"lr": -1.0}, {"params": [torch.ones(1, dtype=torch.complex64)]}):
        with pytest.raises(ConfigurationError):
            optimizer.add_param_group({"params": [torch.ones(2)], **group})
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["lr"] == 3e-2


@pytest.mark.parametrize(
    "words",
    [
        {"trust_power": 1.5},
        {"average": -0.1},
        {"ns_steps": -1},
        {"vector_scale": 0.0},
        {"bias_correction": "runing"},
    ],
    ids=str,
)
def test_a_rule_out_of_range_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        StepRule(**words)


def test_small_parameters_in_one_block_move_as_each_would_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finals = []
    for limit in (1 << 16, 0, 4):  # all packed, none, the vectors alone
        monkeypatch.setattr(steerable_adamw, "PACKED", limit)
        params = start(3, torch.float32)
        optimizer = SteerableAdamW(params, lr=0.01)
        drive(optimizer, params, range(12))
        params[1].grad = None
        for step in range(12, 20):  # one of them rests: the others are packed anew
            for p in (params[0], *params[2:]):
                p.grad = gradient(p.detach(), step)
            optimizer.step()
        drive(optimizer, params, range(20, 30))
        assert [optimizer.state[p]["step"] for p in params] == [30, 22, 30, 30]
        finals.append(torch.cat([p.reshape(-1) for p in params]))
    # matrices of one shape are multiplied together, which may round in another order
    torch.testing.assert_close(finals[0], finals[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(finals[0], finals[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 40), (40, 4), (1, 9)])
def test_a_wide_matrix_is_orthogonalised_as_a_square_one_is(shape: tuple[int, int]) -> None:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b, c = NS_COEFFICIENTS
    wanted = x / x.square().sum((1, 2), keepdim=True).sqrt()
    for _ in range(4):
        gram = wanted @ wanted.mT
        wanted = a * wanted + (b * gram + c * gram @ gram) @ wanted
    torch.testing.assert_close(orthogonalise(x, 4), wanted, rtol=1e-9, atol=1e-9)


def test_without_iterations_rows_only_get_the_same_norm() -> None:
    x = torch.randn(1, 3, 7, generator=torch.Generator().manual_seed(2))
    out = orthogonalise(x, 0)
    torch.testing.assert_close(out.norm(dim=2), torch.ones(1, 3))
    torch.testing.assert_close(torch.cosine_similarity(out, x, dim=2), torch.ones(1, 3))


def test_relative_eps_makes_the_step_free_of_the_gradients_unit() -> None:
    """With eps as large as the gradients, so that it matters; absolute eps moves elsewhere."""
    moved = {}
    for relative in (True, False):
        for scale in (1.0, 1e3):
            p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
            rule = StepRule(relative_eps=relative)
            optimizer = SteerableAdamW([p], lr=0.1, eps=1.0, weight_decay=0.0, rule=rule)
            for step in range(5):
                p.grad = scale * gradient(p.detach(), step)
                optimizer.step()
            moved[relative, scale] = p.detach()
    torch.testing.assert_close(moved[True, 1.0], moved[True, 1e3], rtol=1e-12, atol=1e-12)
    assert (moved[False, 1.0] - moved[False, 1e3]).abs().max() > 1e-2


def test_the_average_of_a_parameter_is_what_averaged_weights_puts_in() -> None:
    net = nn.Linear(4, 3)
    optimizer = SteerableAdamW(net.parameters())
    assert optimizer.average(net.weight) is None  # it never moved
    for _ in range(3):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    held = optimizer.average(net.weight)
    assert held is not None
    with optimizer.averaged_weights():
        assert torch.equal(net.weight, held)
    plain = SteerableAdamW(net.parameters(), rule=replace(STEERABLE, average=0.0))
    plain.step()
    assert plain.average(net.weight) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [8, 257], ids=["packed", "alone"])
def test_the_average_of_half_precision_follows_as_float64s_does(
    size: int, dtype: torch.dtype
) -> None:
    """Weights stand at 1 for 200 steps and then at 1.125; and the second moment decays."""
    held = []
    for kind in (dtype, torch.float64):
        p = torch.ones(size, size).to(kind)
        optimizer = SteerableAdamW([p], lr=0.0, rule=replace(STEERABLE, ns_steps=0))
        for step in range(1200 if size == 8 else 300):
            p.fill_(1.0 if step < 200 else 1.125)
            p.grad = torch.full_like(p, 1.0 if step < 100 else 2.0**-10)
            optimizer.step()
        average = optimizer.average(p)
        assert average is not None
        held.append((average.double(), optimizer.state[p]["exp_avg_sq"].double()))
    for half, full in zip(*held, strict=True):
        torch.testing.assert_close(half, full, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_checkpoint_of_before_with_half_averages_goes_on_in_float32(dtype: torch.dtype) -> None:
    net = _network(dtype)
    optimizer = SteerableAdamW(net.parameters())
    _train(net, optimizer, range(4))
    saved = optimizer.state_dict()
    keys = ("exp_avg", "exp_avg_sq", "average")
    old = {
        i: {k: v.to(dtype) if k in keys else v for k, v in state.items()}
        for i, state in saved["state"].items()
    }
    del saved["rule"]
    resumed = SteerableAdamW(net.parameters())
    resumed.load_state_dict({**saved, "state": old})
    _train(net, resumed, range(4, 6))
    for p in net.parameters():
        assert all(resumed.state[p][key].dtype is torch.float32 for key in keys)


@pytest.mark.parametrize("words", [{"trust_power": 1.0}, {"average": 0.5}, {"clip": False}])
def test_a_state_whose_rule_differs_in_what_it_does_not_hold_is_refused(
    words: dict[str, Any],
) -> None:
    params = start(0)
    optimizer, other = (
        SteerableAdamW(params),
        SteerableAdamW(params, rule=replace(STEERABLE, **words)),
    )
    drive(optimizer, params, range(2))
    (name,) = words
    with pytest.raises(ConfigurationError, match=f"another rule \\({name} was"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    before = {key: value for key, value in optimizer.state_dict().items() if key != "rule"}
    SteerableAdamW(params).load_state_dict(before)


def test_a_rule_saved_before_a_field_existed_had_its_default() -> None:
    params = start(0)
    optimizer = SteerableAdamW(params)
    saved = optimizer.state_dict()
    del saved["rule"]["relative_eps"]  # False, its default
    SteerableAdamW(params).load_state_dict(saved)
    with pytest.raises(ConfigurationError, match="relative_eps was False and is True here"):
        SteerableAdamW(params, rule=replace(STEERABLE, relative_eps=True)).load_state_dict(saved)


def test_a_state_of_another_optimizer_that_never_stepped_is_refused() -> None:
    params = start(0)
    with pytest.raises(ConfigurationError, match="has no betas, eps, clip_ratio: it is of another"):
        SteerableAdamW(params).load_state_dict(torch.optim.SGD(params, lr=0.1).state_dict())


def test_what_a_state_lost_has_no_momentum_and_no_entry_is_made() -> None:
    params = start(0)
    optimizer = SteerableAdamW(params)
    drive(optimizer, params, range(2))
    optimizer.state.clear()
    assert optimizer.momentum(params[0]) is None
    assert optimizer.adam_like(params[0]) is None
    assert not optimizer.state


def _held_bytes(optimizer: torch.optim.Optimizer) -> int:
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    return sum(storages.values())


@pytest.mark.parametrize("resumed", [False, True], ids=["", "resumed"])
def test_parameters_that_leave_a_pack_keep_no_memory_but_their_own(resumed: bool) -> None:
    """Layers that are frozen one after another: checkpoints stay as large as the state."""
    params = [torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    optimizer = SteerableAdamW(params)
    momenta = []
    for frozen in range(8):
        for i, p in enumerate(params):
            p.grad = None if i < frozen else gradient(p, frozen)
        optimizer.step()
        momenta.append(optimizer.momentum(params[0]))
        if resumed:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = SteerableAdamW(params)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert _held_bytes(optimizer) == sum(3 * 4 * p.numel() for p in params)
    if not resumed:  # of a parameter without a gradient, momentum is as of its own last step
        first, *others = [m for m in momenta if m is not None]
        assert len(others) == 7
        assert all(torch.equal(first, other) for other in others)
