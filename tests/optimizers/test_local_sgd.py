from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lhopt.benchmarks.experiments.local_sgd_equivalence import (
    Every,
    equivalence,
    mean_iterate_gap,
)
from lhopt.core.errors import ConfigurationError
from lhopt.optimizers import (
    LAMB,
    STEERABLE,
    InProcess,
    LocalSGD,
    ProcessGroup,
    SteerableAdamW,
    Together,
    stack_workers,
    unstack_workers,
)
from lhopt.optimizers.contract import check_optimizer
from lhopt.optimizers.local_sgd import StateRule, SyncState, Transport, nesterov
from lhopt.optimizers.local_sgd.features import measure_meeting
from lhopt.optimizers.local_sgd.learned import LearnedInterval
from lhopt.optimizers.local_sgd.schedules import (
    ConstantInterval,
    InverseStepSize,
    PostLocal,
    PowerInterval,
    QuadraticSync,
)

torch.set_num_threads(1)

RULES: tuple[StateRule, ...] = ("local", "average", "reset")
P = 3


class Listed:
    """Intervals from a list, with a memory; keeps what it was shown."""

    def __init__(self, *intervals: int) -> None:
        self.intervals = intervals
        self.asked: list[SyncState] = []
        self.next = 0

    def next_interval(self, state: SyncState) -> int:
        self.asked.append(state)
        self.next += 1
        return self.intervals[(self.next - 1) % len(self.intervals)]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def start(dtype: torch.dtype = torch.float64, workers: int = P) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5,), ())
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.to(dtype).expand(workers, *x.shape).clone() for x in drawn]


def gradient(p: Tensor, step: int) -> Tensor:
    """Of a bumpy bowl that moves, another one for each worker; p: (P, ...)."""
    k = torch.arange(len(p), dtype=p.dtype).view(-1, *[1] * (p.dim() - 1))
    return p - 0.7 * torch.sin(3.0 * p + step + 2.0 * k) + 0.5 * torch.cos(step * 1.3 + k)


def drive(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], steps: range) -> None:
    for step in steps:
        for p in params:
            p.grad = gradient(p.detach(), step)
        optimizer.step()


def sgd(params: Sequence[Tensor], lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr, momentum=0.9, weight_decay=0.01)


def reference(
    intervals: Sequence[int], rule: str, outer: tuple[float, float] | None, steps: int
) -> tuple[list[list[np.ndarray]], list[float], list[float]]:
    """Local heavy-ball SGD from the papers, one worker after the other, in numpy float64.

    Lin et al. (2020), algorithm 1; Douillard et al. (2023), algorithm 1, with PyTorch's Nesterov.
    """
    x0 = [p[0].numpy().copy() for p in start()]
    workers = [[x.copy() for x in x0] for _ in range(P)]
    momenta: list[Any] = [None] * P
    velocity = [np.zeros_like(x) for x in x0]
    path, drifts, cosines = [], [], []
    queue, pending = itertools.cycle(intervals), 0
    interval = next(queue)
    for step in range(steps):
        lr = 0.05 if step < 25 else 0.02
        for k, worker in enumerate(workers):
            g = [
                x - 0.7 * np.sin(3 * x + step + 2 * k) + 0.5 * math.cos(step * 1.3 + k) + 0.01 * x
                for x in worker
            ]
            momenta[k] = g if momenta[k] is None else [
                0.9 * v + d for v, d in zip(momenta[k], g, strict=True)
            ]  # fmt: skip
            workers[k] = [x - lr * v for x, v in zip(worker, momenta[k], strict=True)]
        pending += 1
        if pending == interval:
            mean = [np.mean([w[i] for w in workers], axis=0) for i in range(len(x0))]
            flat = [np.concatenate([x.ravel() for x in w]) for w in workers]
            center = np.concatenate([x.ravel() for x in mean])
            drifts.append(
                float(np.mean([np.linalg.norm(f - center) for f in flat]) / np.linalg.norm(center))
            )
            moved = [f - np.concatenate([x.ravel() for x in x0]) for f in flat]
            cosines.append(
                float(
                    np.mean(
                        [
                            a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                            for a, b in itertools.combinations(moved, 2)
                        ]
                    )
                )
            )
            if outer is not None:
                rate, mu = outer
                delta = [a - b for a, b in zip(x0, mean, strict=True)]
                velocity = [mu * v + d for v, d in zip(velocity, delta, strict=True)]
                mean = [
                    a - rate * (d + mu * v)
                    for a, d, v in zip(x0, delta, velocity, strict=True)
                ]  # fmt: skip
            x0 = mean
            workers = [[x.copy() for x in x0] for _ in range(P)]
            if rule == "average":
                shared = [np.mean([v[i] for v in momenta], axis=0) for i in range(len(x0))]
                momenta = [list(shared) for _ in range(P)]
            elif rule == "reset":
                momenta = [None] * P
            pending, interval = 0, next(queue)
        path.append([np.stack([w[i] for w in workers]) for i in range(len(x0))])
    return path, drifts, cosines


@pytest.mark.parametrize("outer", [None, (0.7, 0.9), (0.4, 0.0)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_papers_algorithm_over_50_steps(
    rule: StateRule, outer: tuple[float, float] | None
) -> None:
    intervals = (1, 4, 2, 7)
    path, drifts, cosines = reference(intervals, rule, outer, 50)
    params = start()
    optimizer = LocalSGD(
        sgd(params),
        Listed(*intervals),
        InProcess(P),
        outer=None if outer is None else nesterov(*outer),
        state_rule=rule,
    )
    found: list[tuple[float, float]] = []
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 25 else 0.02
        drive(optimizer, params, range(step, step + 1))
        for p, wanted in zip(params, path[step], strict=True):
            torch.testing.assert_close(p, torch.from_numpy(wanted), rtol=1e-10, atol=1e-12)
        if optimizer.pending == 0:
            found.append((optimizer.drift, optimizer.cosine))
    assert optimizer.rounds == len(drifts) == len(found)
    np.testing.assert_allclose(found, np.stack([drifts, cosines], 1), rtol=1e-9)
    assert max(drifts) > 0.02
    assert min(cosines) < 0.9


def test_equivalences_in_small(figure: Any) -> None:
    _claims(
        equivalence(steps=40, intervals=(1, 7, 10_000), workers=(1, 16), dimensions=4000), figure, 8
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_equivalences_in_full(figure: Any) -> None:
    _claims(equivalence(), figure, 4)


def _claims(found: Any, figure: Any, percent: float) -> None:
    name = "Local SGD"
    gap = found.large_batch
    figure(name, "H = 1 equals large-batch SGD: largest gap <= 1e-6", f"{gap:.1e}", gap <= 1e-6)
    for rule in ("local", "average"):
        gap = getattr(found, f"momentum_{rule}")
        asked = f"... with momentum, state rule {rule!r}: <= 1e-6"
        figure(name, asked, f"{gap:.1e}", gap <= 1e-6)
    asked = "... with Adam it does not: gap >= 1e-2"
    figure(name, asked, f"{found.adam:.2g}", found.adam >= 1e-2)
    gap = found.mean_iterate
    figure(name, "mean iterate, any H, one Hessian: gap <= 1e-12", f"{gap:.1e}", gap <= 1e-12)
    gap = found.other_hessians
    figure(name, "... a Hessian per worker: gap >= 0.1", f"{gap:.2g}", gap >= 0.1)
    worst = max(abs(v - 1.0) for v in found.variances) * 100
    asked = f"variance of the mean at the optimum is 1/P of one's, within {percent:g} %"
    figure(name, asked, f"{worst:.1f} %", worst <= percent)


@pytest.mark.parametrize("still", [False, True], ids=["all move", "one stays"])
def test_drift_and_cosine_are_those_that_policies_are_trained_on(still: bool) -> None:
    params = start()
    first = [p[0].clone() for p in params]
    before = np.concatenate([p.numpy().ravel() for p in first])
    optimizer = LocalSGD(sgd(params), Every(100), InProcess(P))
    drive(optimizer, params, range(5))
    if still:
        for p, value in zip(params, first, strict=True):
            p[0] = value
    workers = np.concatenate([p.numpy().reshape(P, -1) for p in params], axis=1)
    optimizer.synchronize()
    drift, cosine = measure_meeting(workers, workers.mean(0), before)
    assert optimizer.drift == pytest.approx(float(drift), rel=1e-12)
    assert optimizer.cosine == pytest.approx(float(cosine), rel=1e-12)
    assert optimizer.sync_state == SyncState(5, 1, 0.05, optimizer.drift, optimizer.cosine, P)


def test_without_cosine_the_rest_is_the_same() -> None:
    one, two = start(), start()
    a = LocalSGD(sgd(one), Every(4), InProcess(P))
    b = LocalSGD(sgd(two), Every(4), InProcess(P), measure_cosine=False)
    drive(a, one, range(8))
    drive(b, two, range(8))
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))
    assert a.drift == b.drift
    assert math.isnan(b.cosine)
    assert not math.isnan(a.cosine)


def test_one_worker_steps_as_without_local_sgd() -> None:
    one, two = start(workers=1), start(workers=1)
    optimizer = LocalSGD(sgd(one), Every(3), InProcess(1))
    drive(optimizer, one, range(10))
    drive(sgd(two), two, range(10))
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))
    assert optimizer.drift == 0.0
    assert math.isnan(optimizer.cosine)


def test_the_schedule_is_asked_at_the_start_and_after_every_synchronisation() -> None:
    params, schedule = start(), Listed(2, 5)
    optimizer = LocalSGD(sgd(params), schedule, InProcess(P))
    assert optimizer.sync_interval == 2
    drive(optimizer, params, range(8))
    asked = [(s.step, s.round, s.n_workers) for s in schedule.asked]
    assert asked == [(0, 0, P), (2, 1, P), (7, 2, P)]
    assert math.isnan(schedule.asked[0].drift)
    assert math.isnan(schedule.asked[0].cosine)
    assert schedule.asked[2].drift == optimizer.drift
    assert (optimizer.rounds, optimizer.pending) == (2, 1)


def schedules() -> list[Any]:
    return [
        ConstantInterval(4),
        PostLocal(16),
        PostLocal(8, switch_step=13),
        InverseStepSize(0.3),
        QuadraticSync(alpha=0.15, base=2),
        PowerInterval(1.0, 0.5),
    ]


@pytest.mark.parametrize("index", range(len(schedules())))
def test_rounds_are_those_that_the_schedule_plans_under_a_schedulers_rate(index: int) -> None:
    schedule, params = schedules()[index], start()
    optimizer = LocalSGD(sgd(params, 0.1), copy.deepcopy(schedule), InProcess(P))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 40], gamma=0.5)
    ends, rates = [0], []
    for step in range(60):
        assert optimizer.sync_interval >= 1  # looking changes nothing
        rates.append(optimizer.param_groups[0]["lr"])
        drive(optimizer, params, range(step, step + 1))
        scheduler.step()
        if optimizer.pending == 0:
            ends.append(step + 1)
    optimizer.finalize()
    plan = schedule.plan(60, rates)
    assert np.diff(ends).tolist() == plan[: len(ends) - 1]
    assert optimizer.rounds == len(plan)
    assert 1 < len(plan) <= 60


def test_the_interval_may_be_set_at_any_time_and_given_back() -> None:
    params, schedule = start(), Listed(10, 2)
    optimizer = LocalSGD(sgd(params), schedule, InProcess(P))
    drive(optimizer, params, range(4))
    optimizer.sync_interval = 3  # 4 are pending: the next step ends with a synchronisation
    drive(optimizer, params, range(4, 5))
    assert (optimizer.rounds, optimizer.pending) == (1, 0)
    drive(optimizer, params, range(5, 8))
    assert optimizer.rounds == 2
    optimizer.sync_interval = 100
    drive(optimizer, params, range(8, 20))
    assert (optimizer.rounds, optimizer.pending) == (2, 12)
    optimizer.sync_interval = None  # it was asked three times meanwhile
    assert optimizer.sync_interval == 10
    assert schedule.next == 3
    drive(optimizer, params, range(20, 21))
    assert (optimizer.rounds, optimizer.pending) == (3, 0)
    assert optimizer.sync_interval == 2


def test_finalize_averages_what_is_pending_once() -> None:
    params = start()
    optimizer = LocalSGD(sgd(params), Every(4), InProcess(P))
    drive(optimizer, params, range(6))
    named = {str(i): p for i, p in enumerate(params)}
    with pytest.raises(ConfigurationError, match=r"different values of '0'.*finalize\(\)"):
        unstack_workers(named)
    mean = [p.mean(0) for p in params]
    optimizer.finalize()
    for p, wanted in zip(unstack_workers(named).values(), mean, strict=True):
        torch.testing.assert_close(p, wanted)
    assert (optimizer.rounds, optimizer.pending) == (2, 0)
    optimizer.finalize()
    assert optimizer.rounds == 2


def test_an_outer_rate_of_one_without_momentum_is_the_average() -> None:
    one, two = start(), start()
    a = LocalSGD(sgd(one), Every(3), InProcess(P))
    b = LocalSGD(sgd(two), Every(3), InProcess(P), outer=nesterov(1.0, 0.0))
    drive(a, one, range(9))
    drive(b, two, range(9))
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(p, q)


def test_weights_loaded_after_it_was_made_are_where_the_workers_start() -> None:
    params = start()
    optimizer = LocalSGD(sgd(params, 0.0), Every(2), InProcess(P), outer=nesterov())
    for p in params:
        p.add_(3.0)
    before = [p.clone() for p in params]
    drive(optimizer, params, range(4))
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p, q)


def test_the_outer_step_is_steered_on_the_way() -> None:
    params = start()
    optimizer = LocalSGD(sgd(params), Every(1), InProcess(P), outer=nesterov())
    assert (optimizer.outer_learning_rate, optimizer.outer_momentum) == (0.7, 0.9)
    drive(optimizer, params, range(3))
    optimizer.outer_learning_rate = 0.0
    optimizer.outer_momentum = 0.5
    before = [p.clone() for p in params]
    drive(optimizer, params, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    plain = LocalSGD(sgd(start()), Every(1), InProcess(P))
    assert (plain.outer_learning_rate, plain.outer_momentum) == (None, None)
    with pytest.raises(ConfigurationError, match="no outer 'lr'"):
        plain.outer_learning_rate = 0.5


def test_small_outer_steps_on_bfloat16_are_not_lost() -> None:
    """A step of 2^-11 is below bfloat16's resolution at 1; sixteen of them are not."""
    x = torch.ones(2, 1, dtype=torch.bfloat16)
    optimizer = LocalSGD(
        torch.optim.SGD([x], 1.0), Every(1), InProcess(2), outer=nesterov(2.0**-4, 0.0)
    )
    for step in range(1, 17):
        x.grad = torch.full_like(x, 2.0**-7)
        optimizer.step()
        assert (float(x[0]) < 1.0) == (step >= 5)  # 1 - 4 * 2^-11 is a tie, rounded to 1
        held = optimizer.state_dict()["local_sgd"]["global"]["tensors"][0]
        assert float(held) == 1.0 - step * 2.0**-11
    assert torch.equal(x, torch.full_like(x, 1.0 - 2.0**-7))


def test_the_mean_of_bfloat16_workers_is_taken_in_float32() -> None:
    # in bfloat16 the sum stays at 256 when ones are added to it
    x = torch.ones(513, 1, dtype=torch.bfloat16)
    optimizer = LocalSGD(torch.optim.SGD([x], 1.0), Every(1), InProcess(513))
    x.grad = torch.zeros_like(x)
    optimizer.step()
    assert torch.equal(x, torch.ones_like(x))


def _batchnorm() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    return model, *stack_workers(model, P)


@pytest.mark.parametrize("given", [True, False])
def test_floating_point_buffers_are_averaged_if_given_and_counters_stay(given: bool) -> None:
    model, params, buffers = _batchnorm()
    optimizer = LocalSGD(
        torch.optim.SGD(params.values(), 0.1),
        Every(2),
        InProcess(P),
        buffers=buffers.values() if given else None,
    )

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(model, (params, buffers), (x,))
        return out.square().mean()

    x = torch.randn(4, P, 8, 4, dtype=torch.float64)
    with torch.no_grad():  # one worker alone: the running mean that it must arrive at
        x[:, 1] += 1.0
    for batch in x:
        optimizer.zero_grad()
        torch.autograd.backward(vmap(loss)(params, buffers, batch).sum())
        optimizer.step()
    mean, count = buffers["1.running_mean"], buffers["1.num_batches_tracked"]
    assert count.tolist() == [4] * P
    assert bool((mean == mean[:1]).all()) is given
    state = {**params, **buffers}
    if given:
        model.load_state_dict(unstack_workers(state))
        assert torch.equal(model[1].running_mean, mean[0])  # type: ignore[index]
    else:
        with pytest.raises(ConfigurationError, match="buffers="):
            unstack_workers(state)


def test_a_modules_buffers_are_read_anew_each_time() -> None:
    class Model(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(P))
            self.register_buffer("count", torch.zeros(P, dtype=torch.int64))

    model, params = Model(), start()
    optimizer = LocalSGD(sgd(params), Every(1), InProcess(P), buffers=model)
    model.seen = torch.arange(P, dtype=torch.float32)
    model.count = torch.arange(P)
    drive(optimizer, params, range(1))
    assert model.seen.tolist() == [1.0] * P
    assert model.count.tolist() == [0, 1, 2]


@pytest.mark.parametrize("outer", [None, nesterov()], ids=["average", "outer"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_saved_run_continues_to_the_bit_between_synchronisations(
    rule: StateRule, outer: Any, dtype: torch.dtype
) -> None:
    def make(params: list[Tensor]) -> LocalSGD:
        groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
        return LocalSGD(
            torch.optim.AdamW(groups, 0.05),
            Listed(3, 5, 2),
            InProcess(P),
            outer=outer,
            state_rule=rule,
        )

    whole, cut = start(dtype), start(dtype)
    a, b = make(whole), make(cut)
    drive(a, whole, range(20))
    drive(b, cut, range(6))
    b.local_batch = 16
    assert b.pending == 3
    file = io.BytesIO()
    torch.save({"params": cut, "optimizer": b.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = saved["params"]
    c = make(resumed)
    c.load_state_dict(saved["optimizer"])
    assert c.local_batch == 16
    drive(c, resumed, range(6, 20))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))
    assert a.sync_state == c.sync_state
    # a deep copy goes on alike too
    params, d = copy.deepcopy((cut, b))
    drive(d, params, range(6, 20))
    assert all(torch.equal(p, q) for p, q in zip(whole, params, strict=True))


def test_an_interval_that_was_set_is_saved() -> None:
    params = start()
    optimizer = LocalSGD(sgd(params), Every(2), InProcess(P))
    drive(optimizer, params, range(3))
    optimizer.sync_interval = 50
    other = LocalSGD(sgd(params), Every(2), InProcess(P))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.sync_interval == 50
    other.sync_interval = None
    assert other.sync_interval == 2


@contextmanager
def unchanged(optimizer: LocalSGD) -> Iterator[None]:
    """Nothing is loaded before a state is refused."""

    def state() -> dict[str, Any]:
        saved = copy.deepcopy(optimizer.state_dict())
        del saved["local_sgd"]["clock"]["kind"]  # a word, which cannot be compared
        return saved

    before = state()
    yield
    torch.testing.assert_close(state(), before, rtol=0.0, atol=0.0, equal_nan=True)


class Alone:
    """A transport without a worker dimension, as `ProcessGroup` is; nobody is at the other end."""

    n_workers = 1
    first_worker = 0

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0)

    def mean(self, rows: Tensor) -> Tensor:
        return rows[0].clone()

    first = mean

    def agree(self, round: int, step: int, size: int, settings: int) -> None:
        pass


def _stateless(params: list[Tensor], **words: Any) -> LocalSGD:
    return LocalSGD(sgd(params), Every(2), InProcess(P), **words)


@pytest.mark.parametrize(
    ("saved", "match"),
    [
        (lambda p: sgd(p), "no 'local_sgd'; it is of another optimizer"),
        (lambda p: _stateless(p, outer=nesterov()), "run with an outer step, this one is without"),
        (lambda p: LocalSGD(sgd(p), Listed(2), InProcess(P)), "schedule with a memory; Every"),
        (lambda p: _stateless(p[:2]), "of parameters of shapes"),
        (lambda p: LocalSGD(sgd(start(workers=2)), Every(2), InProcess(2)), "2 workers per"),
    ],
    ids=["inner", "outer", "schedule", "parameters", "workers"],
)
def test_a_state_of_another_run_is_refused(
    saved: Callable[[list[Tensor]], torch.optim.Optimizer], match: str
) -> None:
    other = saved(start())
    drive(other, other.param_groups[0]["params"], range(2))
    optimizer = _stateless(start())
    with unchanged(optimizer), pytest.raises(ConfigurationError, match=match):
        optimizer.load_state_dict(other.state_dict())


def test_a_worker_between_meetings_is_no_start_for_another_number_of_workers() -> None:
    class Three(Alone):
        n_workers = 3

    def make(transport: Transport) -> LocalSGD:
        return LocalSGD(torch.optim.SGD(params, 0.1), Every(2), transport)

    params = [torch.ones(3)]
    three, one = make(Three()), make(Alone())
    drive(three, params, range(1))
    with pytest.raises(ConfigurationError, match=r"one of 3 workers, 1 local steps .* 1 workers"):
        one.load_state_dict(three.state_dict())
    drive(three, params, range(1))
    one.load_state_dict(three.state_dict())
    assert one.rounds == 1


def test_a_worker_between_meetings_is_no_start_for_another_rank() -> None:
    class OneOf(Alone):
        n_workers = 3

        def __init__(self, rank: int) -> None:
            self.first_worker = rank

    def make(rank: int) -> LocalSGD:
        return LocalSGD(torch.optim.SGD(params, 0.1), Every(2), OneOf(rank))

    params = [torch.ones(3)]
    first = make(0)
    drive(first, params, range(1))
    other = make(2)
    with pytest.raises(ConfigurationError, match=r"rank 0, 1 local steps .* rank 2.*file per rank"):
        other.load_state_dict(first.state_dict())
    assert (other.pending, other.sync_state.step) == (0, 0)
    again = make(0)
    again.load_state_dict(first.state_dict())
    assert again.pending == 1
    drive(first, params, range(1))
    other.load_state_dict(first.state_dict())  # they have met: all are alike
    assert other.rounds == 1


class Stacked(nn.Module):
    """Two workers' perceptrons; as `check_optimizer` wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.inner.requires_grad_(False)
        params, _ = stack_workers(self.inner, 2)
        self.names = list(params)
        self.stacked = nn.ParameterList([nn.Parameter(p) for p in params.values()])

    def forward(self, x: Tensor) -> Tensor:
        params = dict(zip(self.names, self.stacked, strict=True))
        out: Tensor = vmap(lambda p: functional_call(self.inner, p, (x,)))(params)
        return out


@pytest.mark.parametrize(
    ("inner", "rule"),
    [
        (partial(torch.optim.SGD, momentum=0.9), "local"),
        (torch.optim.AdamW, "average"),
        (torch.optim.AdamW, "reset"),
    ],
    ids=["sgd-local", "adamw-average", "adamw-reset"],
)
def test_it_keeps_every_optimizers_contract(inner: Any, rule: StateRule) -> None:
    check_optimizer(
        lambda model: LocalSGD(
            inner([p for p in model.parameters() if p.requires_grad], lr=0.01),
            Every(2),
            InProcess(2),
            state_rule=rule,
        ),
        Stacked,
    )


def test_groups_and_state_are_the_inner_optimizers() -> None:
    params = start()
    inner = sgd(params)
    optimizer = LocalSGD(inner, Every(2), InProcess(P))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    drive(optimizer, params, range(1))
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.025
    inner.load_state_dict(copy.deepcopy(inner.state_dict()))  # torch makes both anew
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state


def test_a_group_added_on_the_way_is_averaged_and_moved_by_the_outer_step() -> None:
    params, late = start(), torch.zeros(P, 2, dtype=torch.float64)
    optimizer = LocalSGD(sgd(params), Every(2), InProcess(P), outer=nesterov(0.5, 0.0))
    drive(optimizer, params, range(3))
    optimizer.add_param_group({"params": [late], "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0})
    for p in params:
        p.grad = None
    late.grad = torch.arange(P, dtype=torch.float64)[:, None].expand(P, 2).clone()
    optimizer.step()
    # mean displacement 0.1, of which the outer step takes half
    torch.testing.assert_close(late, torch.full_like(late, -0.05))
    apart = torch.arange(P, dtype=torch.float64)
    optimizer.add_param_group({"params": [apart]})
    with pytest.raises(ConfigurationError, match="start from different"):
        drive(optimizer, [*params, late, apart], range(4, 5))


def test_workers_that_start_apart_are_refused_until_broadcast() -> None:
    params = start()
    params[1][2] += 1e-9
    optimizer = LocalSGD(sgd(params), Every(2), InProcess(P))
    wanted = [p[0].clone() for p in params]
    with pytest.raises(ConfigurationError, match=r"different parameters.*broadcast\(\)"):
        drive(optimizer, params, range(1))
    optimizer.broadcast()
    for p, q in zip(params, wanted, strict=True):
        assert torch.equal(p, q.expand_as(p))
    drive(optimizer, params, range(2))
    assert optimizer.rounds == 1


def test_workers_that_hold_the_same_nan_start_alike_and_others_do_not() -> None:
    params = start()
    params[1][:, 2] = math.nan
    params[0][:, 1, 1] = math.inf
    drive(LocalSGD(sgd(params), Every(2), InProcess(P)), params, range(1))
    params = start()
    params[1][2, 2] = math.nan
    with pytest.raises(ConfigurationError, match="start from different parameters"):
        drive(LocalSGD(sgd(params), Every(2), InProcess(P)), params, range(1))


def test_a_closures_sparse_gradient_is_refused_before_the_step() -> None:
    p = nn.Parameter(torch.ones(P, 2))
    optimizer = LocalSGD(torch.optim.SGD([p], 0.1), Every(2), InProcess(P))

    def closure() -> float:
        p.grad = torch.ones(P, 2).to_sparse()
        return 1.0

    with (
        torch.sparse.check_sparse_tensor_invariants(True),  # type: ignore[no-untyped-call]
        pytest.raises(ConfigurationError, match="sparse=False"),
    ):
        optimizer.step(closure)
    assert torch.equal(p, torch.ones(P, 2))


def test_with_hessians_of_their_own_workers_drift_more_the_longer_they_are_alone() -> None:
    """So that "independent of H" above is no property of the code that measures it."""
    gaps = [mean_iterate_gap((1, h), workers=4, steps=60, shared=False) for h in (2, 8, 30)]
    assert gaps == sorted(gaps)
    assert gaps[0] > 1e-3


def _bad_interval(value: Any) -> LocalSGD:
    class Bad:
        def next_interval(self, state: SyncState) -> int:
            return value  # type: ignore[no-any-return]

    params = start()
    optimizer = LocalSGD(sgd(params), Bad(), InProcess(P))
    drive(optimizer, params, range(1))
    return optimizer


def _set(name: str, value: Any) -> None:
    setattr(_stateless(start(), outer=nesterov()), name, value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: InProcess(0), "n_workers is 0; a whole number of at least 1 is"),
        (lambda: InProcess(True), "n_workers is True"),
        (lambda: stack_workers(nn.Linear(1, 1), 0), "n_workers is 0"),
        (lambda: LocalSGD(sgd(start()), Every(1), InProcess(2)), r"leading dimension of 2.*stack"),
        (lambda: _stateless(start(), state_rule="mean"), "'mean'; it must be one of local, av"),
        (lambda: _stateless(start(), buffers=[torch.zeros(2)]), r"shape \(2,\) has no leading"),
        (lambda: _stateless([torch.ones(P, dtype=torch.complex64)]), "view_as_real"),
        (lambda: LocalSGD(LAMB(start()), Every(1), InProcess(P)), "LAMB looks at whole tensors"),
        (lambda: LocalSGD(sgd(start()), 8, InProcess(P)), r"is 8; .* ConstantInterval\(8\)"),  # type: ignore[arg-type]
        (lambda: _bad_interval(0), "interval of Bad is 0; a whole number of at least 1 is wanted"),
        (lambda: _bad_interval(2.5), "interval of Bad is 2.5"),
        (lambda: _set("sync_interval", 0), "sync_interval is 0; .* at least 1 or None is wanted"),
        (lambda: _set("sync_interval", True), "sync_interval is True"),
        (lambda: _set("local_batch", -1), "local_batch is -1; .* or None"),
        (lambda: _set("outer_learning_rate", math.nan), "outer learning rate is nan"),
        (lambda: _set("outer_momentum", 1.0), r"outer momentum is 1.0; it must lie in \[0, 1\)"),
        (lambda: nesterov(-0.1), "outer learning rate is -0.1"),
        (lambda: _around(4), r"transport is 4; InProcess\(4\) or ProcessGroup\(\)"),
        (lambda: _around(InProcess), "transport is <class"),
        (lambda: _around(InProcess(P), outer=nesterov), r"call it: outer=nesterov\(\)"),
        (lambda: _named("local-sgd"), r"pass lhopt.policy.small.bundled\('local-sgd'\)"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


def _around(transport: Any, **words: Any) -> LocalSGD:
    return LocalSGD(sgd(start()), Every(2), transport, **words)


def _named(policy: Any) -> LearnedInterval:
    return LearnedInterval(policy, total_steps=64, price=0.01)


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    optimizer = _stateless(start())
    with pytest.raises(ConfigurationError, match="leading dimension"):
        optimizer.add_param_group({"params": [torch.ones(P + 1)]})
    assert len(optimizer.param_groups) == 1


def test_a_state_shown_to_schedules_cannot_be_changed() -> None:
    state = _stateless(start()).sync_state
    assert replace(state, step=3).step == 3
    with pytest.raises(AttributeError):
        state.step = 3  # type: ignore[misc]


@pytest.mark.parametrize("outer", [None, nesterov(1.0, 0.0)], ids=["average", "outer"])
def test_memory_that_is_out_of_order_meets_as_other_memory_does(outer: Any) -> None:
    """A convolution in channels_last, and a transposed matrix; workers of one process, or one."""

    def strided(x: Tensor) -> Tensor:
        return (
            x.contiguous(memory_format=torch.channels_last)
            if x.dim() == 4
            else x.mT.contiguous().mT
        )

    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, 4, 5), (3, 4))
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    found = []
    for change in (torch.clone, strided):
        alone = [change(x) for x in drawn]
        drive(LocalSGD(sgd(alone), Every(2), Alone(), outer=outer), alone, range(4))
        stacked = [change(x[:1].expand_as(x).contiguous()) for x in drawn]
        drive(LocalSGD(sgd(stacked), Every(2), InProcess(3), outer=outer), stacked, range(4))
        found.append([*alone, *stacked])
    assert not any(p.is_contiguous() for p in found[1])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def _together(first: list[Tensor], second: list[Tensor]) -> Together:
    return Together(torch.optim.SGD(first, 0.05), torch.optim.AdamW(second, 0.01))


@pytest.mark.parametrize("size", [6, 5], ids=["alike", "other shape"])
def test_a_group_that_goes_to_the_first_of_several_children_is_the_new_one(size: int) -> None:
    """`Together` lists groups child by child, so that the last parameters are old ones."""
    w, v, new = torch.zeros(4), torch.ones(6), torch.full((size,), 5.0)

    def make(*first: Tensor) -> LocalSGD:
        return LocalSGD(_together([*first], [v]), Every(1), Alone(), outer=nesterov(0.5, 0.0))

    optimizer = make(w)
    optimizer.add_param_group({"params": [new], "dampening": 0})
    for p in (w, v, new):
        p.grad = torch.ones_like(p)
    optimizer.step()  # of which the outer step takes half
    for p, wanted in ((w, -0.025), (v, 1.0 - 0.005 - 0.5e-4), (new, 4.975)):
        torch.testing.assert_close(p, torch.full_like(p, wanted))
    saved = copy.deepcopy(optimizer.state_dict())
    again = make(w)
    again.add_param_group({"params": [new], "dampening": 0})
    again.load_state_dict(saved)
    assert again.rounds == 1


def test_a_state_whose_groups_were_added_in_another_order_is_refused() -> None:
    """Of equal shapes, global points would change places."""
    w, v, new = torch.zeros(6), torch.ones(6), torch.full((6,), 5.0)
    optimizer = LocalSGD(_together([w], [v]), Every(1), Alone())
    optimizer.add_param_group({"params": [new], "dampening": 0})
    saved = optimizer.state_dict()
    groups = [{"params": [w]}, {"params": [new]}]
    inner = Together(torch.optim.SGD(groups, 0.05), torch.optim.AdamW([v], 0.01))
    other = LocalSGD(inner, Every(1), Alone())
    with pytest.raises(ConfigurationError, match=r"order \[0, 2, 1\].*order \[0, 1, 2\]"):
        other.load_state_dict(saved)
    del saved["local_sgd"]["order"]  # a checkpoint of before
    optimizer.load_state_dict(saved)


def test_a_refused_group_is_in_no_child_either() -> None:
    inner = _together([torch.zeros(4)], [torch.ones(6)])
    optimizer = LocalSGD(inner, Every(1), Alone())
    whole = torch.ones(3, dtype=torch.int64)
    for params in (whole, [whole], iter([whole])):
        with pytest.raises(ConfigurationError, match=r"is torch\.int64; LocalSGD averages"):
            optimizer.add_param_group({"params": params, "dampening": 0})
    assert [len(child.param_groups) for child in inner.children] == [1, 1]


@pytest.mark.parametrize("known", [True, False], ids=["", "of before"])
@pytest.mark.parametrize(
    ("saved", "here"),
    [(PostLocal(16), Listed(2)), (PowerInterval(2.0), QuadraticSync(0.3))],
    ids=["with memories", "without"],
)
def test_a_state_of_another_schedule_is_refused_before_anything_is_loaded(
    saved: Any, here: Any, known: bool
) -> None:
    def make(schedule: Any) -> LocalSGD:
        inner = torch.optim.SGD(start(), 0.05, momentum=0.9)
        return LocalSGD(inner, schedule, InProcess(P))

    first, other = make(saved), make(here)
    drive(first, first.param_groups[0]["params"], range(3))
    state = first.state_dict()
    if not known:  # a checkpoint of before names no schedule: its memory tells
        del state["local_sgd"]["clock"]["kind"]
        if state["local_sgd"]["clock"]["schedule"] is None:
            other.load_state_dict(state)
            return
    told = "of the schedule P" if known else "holds highest, switched, which Listed cannot load"
    with unchanged(other), pytest.raises(ConfigurationError, match=told):
        other.load_state_dict(state)


def test_a_state_whose_outer_groups_differ_is_refused_before_anything_is_loaded() -> None:
    params, late = start(), torch.zeros(P, 2, dtype=torch.float64)
    optimizer = _stateless(params, outer=nesterov())
    optimizer.add_param_group({"params": [late]})
    saved = optimizer.state_dict()
    groups = [{"params": params}, {"params": [late]}]
    other = LocalSGD(torch.optim.SGD(groups, 0.05), Every(2), InProcess(P), outer=nesterov())
    with (
        unchanged(other),
        pytest.raises(ConfigurationError, match=r"groups of \[3, 1\] parameters, .* \[4\]"),
    ):
        other.load_state_dict(saved)


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "in Together"])
def test_a_reset_forgets_moments_and_spares_the_weight_average(wrapped: bool) -> None:
    p = torch.ones(3, 3)
    steerable = SteerableAdamW([p], lr=0.0, rule=replace(STEERABLE, average=1.0, clip=False))
    inner = Together(steerable) if wrapped else steerable
    optimizer = LocalSGD(inner, Every(2), Alone(), state_rule="reset")
    seen = []
    for step in range(6):
        p.fill_(float(step))
        p.grad = torch.ones(3, 3)
        optimizer.step()
        seen.append(float(step))
        average = steerable.average(p)
        assert average is not None
        torch.testing.assert_close(average, torch.full_like(p, sum(seen) / len(seen)))
        assert (steerable.momentum(p) is None) == (step % 2 == 1)  # they have just met
    drive(optimizer, [p], range(1))
    torch.testing.assert_close(steerable.momentum(p), p.grad)  # bias correction anew
    plain = torch.optim.Adam([p])
    optimizer = LocalSGD(plain, Every(2), Alone(), state_rule="reset")
    drive(optimizer, [p], range(2))
    assert not plain.state


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
def test_a_process_group_is_no_thing_to_copy(how: Callable[[Any], Any], tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        optimizer = LocalSGD(torch.optim.SGD([torch.ones(3)], 0.1), Every(2), ProcessGroup())
        with pytest.raises(ConfigurationError, match=r"ProcessGroup, .* cannot be copied"):
            how(optimizer)
    finally:
        dist.destroy_process_group()
