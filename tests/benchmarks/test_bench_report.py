from __future__ import annotations

import math

import numpy as np
import pytest

from lhopt.benchmarks.arms import ARMS, Row
from lhopt.benchmarks.baseline import BenchFrontier
from lhopt.benchmarks.report import (
    beaten,
    by_task,
    footnote,
    intervals,
    paired,
    permitted,
    summarise,
    table,
    verdicts,
)

#: Loss 1 / budget: the speed of a loss L is 1 / L exactly.
BUDGETS = (0.25, 0.5, 1.0, 2.0, 4.0)


def frontier(task: str, runs: tuple[tuple[float, ...], ...] = ()) -> BenchFrontier:
    return BenchFrontier(
        task=task,
        steps=100,
        budgets=BUDGETS,
        losses=tuple(1.0 / b for b in BUDGETS),
        best_rates=(0.01,) * 5,
        noise=0.01,
        untrained=64.0,
        rates=(0.001, 0.01, 0.1),
        runs=runs,
    )


def row(arm: str, task: str, speed: float, *, seed: int = 0, cpu: float | None = None) -> Row:
    loss = None if math.isinf(speed) else 1.0 / speed
    plain = None if cpu is None else 1.0
    return Row(arm, task, 100, seed, 1, 0.1, loss, loss, cpu, plain, "")


FRONTIERS = {"a": frontier("a"), "b": frontier("b")}


def test_the_mean_is_geometric_over_tasks_of_runs_whatever_their_number() -> None:
    rows = [row("adamw-policy", "a", s) for s in (2.0, 2.0, 2.0)]
    rows += [row("adamw-policy", "b", s) for s in (0.5,)]
    (summary,) = summarise(rows, FRONTIERS, resamples=10)
    assert summary.speed == pytest.approx(1.0)
    assert summary.by_task == pytest.approx({"a": 2.0, "b": 0.5})
    assert summary.worst[0] == "b"
    assert summary.worst[1] == pytest.approx(0.5)


def test_harm_divergence_and_clipping_are_counted() -> None:
    rows = [row("adamw-policy", "a", s) for s in (0.69, 0.71, 1.0, math.inf, 16.0)]
    (summary,) = summarise(rows, {"a": FRONTIERS["a"]}, resamples=10)
    assert summary.harm == pytest.approx(2 / 5)  # 0.69 and the diverged one
    assert summary.diverged == 1
    assert summary.clipped == 2  # the diverged one at 1/8, and 16 at 4
    assert summary.runs == 5


def test_the_interval_has_no_width_where_nothing_varies() -> None:
    losses = {"adamw-policy": {"a": np.full(3, 1.0), "b": np.full(3, 1.0)}}
    low, high = intervals(losses, FRONTIERS, resamples=50)["adamw-policy"]
    assert [low, high] == pytest.approx([1.0, 1.0])


def test_the_interval_is_that_of_drawing_tasks_with_replacement() -> None:
    # four tasks, two of speed 2 and two of 1/2: log2 of the mean is (2 k - 4) / 4, k binomial(4)
    names = "abcd"
    losses = {"adamw-policy": {n: np.full(3, 0.5 if n in "ab" else 2.0) for n in names}}
    low, high = intervals(losses, {n: frontier(n) for n in names}, resamples=2000)["adamw-policy"]
    # P(k = 0) = 1/16 > 2.5%: both ends are the extremes
    assert [low, high] == pytest.approx([0.5, 2.0])


def test_the_interval_knows_the_noise_of_the_runs_and_of_the_baseline() -> None:
    noisy_runs = {"adamw-policy": {"a": np.array([0.5, 1.0, 2.0])}}
    low, high = intervals(noisy_runs, {"a": frontier("a")}, resamples=500)["adamw-policy"]
    assert low < 0.8
    assert high > 1.25
    table_of_runs = tuple((0.7 / b, 1.3 / b) for b in BUDGETS)
    exact_runs = {"adamw-policy": {"a": np.full(3, 1.0)}}
    noisy = {"a": frontier("a", runs=table_of_runs)}
    low, high = intervals(exact_runs, noisy, resamples=500)["adamw-policy"]
    assert low < 0.95
    assert high > 1.05


def test_paired_speeds_are_ratios_to_the_tuned_run_of_the_same_seed() -> None:
    rows = [row("adamw-policy", "a", 1.0, seed=0), row("adamw-policy", "a", 3.0, seed=1)]
    assert math.isnan(paired(rows, rows, FRONTIERS))
    rows += [row("adamw-tuned", "a", 0.5, seed=0), row("adamw-tuned", "a", 1.5, seed=1)]
    assert paired(rows[:2], rows, FRONTIERS) == pytest.approx(2.0, rel=1e-2)


def test_a_task_is_beaten_by_mean_log_loss_and_divergence_loses() -> None:
    ours = {"a": np.array([1.0, 1.0]), "b": np.array([1.0, math.inf])}
    rival = {"a": np.array([1.0, 1.1]), "b": np.array([2.0, 2.0])}
    assert beaten(ours, rival) == pytest.approx(0.5)
    assert math.isnan(beaten(ours, {}))


def test_verdicts_say_reached_or_by_how_much_a_bar_is_missed() -> None:
    rows = [row("adamw-policy", task, 0.8, cpu=1.5) for task in "ab"]
    rows += [row("steerable-policy", task, 1.6) for task in "ab"]
    rows += [row("adamw-cosine", "a", 0.5), row("adamw-cosine", "b", 1.2)]
    summaries = summarise(rows, FRONTIERS, resamples=50)
    lines = verdicts(summaries)
    assert lines[0].startswith("MISSED")
    assert "0.80 (bar: 1.00, missed by 20%)" in lines[0]
    assert "0 of 2 runs diverged" in lines[1]
    assert "50% of tasks (bar: 90%, missed by 40 points)" in lines[2]
    assert "no claim" in lines[3]
    assert lines[4].startswith("reached")
    assert "1.60 (bar: 1.30)" in lines[4]
    assert "faster than the tuned baseline" in lines[7]


def test_faster_is_said_only_with_the_interval_above_one_and_little_harm() -> None:
    rows = [row("adamw-policy", "a", s) for s in (4.0,) * 17 + (0.6,) * 3]
    (summary,) = summarise(rows, {"a": FRONTIERS["a"]}, resamples=200)
    assert summary.low > 1.0
    assert summary.harm == pytest.approx(0.15)
    assert "faster" not in permitted(summary).split("(")[0]


def test_the_table_has_a_line_per_arm_and_its_footnote_names_baseline_and_budget() -> None:
    rows = [row("adamw-policy", task, 1.0, cpu=1.25) for task in "ab"]
    rows += [row("adamw-cosine", task, 0.5) for task in "ab"]
    summaries = summarise(rows, FRONTIERS, resamples=20)
    text = table(summaries)
    assert "AdamW + policy (Tuner)" in text
    assert "x1.25" in text
    assert "100% of tasks" in text
    assert text.count("\n") == 3
    below = footnote(FRONTIERS, summaries)
    assert "best of 13 rates" in below
    assert "cosine to 0" in below
    assert "all optima inside the grid" in below
    assert by_task(summaries).splitlines()[1].split()[-2:] == ["1.00", "1.00"]


def test_arms_have_unique_names() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)
