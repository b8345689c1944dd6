from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lhopt.benchmarks import real
from lhopt.benchmarks.frontier import BenchFrontier
from lhopt.benchmarks.frontier import BenchTask as Task
from lhopt.benchmarks.optimizer_table import OptimizerBench, Row, footnote, summarise, table, train
from lhopt.benchmarks.records import Results
from lhopt.client import Tuner
from lhopt.core.errors import ConfigurationError
from lhopt.env.pool import TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.optimizers.catalogue import get_entry
from lhopt.optimizers.local_sgd import InProcess, LocalSGD
from lhopt.optimizers.local_sgd.schedules import ConstantInterval
from lhopt.policy import bundled
from lhopt.policy.artifact import Policy

torch.set_num_threads(1)


def frontier(name: str) -> BenchFrontier:
    """Losses of a digits classifier that halve with every doubling, one of four seeds worse."""
    horizons = (0.25, 0.5, 1.0, 2.0, 4.0)
    runs = np.outer([1.6, 0.8, 0.4, 0.2, 0.1], [1.0, 1.0, 1.0, 1.1])
    return BenchFrontier(
        name, 48, "k24", horizons, (0, 1, 2, 3), runs, runs, {"learning_rate": 0.01}, (), False, 1
    )


@pytest.fixture(scope="module")
def task() -> Task:
    spec = TaskSpec("digits-mlp", 48)
    inner = get_task(spec.task)
    inner.selection = "last"
    return Task(spec, inner, "small", frontier("digits-mlp"), frontier("digits-mlp"), "last")


def renamed(task: Task, name: str) -> Task:
    inner = copy.copy(task.task)
    inner.name = name
    return replace(task, spec=TaskSpec(name, 48), task=inner)


@pytest.mark.parametrize("name", ["adamw", "steerable-adamw"])
@pytest.mark.parametrize("steered", [False, True])
def test_a_run_is_the_run_of_the_main_bench(task: Task, name: str, steered: bool) -> None:
    entry = get_entry(name)
    optimizer = {"adamw": "torch.optim.AdamW", "steerable-adamw": "lhopt.SteerableAdamW"}[name]
    policy = bundled.for_optimizer(optimizer) if steered else None
    found = train(entry, task.task, task.spec.steps, 3, policy)
    expected = real.train(
        task.task, task.spec.steps, 3, real.recipe(optimizer), tuner=steering(policy, task)
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def steering(policy: Policy | None, task: Task) -> real.MakeTuner | None:
    if policy is None:
        return None
    return lambda optimizer, _: Tuner(optimizer, task.spec.steps, policy=policy)


def test_workers_that_always_meet_are_one_run_with_the_whole_batch(task: Task) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        return LocalSGD(inner, ConstantInterval(1), InProcess(4))

    together = replace(get_entry("local-sgd"), make=make)
    alone = replace(
        get_entry("sgd"), make=lambda model: torch.optim.SGD(model.parameters(), lr=0.1)
    )
    found, expected = (
        train(together, task.task, task.spec.steps, 0, None),
        train(alone, task.task, task.spec.steps, 0, None),
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)


def test_finished_runs_are_read_back_and_every_line_has_both_figures(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [get_entry("adamw"), get_entry("schedule-free")]
    results = Results(tmp_path / "rows.jsonl")
    rows = list(OptimizerBench([task], results, seeds=(0,), optimizers=chosen).run())
    assert [(r.optimizer, bool(r.policy)) for r in rows] == [
        ("adamw", False), ("adamw", True), ("schedule-free", False), ("schedule-free", True),
    ]  # fmt: skip
    monkeypatch.setattr("lhopt.benchmarks.optimizer_table.train", None)
    held = Results(tmp_path / "rows.jsonl")
    again = list(OptimizerBench([task], held, seeds=(0,), optimizers=chosen).run())
    assert again == rows
    lines = summarise(rows, [task])
    assert [line.entry.name for line in lines] == ["adamw", "schedule-free"]
    for line in lines:
        assert line.ratio == pytest.approx(line.steered[0] / line.alone[0])
        assert line.alone[1] <= line.alone[0] * 1.0001
        assert line.alone[2] >= line.alone[0] * 0.9999
    assert "schedule-free" in table(lines)
    clipped = replace(lines[0], alone=(0.25, 0.25, 0.5), steered=(4.0, 2.0, 4.0), runs=2)
    said = [re.split(" {2,}", row) for row in table([lines[0], clipped]).splitlines()[2:]]
    assert [said[0][2], said[0][4]] == ["-", "-"]  # one task, one run
    assert said[1][1:5] == ["< 0.25", "< 0.25 - 0.50", "> 4.00", "2.00 - > 4.00"]


def test_a_task_that_an_optimizer_refuses_is_named_with_the_reason(
    task: Task, tmp_path: Path
) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        raise ConfigurationError("it has no Conv2d.")

    refusing = replace(get_entry("sgd"), make=make)
    row = train(refusing, task.task, task.spec.steps, 0, None)
    assert row.loss is None
    assert row.refused == "it has no Conv2d."
    kept = train(get_entry("sgd"), task.task, task.spec.steps, 0, None)
    steered = train(get_entry("sgd"), task.task, task.spec.steps, 0, bundled.bundled())
    other = replace(row, task="another")
    lines = summarise([kept, steered, other], [task])
    assert lines[0].entry == get_entry("sgd")
    assert "agd" not in footnote([kept], 1, 1)
    assert "but agd from its own" in footnote([replace(kept, optimizer="agd")], 1, 1)
    told = footnote([kept, steered, other, replace(other, optimizer="muon")], 1, 1)
    assert "sgd is not measured on another: it has no Conv2d." in told
    assert "muon is not measured on another" in told  # though it has no line in the table
    assert "sgd+" in table(lines)


def test_cpu_time_is_compared_on_the_tasks_that_both_train(task: Task) -> None:
    policy = bundled.bundled().name

    def rows(name: str, task: str, cpu_ms: float, refused: str = "") -> list[Row]:
        return [Row(name, on_top, task, 0, 1.0, cpu_ms, refused) for on_top in ("", policy)]

    found = [
        *rows("adamw", "small", 2.0), *rows("kfac", "small", 6.0),
        *rows("adamw", "large", 90.0), *rows("kfac", "large", 0.0, "it has no Linear."),
    ]  # fmt: skip
    tasks = [renamed(task, "small"), renamed(task, "large")]
    by_name = {line.entry.name: line for line in summarise(found, tasks)}
    assert by_name["kfac"].cpu == pytest.approx((3.0, 3.0))
    assert by_name["adamw"].cpu == pytest.approx((1.0, 1.0))


def test_a_run_that_diverges_early_costs_no_less_per_step(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((1.0, 1.5))
    monkeypatch.setattr("lhopt.benchmarks.optimizer_table.time.process_time", lambda: next(clock))
    hot = replace(get_entry("sgd"), make=lambda model: torch.optim.SGD(model.parameters(), lr=1e38))
    row = train(hot, task.task, task.spec.steps, 0, None)
    assert row.loss is None
    assert row.cpu_ms == pytest.approx(1e3 * 0.5 / 2)  # it broke at its second step


def test_a_refusal_of_one_run_takes_the_task_out_of_both_kinds(task: Task) -> None:
    policy = bundled.bundled().name
    rows = [
        Row("adamw", on_top, name, 0, loss, 1.0, "not this." if loss is None else "")
        for name, loss_steered in (("a", 1.0), ("b", None))
        for on_top, loss in (("", 1.0), (policy, loss_steered))
    ]
    (line,) = summarise(rows, [renamed(task, "a"), renamed(task, "b")])
    assert line.runs == 1
    assert line.refused == {"b": "not this."}


def test_speeds_are_read_on_the_tuned_baselines_frontier(task: Task) -> None:
    policy = bundled.bundled().name
    rows = [
        Row("adamw", "", "digits-mlp", seed, 0.8, 1.0) for seed in range(3)
    ] + [Row("adamw", policy, "digits-mlp", seed, 0.2, 1.0) for seed in range(3)]  # fmt: skip
    (line,) = summarise(rows, [task])
    assert line.alone[0] == pytest.approx(0.5)
    assert line.steered[0] == pytest.approx(2.0)
    assert line.ratio == pytest.approx(4.0)
    assert line.better == 1.0


def test_a_task_that_overfits_is_scored_by_its_best_loss_on_the_way(task: Task) -> None:
    best = copy.copy(task.task)
    best.selection = "best"
    hot = replace(get_entry("sgd"), make=lambda m: torch.optim.SGD(m.parameters(), lr=0.9))
    last = train(hot, task.task, task.spec.steps, 0, None)
    row = train(hot, best, task.spec.steps, 0, None)
    curve = real.train(
        best, task.spec.steps, 0,
        real.Recipe(make=lambda _task, weights, _steps: torch.optim.SGD(weights.values(), lr=0.9)),
    ).curve  # fmt: skip
    assert row.loss == pytest.approx(curve.min())
    assert last.loss == pytest.approx(curve[-1])
    assert row.loss < last.loss  # type: ignore[operator]
