from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lhopt.core.errors import ConfigurationError
from lhopt.optimizers import LAMB, LARS
from lhopt.optimizers.contract import check_optimizer

torch.set_num_threads(1)

SHAPES = ((4, 3), (3,), (3, 2, 2, 2), (5, 1), ())
#: Notes a row of the table of figures; see `tests/conftest.py`.
Figure = Callable[[str, str, str, bool], None]
Array = np.ndarray[Any, np.dtype[np.float64]]


def gradient(p: Tensor, step: int) -> Tensor:
    """Of a bumpy bowl that moves."""
    return p - 0.3 * torch.sin(3.0 * p + step) + 0.1 * float(np.cos(step))


def start(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    params[3].zero_()  # a norm of 0 at the first step
    return [p.to(dtype) for p in params]


def drive(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for step in steps:
        for p in params:
            p.grad = gradient(p.detach(), step)
        optimizer.step()


def lars_values(step: int) -> dict[str, Any]:
    """Hyperparameters that change twice on the way."""
    k = (step >= 15) + (step >= 35)
    return {
        "lr": (3.0, 8.0, 1.0)[k],
        "momentum": (0.9, 0.5, 0.95)[k],
        "weight_decay": (0.1, 0.0, 0.02)[k],
        "trust_coefficient": (1e-3, 1e-3, 5e-3)[k],
        "eps": (0.0, 1e-8, 0.1)[k],
    }


def lamb_values(step: int) -> dict[str, Any]:
    """Hyperparameters that change twice on the way, betas too."""
    k = (step >= 15) + (step >= 35)
    return {
        "lr": (0.01, 0.05, 0.002)[k],
        "betas": ((0.9, 0.999), (0.5, 0.99), (0.95, 0.9))[k],
        "eps": (1e-6, 1e-8, 1e-3)[k],
        "weight_decay": (0.1, 0.0, 0.02)[k],
        "phi": (None, (0.5, 2.0), (0.0, 10.0))[k],
    }


def lars_twin(w: Array, grad: Callable[[Array, int], Array], vectors: bool) -> list[Array]:
    """Algorithm 1 of the paper, one parameter, written out; every iterate."""
    v, out = np.zeros_like(w), []
    for step in range(50):
        h, g = lars_values(step), grad(w, step)
        ratio, a, b = 1.0, np.sqrt((w * w).sum()), np.sqrt((g * g).sum())
        if a > 0 and b > 0 and (vectors or w.ndim > 1):
            ratio = h["trust_coefficient"] * a / (b + h["weight_decay"] * a + h["eps"])
        v = h["momentum"] * v + h["lr"] * ratio * (g + h["weight_decay"] * w)
        w = w - v
        out.append(w)
    return out


def lamb_twin(w: Array, grad: Callable[[Array, int], Array], vectors: bool) -> list[Array]:
    """Algorithm 2 of the paper, one parameter; moments as sums over all past gradients."""
    past: list[Array] = []
    out = []
    for step in range(50):
        h = lamb_values(step)
        past.append(grad(w, step))
        # weight of gradient i: (1 - beta_i) times all betas after it; normalised, they sum to 1
        moments = []
        for which, power in ((0, 1), (1, 2)):
            betas = [lamb_values(i)["betas"][which] for i in range(step + 1)]
            weights = [(1 - betas[i]) * np.prod(betas[i + 1 :]) for i in range(step + 1)]
            total = sum(c * g**power for c, g in zip(weights, past, strict=True))
            moments.append(total / sum(weights))
        r = moments[0] / (np.sqrt(moments[1]) + h["eps"]) + h["weight_decay"] * w
        ratio, a, b = 1.0, np.sqrt((w * w).sum()), np.sqrt((r * r).sum())
        if a > 0 and b > 0 and (vectors or w.ndim > 1):
            phi = a if h["phi"] is None else min(max(a, h["phi"][0]), h["phi"][1])
            ratio = phi / b
        w = w - h["lr"] * ratio * r
        out.append(w)
    return out


CASES: Any = [
    pytest.param(LARS, lars_values, lars_twin, id="lars"),
    pytest.param(LAMB, lamb_values, lamb_twin, id="lamb"),
]


@pytest.mark.parametrize("vectors", [False, True], ids=["matrices", "vectors too"])
@pytest.mark.parametrize(("make", "values", "twin"), CASES)
def test_fifty_steps_equal_the_paper_written_out(
    make: Any, values: Any, twin: Any, vectors: bool
) -> None:
    params = start()
    wanted = [
        twin(p.numpy().copy(), lambda w, t: gradient(torch.as_tensor(w), t).numpy(), vectors)
        for p in params
    ]
    first = {"adapt_vectors": vectors, **values(0)}
    groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = make(groups, **first)
    for step in range(50):
        for group in optimizer.param_groups:
            group.update(values(step))
        drive(optimizer, params, range(step, step + 1))
        for p, iterates in zip(params, wanted, strict=True):
            np.testing.assert_allclose(p.numpy(), iterates[step], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("make", "values", "twin"), CASES)
def test_float32_stays_within_rounding_of_the_twin(make: Any, values: Any, twin: Any) -> None:
    params = start(torch.float32)
    wanted = [
        twin(p.double().numpy(), lambda w, t: gradient(torch.as_tensor(w), t).numpy(), False)
        for p in params
    ]
    optimizer = make(params, **values(0))
    for step in range(50):
        optimizer.param_groups[0].update(values(step))
        drive(optimizer, params, range(step, step + 1))
    for p, iterates in zip(params, wanted, strict=True):
        np.testing.assert_allclose(p.numpy(), iterates[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.exact
@pytest.mark.parametrize("phi", [None, (0.1, 1.5)], ids=["identity", "clamped"])
def test_every_step_of_lamb_has_the_norm_lr_phi_the_first_too(
    phi: tuple[float, float] | None, figure: Figure
) -> None:
    """Bias correction outside the ratio gives 10, 5.3, 2.44, 1.54 and 1.04 here."""
    p = start()[0]
    optimizer = LAMB([p], 0.003, weight_decay=0.1, phi=phi)
    ratios = {}
    for step in range(1, 31):
        if step == 20:
            optimizer.param_groups[0]["lr"] = 0.01
        before, size = p.clone(), float(p.norm())
        drive(optimizer, [p], range(step, step + 1))
        bound = size if phi is None else min(max(size, phi[0]), phi[1])
        ratios[step] = float((p - before).norm()) / (optimizer.param_groups[0]["lr"] * bound)
    found = [ratios[t] for t in (1, 2, 5, 10, 30)]
    asked = f"phi {phi}: step norm / (lr phi) at steps 1, 2, 5, 10, 30 is 1"
    shown = ", ".join(f"{ratio:.12g}" for ratio in found)
    figure("LAMB", asked, shown, found == pytest.approx([1.0] * 5, rel=1e-12))
    assert (phi is None) or size > 1.5  # the clamp was met


def test_the_first_steps_of_lars_grow_as_momentum_gathers() -> None:
    """With one gradient for all steps: 1, 1.9, 2.71 times lr eta ||w||; w hardly moves."""
    p = start()[0]
    g = gradient(p, 0)
    optimizer = LARS([p], 1e-3, momentum=0.9)
    sizes = []
    for _ in range(3):
        before, p.grad = p.clone(), g.clone()
        optimizer.step()
        sizes.append(float((p - before).norm() / (1e-3 * 1e-3 * before.norm())))
    assert sizes == pytest.approx([1.0, 1.9, 2.71], rel=1e-5)


def test_a_new_rate_of_lars_acts_on_gradients_to_come_and_not_on_gathered_steps() -> None:
    p = start()[0]
    optimizer = LARS([p], 1.0, momentum=0.5)
    drive(optimizer, [p], range(1))
    gathered = optimizer.state[p]["momentum_buffer"].clone()
    optimizer.param_groups[0]["lr"] = 0.0
    before = p.clone()
    drive(optimizer, [p], range(1, 2))
    torch.testing.assert_close(before - p, 0.5 * gathered)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_the_ratio_is_one_where_a_norm_is_zero(zero: str) -> None:
    p = torch.zeros(2, 2).double() if zero == "weight" else torch.ones(2, 2).double()
    g = torch.zeros_like(p) if zero == "gradient" else torch.full_like(p, 3.0)
    lars, before = LARS([p], 0.1, momentum=0.0, weight_decay=0.5), p.clone()
    p.grad = g.clone()
    lars.step()
    torch.testing.assert_close(p, before - 0.1 * (g + 0.5 * before))
    q = before.clone()
    lamb = LAMB([q], 0.1, eps=1e-30, weight_decay=0.0)
    q.grad = g.clone()
    lamb.step()
    torch.testing.assert_close(q, before - 0.1 * g.sign())


def test_betas_that_move_leave_the_first_moment_an_average_of_gradients() -> None:
    """With one gradient for all steps m / c1 is that gradient, whatever the betas were."""
    p = torch.ones(2, 2).double()
    optimizer = LAMB([p], 0.0)
    for step in range(12):
        optimizer.param_groups[0]["betas"] = (0.9 - 0.07 * step, 0.9 + 0.005 * step)
        p.grad = torch.full_like(p, 2.0)
        optimizer.step()
        state = optimizer.state[p]
        torch.testing.assert_close(state["exp_avg"] / (1 - state["product1"]), p.grad)
        torch.testing.assert_close(state["exp_avg_sq"] / (1 - state["product2"]), p.grad**2)


# a momentum of 0.5 in LARS: at 0.9 what was gathered at the old rate hides that a new one is read
MAKE: dict[str, Any] = {
    "lars": partial(LARS, lr=5.0, momentum=0.5, weight_decay=0.01),
    "lars-vectors": partial(LARS, lr=30.0, momentum=0.5, adapt_vectors=True),
    "lamb": partial(LAMB, lr=0.02, weight_decay=0.1),
    "lamb-clamped": partial(LAMB, lr=0.02, phi=(0.1, 10.0), adapt_vectors=True),
}


@pytest.mark.parametrize("name", MAKE)
def test_it_keeps_the_contract_of_every_optimizer(name: str) -> None:
    check_optimizer(lambda model: MAKE[name](model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_a_saved_optimizer_continues_to_the_bit(name: str, dtype: torch.dtype) -> None:
    whole, cut = start(dtype), start(dtype)
    a, b = MAKE[name](whole), MAKE[name](cut)
    drive(a, whole, range(12))
    drive(b, cut, range(6))
    file = io.BytesIO()
    torch.save(b.state_dict(), file)
    file.seek(0)
    resumed = [p.clone() for p in cut]
    c = MAKE[name](resumed)
    c.load_state_dict(torch.load(file, weights_only=True))
    drive(c, resumed, range(6, 12))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_lamb_moves_half_precision_as_float32(dtype: torch.dtype) -> None:
    """The square of a gradient of 0.005, times 1e-3, is 0 in float16; in bfloat16 it is stuck."""
    moved, held = [], []
    for kind in (dtype, torch.float32):
        params = [torch.zeros(4), torch.full((4, 4), 0.5)]  # 0: where half precision is finest
        params = [p.to(kind) for p in params]
        optimizer = LAMB(params, lr=0.01, weight_decay=0.0)
        for step in range(400):
            for p in params:
                p.grad = torch.full_like(p, 1.0 if 100 <= step < 110 else 0.005)
            optimizer.step()
            if step == 4:
                moved.append([p.to(torch.float32, copy=True) for p in params])
            if step == 200:
                optimizer.load_state_dict(optimizer.state_dict())
        held.append([optimizer.state[p]["exp_avg_sq"] for p in params])
    for half, full in zip(*moved, strict=True):
        torch.testing.assert_close(half, full, rtol=0.02, atol=0.0)
    for half, full in zip(*held, strict=True):
        torch.testing.assert_close(half, full, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("name", MAKE)
def test_two_dtypes_in_one_group_and_a_tensor_rate_train_as_apart(name: str) -> None:
    mixed = [start(torch.float32)[0], start(torch.float64)[2]]
    alone = [p.clone() for p in mixed]
    a = MAKE[name](mixed)
    a.param_groups[0]["lr"] = torch.tensor(a.param_groups[0]["lr"], dtype=torch.float64)
    rest = [MAKE[name]([p]) for p in alone]
    drive(a, mixed, range(5))
    for optimizer, p in zip(rest, alone, strict=True):
        drive(optimizer, [p], range(5))
    for p, q in zip(mixed, alone, strict=True):
        assert p.dtype == q.dtype
        torch.testing.assert_close(p, q)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the names of operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MAKE)
def test_a_step_makes_no_tensor_on_the_host(name: str) -> None:
    """A copy to the device would wait for it; `torch.tensor` shows as aten::lift_fresh."""
    params = start()
    optimizer = MAKE[name](params)
    drive(optimizer, params, range(1))
    with Calls() as calls:
        optimizer.step()
    assert "aten::stack" in calls.names
    assert not {"aten::lift_fresh", "aten::_to_copy"} & set(calls.names)


def test_a_deep_copy_goes_on_alike() -> None:
    for make in MAKE.values():
        params = start()
        optimizer = make(params)
        drive(optimizer, params, range(3))
        twin = copy.deepcopy(optimizer)
        drive(optimizer, params, range(3, 6))
        others = twin.param_groups[0]["params"]
        drive(twin, others, range(3, 6))
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def _sparse(make: Any) -> None:
    table = nn.Embedding(4, 2, sparse=True)
    torch.autograd.backward(table(torch.tensor([1])).sum())
    make(table.parameters()).step()


def _refusals() -> list[Any]:
    rows: list[Any] = []
    table: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (LARS, {"lr": -1.0}, "lr is -1.0; it must be a finite number of at least 0"),
        (LARS, {"lr": "fast"}, "lr is 'fast'"),
        (LARS, {"lr": "1"}, "lr is '1'"),
        (LARS, {"lr": torch.ones(2)}, "lr is tensor"),
        (LARS, {"momentum": 1.0}, r"momentum is 1.0; it must be in \[0, 1\)"),
        (LARS, {"weight_decay": float("nan")}, "weight_decay is nan"),
        (LARS, {"trust_coefficient": 0.0}, "trust_coefficient is 0.0"),
        (LARS, {"eps": -1e-9}, "eps is -1e-09"),
        (LAMB, {"lr": float("inf")}, "lr is inf"),
        (LAMB, {"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\); two numbers in \[0, 1\)"),
        (LAMB, {"betas": 0.9}, "betas is 0.9"),
        (LAMB, {"eps": 0.0}, "eps is 0.0; it must be greater than 0"),
        (LAMB, {"weight_decay": -0.1}, "weight_decay is -0.1"),
        (LAMB, {"phi": (2.0, 1.0)}, r"phi is \(2.0, 1.0\); \(low, high\)"),
        (LAMB, {"phi": 10.0}, "phi is 10.0"),
    )
    for make, words, match in table:
        rows.append(pytest.param(partial(make, [torch.ones(2)], **words), match, id=match))
    for make in (LARS, LAMB):
        values = partial(make, [torch.ones(2, dtype=torch.complex64)])
        rows.append(pytest.param(values, "complex", id=f"{make.__name__} complex"))
        rows.append(pytest.param(partial(_sparse, make), "sparse=False", id=f"{make} sparse"))
    return rows


@pytest.mark.parametrize(("make", "match"), _refusals())
def test_bad_values_are_refused_with_what_is_allowed(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    for kind in (LARS, LAMB):
        optimizer = kind([torch.ones(2)])
        for group in ({"lr": -1.0}, {"params": [torch.ones(1, dtype=torch.complex64)]}):
            with pytest.raises(ConfigurationError):
                optimizer.add_param_group({"params": [torch.ones(2)], **group})
        assert len(optimizer.param_groups) == 1
