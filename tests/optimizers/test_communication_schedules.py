from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lhopt.benchmarks.experiments import communication as experiment
from lhopt.benchmarks.experiments.communication import RISING, Communication, communication
from lhopt.core.errors import ConfigurationError
from lhopt.optimizers.local_sgd.features import (
    BATCH_CHOICES,
    INTERVAL_CHOICES,
    OBSERVATIONS,
    measure_meeting,
)
from lhopt.optimizers.local_sgd.learned import LearnedInterval
from lhopt.optimizers.local_sgd.protocol import Schedule, StatefulSchedule, SyncState
from lhopt.optimizers.local_sgd.schedules import (
    LONGEST,
    CommunicationSchedule,
    ConstantInterval,
    InverseStepSize,
    PostLocal,
    PowerInterval,
    QuadraticSync,
)
from lhopt.optimizers.local_sgd.simulate import (
    LogisticRegression,
    Quadratic,
    Simulation,
    constant,
    inverse_sqrt,
    simulate_local_sgd,
)
from lhopt.policy.small import Memory

SYSTEM = "Communication schedules"


def at(step: int, learning_rate: float = 0.1, round_: int = 0) -> SyncState:
    return SyncState(step, round_, learning_rate, math.nan, math.nan, 4)


ALL: tuple[CommunicationSchedule, ...] = (
    ConstantInterval(7),
    PowerInterval(1.0, 0.5, by="step"),
    PowerInterval(2.0, 1.3, by="round"),
    InverseStepSize(0.4),
    QuadraticSync(0.3, base=2),
    PostLocal(16),
    PostLocal(16, switch_step=50),
)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_plan_sums_to_the_steps_and_is_what_the_schedule_would_answer(
    schedule: CommunicationSchedule,
) -> None:
    rates = [0.4 / math.sqrt(t + 1) for t in range(237)]
    before = copy.deepcopy(schedule)
    plan = schedule.plan(237, rates)
    assert sum(plan) == 237
    assert min(plan) >= 1
    assert schedule == before  # planning is not running
    step, asked = 0, copy.deepcopy(schedule)
    for i, interval in enumerate(plan):
        assert interval == min(asked.next_interval(at(step, rates[step], i)), 237 - step)
        step += interval


def test_a_plan_takes_one_learning_rate_for_all_steps() -> None:
    assert InverseStepSize(0.5).plan(12, 0.1) == [5, 5, 2]
    assert ConstantInterval(3).plan(0, 0.1) == []


def test_sqrt_growth_by_step_is_linear_growth_by_round() -> None:
    rates = [0.1] * 20000
    by_step = PowerInterval(1.0, 0.5, by="step").plan(20000, rates)
    # n' = sqrt(t) with t the sum of the n gives n = round / 2
    by_round = PowerInterval(0.5, 1.0, by="round").plan(20000, rates)
    assert len(by_step) == pytest.approx(2 * math.sqrt(20000), rel=0.03)
    assert len(by_round) == pytest.approx(len(by_step), rel=0.03)
    np.testing.assert_allclose(by_step[:-1][::20], by_round[: len(by_step) - 1][::20], atol=2)


def test_step_exponent_a_is_round_exponent_a_over_one_minus_a() -> None:
    plan = PowerInterval(1.0, 0.75, by="step").plan(300_000, 0.1)[:-1]
    rounds = np.arange(1, len(plan) + 1)
    late = slice(len(plan) // 2, None)
    slope = np.polyfit(np.log(rounds[late]), np.log(np.asarray(plan[late], float)), 1)[0]
    assert slope == pytest.approx(0.75 / 0.25, rel=0.1)


def test_inverse_step_size_keeps_interval_times_step_size() -> None:
    schedule = InverseStepSize(0.3)
    assert [schedule.next_interval(at(0, eta)) for eta in (1.0, 0.3, 0.1, 0.03, 0.001)] == [
        1, 1, 3, 10, 300,
    ]  # fmt: skip


def test_qsr_is_the_paper_s_formula_and_exact_where_the_ratio_is_a_whole_number() -> None:
    schedule = QuadraticSync(0.3, base=4)
    assert [schedule.next_interval(at(0, eta)) for eta in (1.0, 0.15, 0.1, 0.05, 0.07)] == [
        4, 4, 9, 36, 18,
    ]  # fmt: skip


def test_a_step_size_of_zero_asks_for_the_longest_interval_not_for_an_error() -> None:
    assert InverseStepSize(0.3).next_interval(at(0, 0.0)) == LONGEST
    assert QuadraticSync(0.3).next_interval(at(0, 0.0)) == LONGEST
    assert QuadraticSync(0.3).next_interval(at(0, 1e-300)) == LONGEST


def test_a_warm_up_is_no_reason_to_stay_apart() -> None:
    """A rate that rises from 0 would ask for an endless first interval."""
    rates = [0.1 * min(t / 10, 1.0) for t in range(30)]
    assert InverseStepSize(0.4, warm_up=10).plan(30, rates) == [1] * 10 + [4] * 5
    assert QuadraticSync(0.2, base=3, warm_up=10).plan(30, rates) == [3, 3, 3, 1] + [4] * 5
    assert QuadraticSync(0.2, base=3).plan(30, rates) == [30]


def test_post_local_waits_for_the_first_decay_through_a_warm_up() -> None:
    rates = [0.1, 0.2, 0.3, 0.3 * (1 - 1e-15), 0.3, 0.03, 0.03, 0.03, 0.3]
    assert PostLocal(2).plan(9, rates) == [1, 1, 1, 1, 1, 2, 2]
    assert PostLocal(4, switch_step=3).plan(9, rates) == [1, 1, 1, 4, 2]


def test_post_local_resumes_from_its_state() -> None:
    schedule = PostLocal(8)
    assert isinstance(schedule, StatefulSchedule)
    for eta in (0.3, 0.03):
        schedule.next_interval(at(0, eta))
    resumed = PostLocal(8)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed == schedule
    assert resumed.next_interval(at(9, 0.03)) == 8
    assert PostLocal(8).next_interval(at(9, 0.03)) == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (ConstantInterval, {"interval": 0}, "whole number >= 1"),
        (ConstantInterval, {"interval": 2.5}, "whole number >= 1"),
        (PowerInterval, {"scale": -1.0}, "scale=-1.0"),
        (PowerInterval, {"exponent": 1.0}, "double with every round"),
        (PowerInterval, {"exponent": -0.1, "by": "round"}, "exponent=-0.1"),
        (PowerInterval, {"by": "phase"}, "'step' or 'round'"),
        (InverseStepSize, {"budget": math.inf}, "budget=inf"),
        (QuadraticSync, {"alpha": 0.0}, "alpha=0.0"),
        (QuadraticSync, {"alpha": 1.0, "base": 0}, "base=0"),
        (PostLocal, {"interval": True}, "interval=True"),
        (QuadraticSync, {"alpha": 1.0, "warm_up": -1}, "warm_up=-1; .* >= 0"),
        (InverseStepSize, {"budget": 1.0, "warm_up": 2.5}, "warm_up=2.5"),
        (PostLocal, {"switch_step": -1}, "switch_step=-1"),
        (PostLocal, {"switch_step": 2.5}, "switch_step=2.5; .* or None"),
    ],
)
def test_bad_arguments_are_refused(kind: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        kind(**arguments)


def test_a_learning_rate_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="learning rate is nan"):
        QuadraticSync(0.3).next_interval(at(0, math.nan))
    with pytest.raises(ConfigurationError, match="PostLocal with a switch_step"):
        PostLocal(4).next_interval(at(0, math.nan))
    with pytest.raises(ConfigurationError, match="3 learning rates for 5 steps"):
        ConstantInterval().plan(5, [0.1, 0.1, 0.1])
    with pytest.raises(ConfigurationError, match="total_steps=-1"):
        ConstantInterval().plan(-1, 0.1)


class _Reader:
    """A policy that keeps every interval, and notes the rates that it was shown."""

    observations = OBSERVATIONS
    actions: Mapping[str, tuple[float | int | str, ...]] = {
        "interval": INTERVAL_CHOICES, "local_batch": BATCH_CHOICES,
    }  # fmt: skip

    def __init__(self) -> None:
        self.seen: list[float] = []

    def initial(self, n_runs: int = 1) -> Any:
        return Memory(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))

    def act(self, observation: Any, state: Any = None) -> Any:
        assert np.isfinite(observation).all()
        self.seen.append(float(observation[0, OBSERVATIONS.index("log_rate")]))
        return np.array([[2, 1]]), state


def _shown(rates: Sequence[float]) -> list[float]:
    reader = _Reader()
    schedule = LearnedInterval(reader, 320, 0.01)
    step = round_ = 0
    while step < 320:
        nan = math.nan if not round_ else 0.1
        step += schedule.next_interval(SyncState(step, round_, rates[step], nan, nan, 4))
        round_ += 1
    return reader.seen


@pytest.mark.parametrize("first", [0.0, 1e-8], ids=["from 0", "from almost 0"])
def test_a_warm_up_is_to_a_policy_as_a_constant_rate(first: float) -> None:
    falling = [0.4 / math.sqrt(max(1.0, t / 40)) for t in range(320)]
    warmed = [max(first, 0.4 * t / 40) if t < 40 else falling[t] for t in range(320)]
    assert _shown(falling)[4] == 0.0  # at step 40
    assert _shown(warmed) == _shown(falling)
    assert _shown([0.0] * 320) == [0.0] * len(_shown([0.0] * 320))


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
def test_a_policy_is_shown_no_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="learning rate is"):
        LearnedInterval(_Reader(), 320, 0.01).next_interval(at(0, rate))


# ---------------------------------------------------------------------------------- simulator


def twin(
    problem: LogisticRegression, plan: Sequence[int], eta: Any, steps: int, workers: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Worker by worker, step by step, in loops: the last mean and the second half's average."""
    rng = np.random.default_rng([seed, 11])
    n, d = problem.minimiser.shape
    w = np.zeros((n, workers, d))
    ends, path = set(np.cumsum(plan).tolist()), []
    for t in range(steps):
        x, y = problem.sample(rng, workers)
        for i in range(n):
            for k in range(workers):
                p = 1.0 / (1.0 + math.exp(-float(x[i, k] @ w[i, k])))
                w[i, k] = w[i, k] - eta(t) * (p - y[i, k]) * x[i, k]
            if t + 1 in ends:
                w[i] = w[i].sum(0) / workers
        path.append(w.sum(1) / workers)
    return path[-1], np.mean(path[steps // 2 :], axis=0)


def test_the_simulator_agrees_with_a_loop_over_workers() -> None:
    problem = LogisticRegression.draw(np.random.default_rng(5), 2, 4)
    schedules = [ConstantInterval(3), PowerInterval(), ConstantInterval(60)]
    eta = inverse_sqrt(2.0)
    found = simulate_local_sgd(problem, schedules, eta, steps=60, n_workers=3, seed=9)
    for arm, schedule in enumerate(schedules):
        plan = schedule.plan(60, [eta(t) for t in range(60)])
        assert found.intervals[0][arm] == tuple(plan)
        assert found.rounds[1, arm, -1] == len(plan)
        last, averaged = twin(problem, plan, eta, 60, 3, 9)
        np.testing.assert_allclose(found.last[:, arm, -1], problem.excess(last[:, None])[:, 0])
        np.testing.assert_allclose(
            found.averaged[:, arm, -1], problem.excess(averaged[:, None])[:, 0]
        )


def test_on_a_quadratic_the_mean_iterate_does_not_depend_on_the_schedule() -> None:
    problem = Quadratic.draw(np.random.default_rng(1), 3)
    schedules = [ConstantInterval(1), ConstantInterval(16), ConstantInterval(300), PowerInterval()]
    found = simulate_local_sgd(problem, schedules, constant(0.5), steps=300, n_workers=4)
    for values in (found.last, found.averaged):
        np.testing.assert_allclose(values, values[:, :1].repeat(4, 1), rtol=1e-9)


def test_more_workers_average_the_noise_away_by_their_number() -> None:
    steady = Quadratic(np.zeros((400, 1)), np.ones((400, 1)))
    losses = {
        p: simulate_local_sgd(
            steady, [ConstantInterval(5)], constant(0.2), steps=60, n_workers=p, n_checkpoints=1
        ).last.mean()
        for p in (1, 8)
    }
    # stationary variance eta / (2 - eta) of SGD, divided by P; standard error 7 %
    assert losses[1] == pytest.approx(0.5 * 0.2 / 1.8, rel=0.25)
    assert losses[1] / losses[8] == pytest.approx(8.0, rel=0.35)


def test_excess_loss_is_the_monte_carlo_mean_and_finer_nodes_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    problem = LogisticRegression.draw(rng, 1, 6, 2.5)
    w = problem.minimiser[:, None] + 0.4 * rng.standard_normal((1, 1, 6))
    x = rng.standard_normal((400_000, 6)) * np.sqrt(problem.spectrum[0])
    u, v = x @ w[0, 0], x @ problem.minimiser[0]
    gaps = np.logaddexp(0, u) - np.logaddexp(0, v) - (u - v) / (1 + np.exp(-v))
    exact = float(problem.excess(w)[0, 0])
    assert exact == pytest.approx(gaps.mean(), abs=4 * gaps.std() / math.sqrt(len(gaps)))
    nodes = np.linspace(-9, 9, 201)
    weights = np.exp(-0.5 * nodes**2)
    monkeypatch.setattr("lhopt.optimizers.local_sgd.simulate.NODES", nodes)
    monkeypatch.setattr("lhopt.optimizers.local_sgd.simulate.NODE_WEIGHTS", weights / weights.sum())
    assert float(problem.excess(w)[0, 0]) == pytest.approx(exact, rel=1e-4)
    assert float(problem.excess(problem.minimiser[:, None])[0, 0]) == pytest.approx(0, abs=1e-15)


def test_drift_and_cosine_are_means_over_workers_and_pairs() -> None:
    rng = np.random.default_rng(3)
    workers, anchor = rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 3))
    drift, cosine = measure_meeting(workers, workers.mean(1), anchor)
    for i in range(2):
        mean = workers[i].mean(0)
        apart = [np.linalg.norm(x - mean) / np.linalg.norm(mean) for x in workers[i]]
        moved = workers[i] - anchor[i]
        pairs = [
            moved[j] @ moved[k] / np.linalg.norm(moved[j]) / np.linalg.norm(moved[k])
            for j in range(5)
            for k in range(j)
        ]
        assert drift[i] == pytest.approx(np.mean(apart))
        assert cosine[i] == pytest.approx(np.mean(pairs))


class Listener:
    """Notes what the simulator tells a schedule."""

    seen: list[SyncState] = []  # noqa: RUF012

    def next_interval(self, state: SyncState) -> int:
        self.seen.append(state)
        return 4


def test_a_schedule_is_told_step_round_rate_and_drift() -> None:
    Listener.seen.clear()
    listener: Schedule = Listener()
    problem = LogisticRegression.draw(np.random.default_rng(0), 1)
    found: Simulation = simulate_local_sgd(
        problem, [listener], inverse_sqrt(1.0), steps=10, n_workers=3
    )
    assert found.intervals == (((4, 4, 2),),)
    first, second, third = Listener.seen
    assert math.isnan(first.drift)
    assert (second.step, second.round, second.learning_rate) == (4, 1, 1 / math.sqrt(5))
    assert (third.step, third.round, third.n_workers) == (8, 2, 3)
    assert second.drift > 0
    assert -0.5 <= second.cosine <= 1


@pytest.mark.parametrize(
    ("change", "says"),
    [({"steps": 0}, "steps=0"), ({"average_from": 1.0}, "average_from"), ({"arms": []}, "0 sched")],
)
def test_a_simulation_that_means_nothing_is_refused(change: dict[str, Any], says: str) -> None:
    problem = Quadratic.draw(np.random.default_rng(0), 1)
    settings: dict[str, Any] = {"steps": 5, **change}
    arms = settings.pop("arms", [ConstantInterval()])
    with pytest.raises(ConfigurationError, match=says):
        simulate_local_sgd(problem, arms, constant(0.1), **settings)


# --------------------------------------------------------------------------------- experiment


def judge(
    found: Communication, figure: Any, *, worse: float, one_shot: float, fewer: float
) -> None:
    loss = found.constant.averaged
    ratios = [loss[name] / loss["H = 1"] for name in RISING]
    figure(
        SYSTEM,
        f"constant step: loss rises with H, one-shot >= {one_shot:g} x H = 1",
        " < ".join(f"{ratio:.3g}" for ratio in ratios),
        bool(np.all(np.diff(ratios) > 0) and ratios[-1] >= one_shot),
    )
    grown = loss["sqrt growth"] / loss["H = 1"]
    figure(
        SYSTEM, f"constant step: sqrt growth >= {worse:g} x H = 1", f"{grown:.3g}", grown >= worse
    )
    loss = found.decaying.averaged
    worst = max(loss, key=lambda name: loss[name])
    figure(
        SYSTEM,
        "decaying step: every schedule <= 1.3 x H = 1",
        f"at most {loss[worst] / loss['H = 1']:.3g} ({worst})",
        loss[worst] <= 1.3 * loss["H = 1"],
    )
    saved = found.decaying.rounds["H = 1"] / found.decaying.rounds["sqrt growth"]
    ratio = loss["sqrt growth"] / loss["H = 1"]
    figure(
        SYSTEM,
        f"decaying step: sqrt growth >= {fewer:g} x fewer rounds at <= 1.1 x the loss",
        f"{saved:.1f} x fewer at {ratio:.3g} x",
        saved >= fewer and ratio <= 1.1,
    )
    for what, losses in (
        ("averaged", found.near_quadratic.averaged),
        ("last", found.near_quadratic.last),
    ):
        apart = max(abs(value / losses["H = 1"] - 1.0) for value in losses.values())
        figure(
            SYSTEM,
            f"near-quadratic: every schedule within 6 % of H = 1 ({what} iterate)",
            f"{100 * apart:.1f} %",
            apart <= 0.06,
        )


def test_growing_intervals_are_licensed_by_a_decaying_step(figure: Any) -> None:
    found = communication(steps=1500, n_problems=4, n_checkpoints=8)
    judge(found, figure, worse=5, one_shot=15, fewer=15)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_growing_intervals_are_licensed_by_a_decaying_step_in_full(
    figure: Any, tmp_path: Path
) -> None:
    found = communication()
    judge(found, figure, worse=30, one_shot=50, fewer=30)
    experiment.draw(found, tmp_path / "full.png")
    assert (tmp_path / "full.png").stat().st_size > 20_000


def test_the_bench_writes_a_picture_and_prints_every_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = communication(steps=60, n_problems=2, n_workers=2, n_checkpoints=5)
    monkeypatch.setattr(experiment, "communication", lambda **_: small)
    printed = experiment.run(tmp_path / "pictures", quick=True)
    assert (tmp_path / "pictures" / "local-sgd.png").read_bytes().startswith(b"\x89PNG")
    for name in experiment.schedules(60):
        assert printed.count(f"  {name} ") == 3
