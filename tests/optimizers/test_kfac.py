from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lhopt.benchmarks.experiments.kfac import RATES, autoencoder
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.optimizers import KFAC, LAMB, LocalSGD, SteerableAdamW
from lhopt.optimizers.contract import check_optimizer
from lhopt.optimizers.local_sgd import ConstantInterval, InProcess, ProcessGroup

torch.set_num_threads(1)

#: Notes a row of the table of figures; see `tests/conftest.py`.
Figure = Callable[[str, str, str, bool], None]
Array = np.ndarray[Any, np.dtype[np.float64]]


def sgd(model: nn.Module, lr: float = 0.05, **words: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **words)


def half_square(out: Tensor, target: Tensor) -> Tensor:
    """Of a Gaussian with variance 1: half the square, summed over outputs, mean over examples."""
    loss: Tensor = 0.5 * (out - target).square().sum() / len(out)
    return loss


# --- one step solves the linear-Gaussian case -----------------------------------------------------


def orthonormal_noise(out: Tensor) -> Tensor:
    """Noise whose second moment over the batch is the identity exactly; `(batch, outputs, ...)`."""
    n, outputs = out.shape[:2]
    assert n % outputs == 0
    rows = math.sqrt(outputs) * torch.eye(outputs, dtype=out.dtype).repeat(n // outputs, 1)
    return rows.reshape(n, outputs, *[1] * (out.dim() - 2)).expand_as(out)


def exact_factors(optimizer: KFAC, model: nn.Module, x: Tensor, mean: bool = True) -> None:
    out = model(x)
    with optimizer.sampling():
        loss = 0.5 * (out - out.detach() - orthonormal_noise(out)).square().sum()
        torch.autograd.backward(loss / len(x) if mean else loss, retain_graph=True)


@pytest.mark.exact
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("parts", [1, 3], ids=["one batch", "three accumulated"])
def test_one_step_solves_linear_regression(bias: bool, parts: int, figure: Figure) -> None:
    """Exact factors, no damping, a rate of 1, no bound: the least-squares solution."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator).double() @ torch.diag(torch.arange(1.0, 6)).double()
    y = torch.randn(60, 4, generator=generator).double()
    model = nn.Linear(5, 4, bias=bias).double()
    optimizer = KFAC(model, sgd(model, 1.0), damping=0.0, kl_clip=None, fisher="sampled")
    for rows in torch.arange(60).chunk(parts):
        exact_factors(optimizer, model, x[rows])
        torch.autograd.backward(half_square(model(x[rows]), y[rows]) / parts)
    optimizer.step()
    design = torch.cat([x, torch.ones(60, 1).double()], 1) if bias else x
    wanted = torch.linalg.lstsq(design, y).solution.T
    found = model.weight if not bias else torch.cat([model.weight, model.bias[:, None]], 1)
    error = float((found - wanted).detach().abs().max())
    asked = f"linear-Gaussian, {parts} pass(es): one step to least squares, error <= 1e-9"
    figure("K-FAC", asked, f"{error:.1e}", error <= 1e-9)


@pytest.mark.parametrize("groups", [1, 2], ids=["plain", "grouped"])
@pytest.mark.parametrize("padding", ["same", "reflect", "strided"])
def test_one_step_solves_regression_by_a_convolution(groups: int, padding: str) -> None:
    generator = torch.Generator().manual_seed(0)
    words: dict[str, Any] = {
        "same": {"padding": "same", "dilation": 2},
        "reflect": {"padding": 1, "padding_mode": "reflect"},
        "strided": {"padding": (0, 1), "stride": 2},
    }[padding]
    model = nn.Conv2d(4, 6, 3, groups=groups, **words).double()
    x = torch.randn(30, 4, 7, 5, generator=generator).double()
    y = torch.randn(model(x).shape, generator=generator).double()
    optimizer = KFAC(model, sgd(model, 1.0), damping=0.0, kl_clip=None, fisher="sampled")
    exact_factors(optimizer, model, x)
    torch.autograd.backward(half_square(model(x), y))
    optimizer.step()
    model.zero_grad()
    torch.autograd.backward(half_square(model(x), y))
    for p in model.parameters():  # convex: nothing is left to gain
        assert p.grad is not None
        torch.testing.assert_close(p.grad, torch.zeros_like(p), rtol=0, atol=1e-10)


def test_a_loss_that_is_a_sum_gives_the_step_of_its_mean() -> None:
    """Its curvature is as many times larger as its gradient, if the convention is told."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, 4, generator=generator).double() for _ in range(2))
    found = []
    for reduction, scale in (("mean", 1), ("sum", len(x))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        optimizer = KFAC(model, sgd(model), 1e-2 * scale, None, reduction=reduction)
        for rows in torch.arange(20).chunk(2):
            part = half_square(model(x[rows]), y[rows])
            torch.autograd.backward(part / 2 if reduction == "mean" else part * len(rows))
        optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


# --- fifty steps against the papers written out ---------------------------------------------------


class Small(nn.Module):
    """A grouped convolution, then a Linear on each of its positions, then one on all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=2)
        self.norm = nn.LayerNorm(4)
        self.each = nn.Linear(4, 3, bias=False)
        self.last = nn.Linear(27, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.conv(x)).flatten(2).mT)
        out: Tensor = self.last(torch.tanh(self.each(h)).flatten(1))
        return out


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 4, 4, generator=generator).double()
    return x, torch.randint(3, (8,), generator=generator)


class Twin:
    """K-FAC before momentum SGD, one example after the other, with plain inverses."""

    def __init__(self, model: Small) -> None:
        self.model = model
        self.momentum = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
        self.factors: dict[str, tuple[Array, Array]] = {}
        self.frozen: dict[str, tuple[Array, Array]] = {}
        self.count = 0

    def statistics(self, x: Tensor, y: Tensor) -> dict[str, tuple[Array, Array]]:
        """A and G of each layer ("conv0" and "conv1" are the groups), from single examples."""
        sums: dict[str, tuple[Array, Array]] = {}
        rows = dict.fromkeys(("conv0", "conv1", "each", "last"), 0)
        for i in range(len(x)):
            m = self.model
            padded = F.pad(x[i : i + 1], (1, 1, 1, 1))
            conv = m.conv(x[i : i + 1])
            h = m.norm(torch.tanh(conv).flatten(2).mT)
            each = m.each(h)
            z = torch.tanh(each).flatten(1)
            out = m.last(z)
            gradients = torch.autograd.grad(F.cross_entropy(out, y[i : i + 1]), [conv, each, out])
            pairs: list[tuple[str, Array, Array]] = []
            for r in range(3):
                for c in range(3):
                    patch = padded[0, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
                    for k in range(2):
                        a = np.append(patch[k].detach().numpy().ravel(), 1.0)
                        g = gradients[0][0, 2 * k : 2 * k + 2, r, c].numpy()
                        pairs.append((f"conv{k}", a, g))
            for t in range(9):
                pairs.append(("each", h[0, t].detach().numpy(), gradients[1][0, t].numpy()))
            pairs.append(("last", np.append(z[0].detach().numpy(), 1.0), gradients[2][0].numpy()))
            for name, a, g in pairs:
                old = sums.get(name, (0.0, 0.0))
                sums[name] = (old[0] + np.outer(a, a), old[1] + np.outer(g, g))
                rows[name] += 1
        return {name: (s[0] / rows[name], s[1] / len(x)) for name, s in sums.items()}

    def step(self, step: int, values: dict[str, float]) -> None:
        x, y = batch(step)
        if step % 2 == 0:  # factor_interval
            self.count += 1
            keep = min(1 - 1 / self.count, 0.8)
            for name, new in self.statistics(x, y).items():
                old = self.factors.get(name, new)
                self.factors[name] = (
                    keep * old[0] + (1 - keep) * new[0],
                    keep * old[1] + (1 - keep) * new[1],
                )
        if step % 5 == 0:  # inverse_interval
            self.frozen = dict(self.factors)
        loss = F.cross_entropy(self.model(x), y)
        names = [name for name, _ in self.model.named_parameters()]
        tensors = torch.autograd.grad(loss, list(self.model.parameters()))
        raw = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        stacked = {
            f"conv{k}": np.c_[
                raw["conv.weight"][2 * k : 2 * k + 2].reshape(2, -1),
                raw["conv.bias"][2 * k : 2 * k + 2],
            ]
            for k in range(2)
        }
        stacked["each"] = raw["each.weight"]
        stacked["last"] = np.c_[raw["last.weight"], raw["last.bias"]]
        v, product = {}, 0.0
        for name, w in stacked.items():
            a, g = self.frozen[name]
            pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
            root = np.sqrt(values["damping"])
            left = np.linalg.inv(g + root / pi * np.eye(len(g)))
            v[name] = left @ w @ np.linalg.inv(a + root * pi * np.eye(len(a)))
            product += float((v[name] * w).sum())
        scale = min(1.0, np.sqrt(values["kl_clip"] / (values["lr"] ** 2 * product)))
        out = dict(raw)
        both = np.concatenate([v["conv0"], v["conv1"]]) * scale
        out["conv.weight"] = both[:, :-1].reshape(raw["conv.weight"].shape)
        out["conv.bias"] = both[:, -1]
        out["each.weight"] = v["each"] * scale
        out["last.weight"], out["last.bias"] = v["last"][:, :-1] * scale, v["last"][:, -1] * scale
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                full = out[name] + values["weight_decay"] * p.numpy()
                self.momentum[name] = values["momentum"] * self.momentum[name] + full
                p.sub_(torch.as_tensor(values["lr"] * self.momentum[name]))


def values(step: int) -> dict[str, float]:
    k = (step >= 13) + (step >= 32)  # between updates of the inverses
    return {
        "lr": (0.05, 0.02, 0.1)[k],
        "damping": (1e-2, 1e-3, 0.1)[k],
        "kl_clip": (1e-2, 1.0, 3e-3)[k],
        "momentum": (0.9, 0.5, 0.8)[k],
        "weight_decay": (0.01, 0.0, 0.1)[k],
    }


def test_fifty_steps_equal_the_papers_written_out() -> None:
    torch.manual_seed(0)
    ours = Small().double()
    twin = Twin(copy.deepcopy(ours))
    inner = sgd(ours, **{k: values(0)[k] for k in ("momentum",)})
    optimizer = KFAC(ours, inner, factor_decay=0.8, factor_interval=2, inverse_interval=5)
    for step in range(50):
        optimizer.param_groups[0].update(values(step))
        x, y = batch(step)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(ours(x), y))
        optimizer.step()
        twin.step(step, values(step))
        for p, q in zip(ours.parameters(), twin.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


# --- Fisher, cases, accumulation ------------------------------------------------------------------


def test_sampled_labels_give_the_fisher_and_true_ones_do_not() -> None:
    """For a softmax G is the mean of diag(p) - p p^T; the empirical one is far from it."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 3, generator=generator), torch.zeros(20_000, dtype=torch.long)
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    p = torch.softmax(model(x).detach(), 1)
    wanted = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    found = {}
    for fisher in ("sampled", "empirical"):
        optimizer = KFAC(model, sgd(model, 0.0), fisher=fisher)
        optimizer.zero_grad()
        logits = model(x)
        if fisher == "sampled":
            with optimizer.sampling():
                drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
                torch.autograd.backward(F.cross_entropy(logits, drawn), retain_graph=True)
        assert model.weight.grad is None
        torch.autograd.backward(F.cross_entropy(logits, y))
        optimizer.step()
        factors = optimizer.state_dict()["kfac"]["layers"][""]["factors"]
        found[fisher] = factors[1][0]
        design = torch.cat([x, torch.ones(len(x), 1)], 1)
        torch.testing.assert_close(factors[0][0], design.T @ design / len(x))
        optimizer.remove_hooks()
    assert float((found["sampled"] - wanted).norm() / wanted.norm()) < 0.03
    assert float((found["empirical"] - wanted).norm() / wanted.norm()) > 0.5


def test_accumulated_passes_equal_one_batch() -> None:
    found = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = Small().double()
        optimizer = KFAC(model, sgd(model), kl_clip=None)
        for step in range(3):
            optimizer.zero_grad()
            x, y = batch(step)
            for rows in torch.arange(8).chunk(parts):
                torch.autograd.backward(F.cross_entropy(model(x[rows]), y[rows]) / parts)
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_a_loss_per_token_equals_tokens_as_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 5, 3, generator=generator), torch.randint(2, (4, 5), generator=generator)
    found = []
    for flat in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = KFAC(model, sgd(model), kl_clip=None, loss_dims=1 if flat else 2)
        out = model(x.flatten(0, 1)) if flat else model(x).flatten(0, 1)
        torch.autograd.backward(F.cross_entropy(out, y.flatten()))
        optimizer.step()
        found.append(model.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1])


def test_nothing_is_seen_in_eval_mode_or_without_gradients() -> None:
    torch.manual_seed(0)
    model = Small().double()
    optimizer = KFAC(model, sgd(model, 0.0))

    def train(step: int) -> None:
        optimizer.zero_grad()
        x, y = batch(step)
        torch.autograd.backward(F.cross_entropy(model(x), y))

    train(0)
    with torch.no_grad():
        model(batch(1)[0])
    model.eval()
    torch.autograd.backward(F.cross_entropy(model(batch(2)[0]), batch(2)[1]))
    model.train()
    optimizer.step()
    alone = KFAC(model, sgd(model, 0.0))
    optimizer.remove_hooks()
    model.zero_grad()
    torch.autograd.backward(F.cross_entropy(model(batch(0)[0]), batch(0)[1]))
    alone.step()
    assert_same(optimizer.state_dict()["kfac"], alone.state_dict()["kfac"])


def test_zero_grad_takes_the_statistics_along() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    a = KFAC(model, sgd(model, 0.0))
    b = KFAC(model, sgd(model, 0.0))
    torch.autograd.backward(100 * model(torch.randn(5, 3)).square().mean())  # given up
    a.zero_grad()
    b.zero_grad()
    torch.autograd.backward(model(torch.ones(5, 3)).square().mean())
    a.step()
    again = KFAC(model, sgd(model, 0.0))
    model.zero_grad()
    torch.autograd.backward(model(torch.ones(5, 3)).square().mean())
    again.step()
    assert_same(a.state_dict()["kfac"], again.state_dict()["kfac"])


def test_statistics_that_are_not_finite_are_left_out() -> None:
    model = nn.Linear(2, 2)
    optimizer = KFAC(model, sgd(model, 0.0))
    saved = []
    for x in (torch.ones(3, 2), torch.full((3, 2), float("inf"))):
        optimizer.zero_grad()
        torch.autograd.backward(model(x).square().mean())
        if not x.isfinite().all():
            for p in model.parameters():
                p.grad = torch.zeros_like(p)  # as one who skips such a batch
        optimizer.step()
        saved.append(optimizer.state_dict()["kfac"]["layers"][""])
    assert_same(saved[0]["factors"], saved[1]["factors"])


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_factors_that_grow_stale_are_refused(fisher: str, interval: int) -> None:
    """Statistics that stop coming after the first: eval mode, or no sampling() any more."""
    torch.manual_seed(0)
    model = Small()
    optimizer = KFAC(model, sgd(model), fisher=fisher, factor_interval=interval)
    drive(model, optimizer, range(1))

    def more(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(batch(1)[0].float()), batch(1)[1]))
            optimizer.step()

    if fisher == "empirical":
        model.eval()
    more(10 * interval - 1)  # nine updates were due
    with pytest.raises(ConfigurationError, match=r"conv.weight .* not seen at its last 10 updates"):
        more(1)
    optimizer.remove_hooks()  # factors shall stay as they are
    more(1)


def test_statistics_may_be_missed_now_and_then_and_while_gradients_are_zero() -> None:
    torch.manual_seed(0)
    model = Small()
    optimizer = KFAC(model, sgd(model, 1e-3))
    for step in range(36):
        model.train(step % 9 == 0)
        drive(model, optimizer, range(step, step + 1))
    for _ in range(20):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()


@pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_a_grad_scaler_changes_nothing_once_loss_scale_is_told(
    fisher: str, reduction: str, clip: bool
) -> None:
    """To the bit, as scales are powers of two; the scale grows on the way."""
    found = []
    for kind in ("none", "told", "not told"):
        torch.manual_seed(0)
        model = Small()
        scaler = torch.amp.GradScaler(
            "cpu", init_scale=256.0, growth_interval=2, enabled=kind != "none"
        )
        told = {"loss_scale": scaler.get_scale} if kind == "told" else {}
        words: dict[str, Any] = {"fisher": fisher, "reduction": reduction, **told}
        optimizer = KFAC(model, sgd(model), **words)
        for step in range(5):
            x, y = batch(step)
            optimizer.zero_grad()
            logits = model(x.float())
            if fisher == "sampled":
                with optimizer.sampling():
                    drawn = F.cross_entropy(logits, (y + step) % 3, reduction=reduction)
                    torch.autograd.backward(scaler.scale(drawn), retain_graph=True)
            loss = F.cross_entropy(logits, y, reduction=reduction)
            torch.autograd.backward(scaler.scale(loss))
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], rtol=1e-3)


def test_a_batch_that_overflows_its_loss_scale_leaves_no_trace() -> None:
    model = Small()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = KFAC(model, sgd(model), loss_scale=scaler.get_scale)
    for step, times in enumerate((1.0, float("inf"), 1.0)):
        x, y = batch(step)
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(F.cross_entropy(model(x.float()), y)) * times)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 128.0
    assert optimizer.state_dict()["kfac"]["layers"]["last"]["count"] == 2
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_a_loss_scale_that_is_none_is_refused(scale: float) -> None:
    model = nn.Linear(3, 2)
    optimizer = KFAC(model, sgd(model), loss_scale=lambda: scale)
    torch.autograd.backward(model(torch.ones(4, 3)).square().mean())
    with pytest.raises(ConfigurationError, match=rf"loss_scale\(\) gave {scale}; it must be"):
        optimizer.step()


def test_a_model_converted_after_the_fact_is_seen_in_its_new_dtype() -> None:
    """As if it had been converted before; then on the way, with factors of the old dtype."""
    found = []
    for late in (False, True):
        torch.manual_seed(0)
        model = Small() if late else Small().double()
        if not late:
            torch.manual_seed(0)
            model.load_state_dict(Small().state_dict())
        optimizer = KFAC(model, sgd(model))
        model.double()
        drive(model, optimizer, range(3))
        assert optimizer.state_dict()["kfac"]["layers"]["last"]["factors"][0].dtype == torch.float64
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    model.float()
    drive(model, optimizer, range(3, 6))
    assert optimizer.state_dict()["kfac"]["layers"]["last"]["factors"][0].dtype == torch.float32
    model.double()
    drive(model, optimizer, range(6, 13))
    assert all(p.dtype == torch.float64 and p.isfinite().all() for p in model.parameters())


# --- around any optimizer -------------------------------------------------------------------------

INNER: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
    "adadelta": lambda params: torch.optim.Adadelta(params),
    "muon": lambda params: torch.optim.Muon(params, lr=0.01),
    "steerable-adamw": lambda params: SteerableAdamW(params),
    "lamb": lambda params: LAMB(params),
}


@pytest.mark.parametrize("name", INNER)
def test_the_inner_optimizer_steps_as_if_given_the_preconditioned_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    params: list[Tensor] = list(model.parameters())
    inner = INNER[name](params)
    seen: list[list[Tensor]] = []
    optimizer = KFAC(model, inner)
    inner.register_step_pre_hook(
        lambda *_: seen.append([p.grad.clone() for p in params if p.grad is not None])
    )
    alone = [p.detach().clone() for p in params]
    other = INNER[name](alone)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(6, 4, generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(model(x).square().mean())
        held = [(p.grad, p.grad.clone()) for p in params if p.grad is not None]
        optimizer.step()
        for p, (gradient, copied) in zip(params, held, strict=True):
            assert p.grad is gradient
            assert torch.equal(gradient, copied)
        for p, v in zip(alone, seen[-1], strict=True):
            p.grad = v
        other.step()
        assert all(not torch.equal(v, g) for v, (g, _) in zip(seen[-1], held, strict=True))
        assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


def conv_model() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 3, 1)),
        nn.Conv2d(2, 4, (2, 1), groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "steerable-adamw", "conv", "no bound"])
def test_it_keeps_the_contract_of_every_optimizer(name: str) -> None:
    def make(model: nn.Module) -> KFAC:
        inner = INNER.get(name, INNER["sgd"])(list(model.parameters()))
        return KFAC(model, inner, 0.1, None if name == "no bound" else 1e-3, inverse_interval=2)

    if name == "conv":
        check_optimizer(make, conv_model)
    else:
        check_optimizer(make)


def test_the_groups_are_the_inner_optimizers_own() -> None:
    model = Small()
    groups: list[dict[str, Any]] = [{"params": m.parameters()} for m in (model.conv, model.last)]
    groups[1]["lr"] = 0.5
    inner = torch.optim.SGD(groups, lr=0.1)
    optimizer = KFAC(model, inner, damping=0.5)
    assert optimizer.param_groups is inner.param_groups
    assert [group["damping"] for group in inner.param_groups] == [0.5, 0.5]
    optimizer.add_param_group({"params": model.each.parameters(), "damping": 0.1})
    assert optimizer.param_groups is inner.param_groups
    assert set(optimizer.state_dict()["kfac"]["layers"]) == {"conv", "each", "last"}
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    x, y = batch(0)
    torch.autograd.backward(F.cross_entropy(model(x.float()), y))
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in inner.param_groups] == [0.05, 0.25, 0.05]
    for one in (optimizer, inner):
        state = copy.deepcopy(one.state_dict())
        one.load_state_dict(state)
        assert optimizer.param_groups is inner.param_groups
        assert optimizer.state is inner.state
    bare = torch.optim.SGD(
        [{"params": list(m.parameters())} for m in (model.conv, model.last, model.each)], lr=0.3
    )
    inner.load_state_dict(bare.state_dict())  # saved without K-FAC
    assert [group["damping"] for group in optimizer.param_groups] == [0.5] * 3


def test_gradients_come_back_after_an_exception() -> None:
    model = nn.Linear(3, 2)
    inner = sgd(model)
    optimizer = KFAC(model, inner)

    def fail(*_: Any) -> None:
        raise RuntimeError("no step")

    inner.register_step_pre_hook(fail)
    torch.autograd.backward(model(torch.ones(4, 3)).square().mean())
    before = [p.grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="no step"):
        optimizer.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))


def test_local_sgd_goes_around_it_and_not_inside(tmp_path: Path) -> None:
    """One worker alone, who meets itself: the steps of K-FAC, and a checkpoint that goes on."""

    def make() -> tuple[nn.Module, KFAC]:
        torch.manual_seed(0)
        model = Small()
        return model, KFAC(model, sgd(model, momentum=0.9))

    def around(optimizer: KFAC) -> LocalSGD:
        return LocalSGD(optimizer, ConstantInterval(2), ProcessGroup(), state_rule="average")

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x, y = batch(step)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x.float()), y))
            optimizer.step()

    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        alone, kfac = make()
        train(alone, kfac, range(6))
        model, inner = make()
        outer = around(inner)
        train(model, outer, range(3))
        resumed, other = make()
        again = around(other)
        resumed.load_state_dict(model.state_dict())
        again.load_state_dict(copy.deepcopy(outer.state_dict()))
        train(resumed, again, range(3, 6))
        assert outer.rounds == 1
        assert again.rounds == 3
        assert_same(dict(alone.state_dict()), dict(resumed.state_dict()))
        assert_same(kfac.state_dict()["kfac"], other.state_dict()["kfac"])
        inside = LocalSGD(sgd(model), ConstantInterval(2), ProcessGroup())
        with pytest.raises(ConfigurationError, match=r"is LocalSGD.*LocalSGD\(KFAC\(model, inner"):
            KFAC(model, inside)
    finally:
        dist.destroy_process_group()
    square = nn.Linear(3, 3)  # as if stacked, three workers
    stacked = LocalSGD(sgd(square), ConstantInterval(2), InProcess(3))
    with pytest.raises(ConfigurationError, match="optimizer is LocalSGD"):
        KFAC(square, stacked)


# --- checkpoints and copies -----------------------------------------------------------------------


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit, however nested."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def drive(model: nn.Module, optimizer: KFAC, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        x = x.to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        out = model(x)
        if optimizer.fisher == "sampled" and optimizer.factors_due:
            with optimizer.sampling():
                loss = F.cross_entropy(out, (y + step) % 3)
                torch.autograd.backward(loss, retain_graph=True)
        torch.autograd.backward(F.cross_entropy(out, y))
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_a_saved_run_continues_to_the_bit(fisher: str, dtype: torch.dtype) -> None:
    def make() -> tuple[nn.Module, KFAC]:
        torch.manual_seed(0)
        model = Small().to(dtype)
        inner = torch.optim.Adam(model.parameters(), lr=0.01)
        words: dict[str, Any] = {"factor_interval": 2, "inverse_interval": 3, "fisher": fisher}
        return model, KFAC(model, inner, **words)

    whole, a = make()
    drive(whole, a, range(13))
    cut, b = make()
    drive(cut, b, range(7))
    file = io.BytesIO()
    torch.save({"model": cut.state_dict(), "optimizer": b.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, c = make()
    resumed.load_state_dict(saved["model"])
    c.load_state_dict(saved["optimizer"])
    drive(resumed, c, range(7, 13))
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert_same(a.state_dict(), c.state_dict())


def test_a_copied_or_pickled_model_is_not_watched() -> None:
    model = Small()
    optimizer = KFAC(model, sgd(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        x, y = batch(0)
        torch.autograd.backward(F.cross_entropy(other(x.float()), y))
    optimizer.step()
    assert optimizer.state_dict()["kfac"]["layers"]["last"]["factors"] is None
    with pytest.raises(ConfigurationError, match="cannot be copied or pickled"):
        copy.deepcopy(optimizer)


def test_a_state_of_another_optimizer_or_model_is_refused() -> None:
    model, other = Small(), nn.Linear(3, 2)
    optimizer = KFAC(model, sgd(model))
    with pytest.raises(ConfigurationError, match="no 'kfac'"):
        optimizer.load_state_dict(sgd(model).state_dict())
    with pytest.raises(ConfigurationError, match="conv, each, last"):
        optimizer.load_state_dict(KFAC(other, sgd(other)).state_dict())
    wider = nn.Linear(4, 2)
    a, b = KFAC(other, sgd(other)), KFAC(wider, sgd(wider))
    torch.autograd.backward(wider(torch.ones(1, 4)).sum())
    b.step()
    with pytest.raises(ConfigurationError, match=r"\(1, 5, 5\).*this model's have \[\(1, 4, 4\)"):
        a.load_state_dict(b.state_dict())


# --- what is refused, and what passes through -----------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(x)))
        return out


def test_shared_weights_are_refused_or_let_through() -> None:
    model = Tied()
    with pytest.raises(
        ConfigurationError, match=r"embed, head share a weight.*exclude=\('head',\)"
    ):
        KFAC(model, sgd(model))
    optimizer = KFAC(model, sgd(model, 1.0), exclude=("head",))
    torch.autograd.backward(model(torch.tensor([1, 2])).square().mean())
    before, raw = model.head.weight.detach().clone(), model.head.weight.grad
    assert raw is not None
    body, body_raw = model.body.weight.detach().clone(), model.body.weight.grad
    optimizer.step()
    torch.testing.assert_close(model.head.weight, before - raw)
    assert body_raw is not None
    assert not torch.allclose(model.body.weight, body - body_raw)


def test_a_layer_called_twice_in_one_backward_pass_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer = KFAC(model, sgd(model))
    with pytest.raises(ConfigurationError, match="0 was called twice in one backward pass"):
        torch.autograd.backward(model(model(torch.ones(2, 3))).sum())
    optimizer.zero_grad()
    torch.autograd.backward(model(torch.ones(2, 3)).sum())  # and goes on
    optimizer.step()


def test_a_gradient_without_statistics_is_refused_unless_it_is_zero() -> None:
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(3, 5, 4)
    optimizer = KFAC(model, sgd(model))
    torch.autograd.backward(model(x, x, x)[0].square().mean())
    with pytest.raises(ConfigurationError, match=r"out_proj.weight has a gradient, but its stat"):
        optimizer.step()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    plain = nn.Linear(2, 2).eval()
    optimizer = KFAC(plain, sgd(plain), fisher="sampled")
    torch.autograd.backward(plain(torch.ones(1, 2)).sum())
    with pytest.raises(ConfigurationError, match=r"not run inside sampling\(\), it ran in eval"):
        optimizer.step()


def test_frozen_parametrised_and_missing_layers_pass_through() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.Linear(3, 3),
        nn.Linear(3, 2),
    )
    params = [p for i in (0, 1, 3) for p in model[i].parameters()]
    model[3].bias.requires_grad_(False)
    optimizer = KFAC(model, torch.optim.SGD(params, lr=0.1))
    torch.autograd.backward(model(torch.randn(4, 3)).square().mean())
    optimizer.step()
    layers = optimizer.state_dict()["kfac"]["layers"]
    assert set(layers) == {"0", "3"}
    assert all(p.isfinite().all() for p in params)


def _refusals() -> list[Any]:
    table: tuple[tuple[dict[str, Any], str], ...] = (
        ({"damping": -1.0}, "damping is -1.0; it must be a finite number of at least 0"),
        ({"damping": "low"}, "damping is 'low'"),
        ({"kl_clip": 0.0}, "kl_clip is 0.0; .*or None for no bound"),
        ({"factor_decay": 1.0}, r"factor_decay is 1.0; it must be in \[0, 1\)"),
        ({"factor_interval": 0}, "factor_interval is 0; a whole number from 1"),
        ({"inverse_interval": 2.5}, "inverse_interval is 2.5"),
        ({"loss_dims": 0}, "loss_dims is 0"),
        ({"fisher": "true"}, "fisher is 'true'; it must be one of empirical, sampled"),
        ({"loss_scale": 65536.0}, "loss_scale is 65536.0; a function .* scaler.get_scale"),
        ({"reduction": "none"}, "reduction is 'none'; it must be one of mean, sum"),
        ({"exclude": ("",)}, r"this SGD steps \(exclude is"),
    )
    return [pytest.param(words, match, id=match) for words, match in table]


@pytest.mark.parametrize(("words", "match"), _refusals())
def test_bad_values_are_refused_with_what_is_allowed(words: dict[str, Any], match: str) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigurationError, match=match):
        KFAC(model, sgd(model), **words)


def test_misuse_is_refused() -> None:
    model = Small()
    with pytest.raises(UnknownNameError, match=r"Unknown module 'lasst'.*Nearest: last"):
        KFAC(model, sgd(model), exclude=("lasst",))
    with pytest.raises(ConfigurationError, match="LBFGS"):
        KFAC(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ConfigurationError, match=r"this SGD steps; K-FAC .* Use the SGD alone"):
        KFAC(nn.LayerNorm(3), sgd(model))
    swapped: tuple[tuple[Any, Any, str], ...] = (
        (model.parameters(), sgd(model), r"model is of type generator; .* KFAC\(model, inner\)"),
        (sgd(model), model, "model is of type SGD; the nn.Module itself"),
        (model, model.parameters(), "optimizer is of type generator"),
    )
    for first, second, match in swapped:
        with pytest.raises(ConfigurationError, match=match):
            KFAC(first, second)
    optimizer = KFAC(model, sgd(model))
    with (
        pytest.raises(ConfigurationError, match="fisher is 'empirical'"),
        optimizer.sampling(),
    ):
        pass
    with pytest.raises(ConfigurationError, match="damping is nan"):
        optimizer.add_param_group({"params": [torch.zeros(1)], "damping": float("nan")})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("how", ["held", "thawed", "frozen on the way", "no gradient"])
def test_a_frozen_bias_leaves_the_curvature_of_the_weights_alone(how: str) -> None:
    """Exact factors, no damping: the least squares of the weights with the bias as it is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator).double() + 2.0
    y = torch.randn(60, 4, generator=generator).double()
    model = nn.Linear(5, 4).double()
    words: dict[str, Any] = {"damping": 0.0, "kl_clip": None, "fisher": "sampled"}
    model.bias.requires_grad_(how in ("frozen on the way", "no gradient"))
    optimizer = KFAC(model, sgd(model, 1.0), **words, inverse_interval=100)

    def step() -> None:
        optimizer.zero_grad()
        exact_factors(optimizer, model, x)
        torch.autograd.backward(half_square(model(x), y))
        if how == "no gradient":
            model.bias.grad = None
        optimizer.step()

    if how == "frozen on the way":  # after a decomposition with the bias, and not due
        optimizer.param_groups[0]["lr"] = 0.1
        step()
        model.bias.requires_grad_(False)
        optimizer.param_groups[0]["lr"] = 1.0
    bias = model.bias.detach().clone()
    step()
    wanted = torch.linalg.lstsq(x, y - bias).solution.T
    torch.testing.assert_close(model.weight.detach(), wanted, rtol=0, atol=1e-9)
    assert torch.equal(model.bias, bias)
    if how == "thawed":
        model.bias.requires_grad_(True)
        step()
        wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1).double()], 1), y).solution.T
        found = torch.cat([model.weight, model.bias[:, None]], 1).detach()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_what_an_earlier_kfac_put_into_groups_is_no_value_of_theirs() -> None:
    model = Small()
    groups: list[dict[str, Any]] = [{"params": m.parameters()} for m in (model.conv, model.last)]
    inner = torch.optim.SGD([{**groups[0], "damping": 0.25}, groups[1]], lr=0.1)

    def held() -> list[Any]:
        return [(group.get("damping"), group.get("kl_clip")) for group in inner.param_groups]

    with pytest.raises(UnknownNameError):
        KFAC(model, inner, damping=0.5, exclude=("nothing",))
    with pytest.raises(ConfigurationError, match=r"no nn\.Linear"):
        KFAC(nn.LayerNorm(3), inner, damping=0.5)
    assert held() == [(0.25, None), (None, None)]
    assert "kl_clip" not in inner.param_groups[0]
    first = KFAC(model, inner, damping=0.5, kl_clip=0.01)
    first.add_param_group({"params": model.each.parameters()})
    assert held() == [(0.25, 0.01), (0.5, 0.01), (0.5, 0.01)]
    with pytest.raises(ConfigurationError, match="damping is -1"):
        KFAC(model, inner, damping=-1.0)
    assert held() == [(0.25, 0.01), (0.5, 0.01), (0.5, 0.01)]
    first.remove_hooks()
    KFAC(model, inner, damping=0.125, kl_clip=None)
    assert held() == [(0.25, None), (0.125, None), (0.125, None)]


def test_a_refused_kfac_leaves_no_hooks_on_the_model() -> None:
    model = nn.Sequential(nn.Linear(5, 3), Tied())
    with pytest.raises(ConfigurationError, match="share a weight"):
        KFAC(model, sgd(model))
    assert not any(module._forward_hooks for module in model.modules())


# --- the experiment -------------------------------------------------------------------------------


def note(figure: Figure, seeds: tuple[int, ...], budget: int, rates: tuple[float, ...]) -> None:
    for run in autoencoder(seeds, budget, rates):
        for fisher, steps in run.steps.items():
            asked = (
                f"digits autoencoder, seed {run.seed}, {fisher} Fisher: fewer than the {budget} "
                f"steps of SGD (best of {len(rates)} rates: {run.rate}) to its {run.target:.2f}"
            )
            figure("K-FAC", asked, f"{steps}", steps is not None and steps < budget)


def test_it_trains_an_autoencoder_in_fewer_steps_than_tuned_sgd(figure: Figure) -> None:
    note(figure, (1,), 200, (0.01, 0.02, 0.03, 0.05, 0.1, 0.2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_trains_an_autoencoder_in_fewer_steps_than_tuned_sgd_in_full(figure: Figure) -> None:
    note(figure, (0, 1, 2), 1000, RATES)
