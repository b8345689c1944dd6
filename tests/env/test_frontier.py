from __future__ import annotations

import gzip
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhopt.core.errors import ConfigurationError, FrontierError
from lhopt.env import measured
from lhopt.env import pool as pools
from lhopt.env.frontier import (
    SPEED_BOUNDS,
    UNTRAINED_BUDGET,
    Frontier,
    FrontierConfig,
    cache_key,
    cosine,
    get_frontier,
    measure_frontier,
)
from lhopt.env.pool import TaskSpec, build_pool, seconds_per_run_step
from lhopt.env.workers import each
from lhopt.inner_tasks import get_task
from lhopt.optimizers.update import ADAMW

TASK = "noisy-quadratic/3"
TINY = FrontierConfig(budgets=(0.5, 1.0, 2.0), rates=(1e-2, 3e-2, 1e-1, 1.0), seeds=(1, 2))


def test_a_frontiers_own_losses_have_their_own_budgets(frontier: Frontier) -> None:
    np.testing.assert_allclose(
        frontier.log2_speed(np.array([2.0, 1.0, 0.5])), [-1, 0, 1], atol=1e-8
    )
    # halfway between on both logarithms
    assert float(frontier.log2_speed(2**0.5)) == pytest.approx(-0.5)
    # the last slope goes on: 0.3 is log2(0.5 / 0.3) octaves further
    assert float(frontier.log2_speed(0.3)) == pytest.approx(1 + np.log2(0.5 / 0.3))


def test_speed_falls_with_the_loss_and_stays_inside_its_bounds(frontier: Frontier) -> None:
    losses = np.geomspace(1e-15, 1e15, 301)
    speed = frontier.log2_speed(losses)
    assert (np.diff(speed) <= 0).all()
    assert speed[0] == SPEED_BOUNDS[1]
    assert speed[-1] == SPEED_BOUNDS[0]
    bad = frontier.log2_speed(np.array([np.inf, np.nan, -np.inf]))
    assert (bad == SPEED_BOUNDS[0]).all()
    assert np.isfinite(frontier.log2_speed(np.array([0.0, -1.0, 1e308]))).all()


def test_wider_bounds_tell_bad_from_worse(frontier: Frontier) -> None:
    worse = np.array([frontier.losses[0], frontier.untrained, 2.0 * frontier.untrained])
    speed = frontier.log2_speed(worse, (-9.0, 1.5))
    octaves = np.log2(frontier.budgets[0] / UNTRAINED_BUDGET)
    slope = octaves / np.log(frontier.untrained / frontier.losses[0])
    untrained = np.log2(UNTRAINED_BUDGET)
    assert speed == pytest.approx([-1.0, untrained, untrained - slope * np.log(2.0)], abs=1e-6)
    ends = frontier.log2_speed(np.array([1e-9, 1e99, np.nan]), (-9.0, 1.5))
    assert ends.tolist() == [1.5, -9.0, -9.0]


def test_a_worse_loss_at_a_larger_budget_does_not_bend_the_frontier(frontier: Frontier) -> None:
    bent = replace(frontier, losses=(2.0, 1.0, 1.3))
    speed = bent.log2_speed(np.geomspace(0.2, 4.0, 99))
    assert (np.diff(speed) <= 0).all()
    assert float(bent.log2_speed(1.0)) == pytest.approx(0.0, abs=1e-6)
    flat = replace(frontier, losses=(1.0, 1.0, 1.0), untrained=1.0)
    assert np.isfinite(flat.log2_speed(np.array([0.5, 1.0, 2.0]))).all()
    assert flat.resolution == np.inf


def test_resolution_is_noise_over_slope(frontier: Frontier) -> None:
    # losses halve per octave, so the slope is log 2 and 0.1 nats of noise are 0.1 / log 2 octaves
    assert frontier.resolution == pytest.approx(0.1 / np.log(2.0))
    assert not frontier.edge
    assert replace(frontier, best_rates=(0.1, 1.0, 0.1)).edge


def test_a_blunt_frontier_is_read_no_finer_than_its_noise_allows(frontier: Frontier) -> None:
    assert frontier.sharpened(0.4).losses == pytest.approx(frontier.losses)  # sharp enough
    blunt = replace(frontier, losses=(1.001, 1.0, 1.2), noise=0.1)
    read = blunt.sharpened(0.4)
    assert read.resolution == pytest.approx(0.4)
    # a standard deviation of noise is 0.4 octaves either way, four of them an octave and a half
    losses = np.exp(np.array([0.1, 0.0, -0.1, 0.4]))
    assert read.log2_speed(losses[:3]) == pytest.approx([-0.4, 0.0, 0.4], abs=1e-6)
    assert -2.0 < float(read.log2_speed(losses[3])) < -1.0
    assert float(blunt.log2_speed(losses[0])) < -1.0
    # one that falls before budget 1 and not after it keeps its fall
    half = replace(frontier, losses=(2.0, 1.0, 1.0), noise=0.1).sharpened(0.4)
    assert half.losses == pytest.approx((2.0, 1.0, np.exp(-0.25)))


def test_a_noise_of_two_runs_leans_on_its_family(
    frontier: Frontier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {**frontier.to_json(), "task": "tabular-mlp/1"}
    noises = (0.01, 0.2, 0.02, 0.03, 9.0)
    rows: dict[str, Any] = {str(i): {**row, "noise": v} for i, v in enumerate(noises)}
    rows["other"] = {**row, "task": "parity-rnn/1", "noise": 5.0}
    rows["experts"] = [1, 2]
    archive = tmp_path / "measured.json.gz"
    archive.write_bytes(gzip.compress(json.dumps(rows).encode()))
    monkeypatch.setattr(measured, "ARCHIVE", archive)
    measured.family_noise.cache_clear()
    try:
        # of a normal deviate half are beyond 0.6745 standard deviations
        typical = measured.family_noise("tabular-mlp")
        assert typical == pytest.approx(0.03 / 0.6745, rel=1e-4)
        assert measured.family_noise("parity-rnn") is None  # one frontier tells nothing
        lucky = replace(frontier, task="tabular-mlp/7", noise=0.0)
        assert typical is not None
        assert lucky.steadied().noise == pytest.approx(typical * np.sqrt(0.8))
        assert lucky.steadied().losses == frontier.losses
        unknown = replace(frontier, task="parity-rnn/7", noise=0.0)
        assert unknown.steadied() == unknown
    finally:
        measured.family_noise.cache_clear()


def test_two_runs_of_a_normal_deviate_have_its_noise() -> None:
    pairs = np.random.default_rng(0).normal(0.0, 0.3, (4000, 2)).std(axis=1, ddof=1)
    assert np.median(pairs) / measured.NORMAL_MEDIAN == pytest.approx(0.3, rel=0.05)


def test_every_frontier_of_a_pool_is_read_no_finer_than_its_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    spec = TaskSpec(TASK, 20)
    made = replace(measure_frontier(get_task(TASK), 20, TINY), best_rates=(0.1, 0.1, 0.1))
    # sharp where it is judged, flat between the last two budgets
    flat = replace(made, losses=(2.0, 1.0, 0.9999), noise=0.05, rates=(0.01, 0.1, 1.0))
    monkeypatch.setattr(pools, "get_frontier", lambda *args: flat)
    assert flat.resolution < 0.4
    (entry,) = build_pool([spec], config=TINY).entries
    steady = flat.steadied()
    a_little_lower = np.exp(-steady.noise)
    assert float(flat.log2_speed(a_little_lower)) > 1.0
    assert float(entry.frontier.log2_speed(a_little_lower)) == pytest.approx(0.4)


def test_the_baseline_rate_warms_up_and_falls_to_nothing() -> None:
    rates = cosine(np.array([1.0, 2.0]), np.array([100, 50]), 0, 100)
    assert rates.shape == (100, 2)
    np.testing.assert_allclose(rates[0, 0], 1 / 5)  # 5% of 100 steps are 5
    np.testing.assert_allclose(rates[50, 0], 0.5)
    np.testing.assert_allclose(rates[25, 1], 1.0)
    assert rates[99, 0] < 1e-3
    assert (rates[50:, 1] < 1e-12).all()
    pieces = [cosine(np.array([1.0, 2.0]), np.array([100, 50]), a, a + 25) for a in (0, 25, 50, 75)]
    np.testing.assert_array_equal(np.concatenate(pieces), rates)


def test_a_measured_frontier_falls_with_the_budget() -> None:
    frontier = measure_frontier(get_task(TASK), 30, TINY)
    assert frontier.losses[0] > frontier.losses[2]
    assert frontier.untrained > frontier.losses[0]
    assert [len(row) for row in frontier.grid] == [4, 4, 4]
    assert frontier.noise > 0
    for losses, best in zip(frontier.grid, frontier.best_rates, strict=True):
        finite = [loss for loss in losses if loss is not None]
        assert TINY.rates[losses.index(min(finite))] == best
    assert float(frontier.log2_speed(frontier.losses[1])) == pytest.approx(0.0, abs=1e-6)


def test_a_window_finds_the_optima_of_the_whole_grid_with_fewer_runs() -> None:
    rates = tuple(float(10.0 ** (k / 2)) for k in range(-8, 1))
    whole = FrontierConfig(budgets=(0.25, 0.5, 1.0, 2.0), rates=rates, seeds=(1, 2))
    full = measure_frontier(get_task(TASK), 40, whole)
    narrow = measure_frontier(get_task(TASK), 40, replace(whole, window=1))
    means = [[np.inf if v is None else v for v in row] for row in full.grid]
    for row, losses in zip(narrow.grid, means, strict=True):
        tried = [(v, loss) for v, loss in zip(row, losses, strict=True) if v is not None]
        pairs = np.array(tried, np.float64)
        np.testing.assert_allclose(pairs[:, 0], pairs[:, 1], rtol=1e-4)
    for b, (row, best) in enumerate(zip(narrow.grid, narrow.best_rates, strict=True)):
        i = rates.index(best)
        beside = [j for j in (i - 1, i + 1) if 0 <= j < len(rates)]
        # worse neighbours were seen, by a run or by its divergence
        assert all(means[b][j] >= means[b][i] * (1 - 1e-4) for j in beside)
        assert b == 0 or sum(v is not None for v in row) < len(rates)
    assert full.losses == pytest.approx(narrow.losses, rel=1e-4)


def test_a_tuned_decay_is_never_worse_and_named() -> None:
    task, wide = get_task(TASK), replace(TINY, decays=(0.01, 0.3, 3.0))
    plain, tuned = measure_frontier(task, 30, TINY), measure_frontier(task, 30, wide)
    assert all(b <= a * (1 + 1e-6) for a, b in zip(plain.losses, tuned.losses, strict=True))
    assert len(tuned.best_decays) == len(tuned.budgets)
    for b, decay in enumerate(tuned.best_decays):
        alone = measure_frontier(task, 30, replace(TINY, decays=(decay,)))
        assert alone.losses[b] == pytest.approx(tuned.losses[b], rel=1e-4)
        assert alone.best_rates[b] == tuned.best_rates[b]
    narrow = measure_frontier(task, 30, replace(wide, window=1))
    assert narrow.losses == pytest.approx(tuned.losses, rel=1e-4)
    assert narrow.best_decays == tuned.best_decays
    assert Frontier.from_json(json.loads(json.dumps(tuned.to_json()))) == tuned


def test_the_key_of_one_usual_decay_is_what_it_was_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = get_task(TASK)
    before = {name: value for name, value in asdict(TINY).items() if name != "decays"}
    monkeypatch.setattr("lhopt.env.frontier.asdict", lambda config: {**before, "decays": ()})
    known = cache_key(task, 20, TINY)
    monkeypatch.undo()
    assert cache_key(task, 20, TINY) == known
    assert cache_key(task, 20, replace(TINY, decays=(0.01, 0.1))) != cache_key(task, 20, TINY)


def test_a_window_without_a_neighbour_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="window is 0"):
        FrontierConfig(window=0)


def test_a_point_equals_that_baseline_run_alone() -> None:
    from lhopt.inner_tasks.engine import BatchedRuns, Settings

    frontier = measure_frontier(get_task(TASK), 20, TINY)
    rate, total = np.full(2, 3e-2), np.full(2, 40)
    runs = BatchedRuns(get_task(TASK), [1, 2], Settings(learning_rate=rate))
    runs.advance(40, learning_rates=cosine(rate, total, 0, 40))
    assert frontier.grid[2][1] == pytest.approx(float(runs.evaluate().mean()), rel=1e-4)


def test_rates_that_all_diverge_are_an_error() -> None:
    with pytest.raises(FrontierError, match="Every rate"):
        measure_frontier(get_task(TASK), 10, replace(TINY, rates=(1e90,), seeds=(1,)))


def test_the_cache_gives_back_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    task = get_task(TASK)
    first = get_frontier(task, 20, TINY)
    monkeypatch.setattr("lhopt.env.frontier.measure_frontier", None)
    assert get_frontier(task, 20, TINY) == first
    keys = {
        cache_key(task, 20, TINY),
        cache_key(task, 21, TINY),
        cache_key(get_task("noisy-quadratic/4"), 20, TINY),
        cache_key(task, 20, replace(TINY, seeds=(3,))),
    }
    assert len(keys) == 4
    # a shipped folder is read first
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    row = {**first.to_json(), "noise": 0.5}
    (shipped / f"{cache_key(task, 20, TINY)}.json").write_text(json.dumps(row))
    assert get_frontier(task, 20, TINY, folders=[shipped]).noise == 0.5


def test_the_key_of_a_task_on_other_data_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task(TASK)
    ours = cache_key(task, 20, TINY)
    held_out = task.arrays("outer_valid")
    for other in (
        tuple(array + 1 for array in held_out),
        tuple(array[None] for array in held_out),
        tuple(array.double() for array in held_out),
    ):
        monkeypatch.setattr(task, "arrays", lambda split, other=other: other)
        assert cache_key(task, 20, TINY) != ours
    assert cache_key(get_task(TASK), 20, TINY) == ours


@pytest.mark.parametrize("text", ['{"task": "x', "{}", "[]"])
def test_a_broken_cache_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with pytest.raises(FrontierError, match="delete it"):
        Frontier.from_json({"task": "x"})
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    task = get_task(TASK)
    path = tmp_path / "frontiers" / f"{cache_key(task, 20, TINY)}.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(FrontierError, match=f"{path.name} holds no frontier.*delete it"):
        get_frontier(task, 20, TINY)


def test_a_pool_leaves_out_blunt_tasks_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    specs = [TaskSpec(TASK, 20), TaskSpec("noisy-quadratic/4", 20)]
    frontiers = [measure_frontier(get_task(s.task), s.steps, TINY) for s in specs]
    sharp = [f.resolution <= 10 and not f.edge for f in frontiers]
    assert any(sharp)
    pool = build_pool(specs, config=TINY, max_resolution=10)
    assert [e.spec for e in pool.entries] == [s for s, ok in zip(specs, sharp, strict=True) if ok]
    caplog.set_level("INFO", "lhopt")
    seen: list[int] = []
    with pytest.raises(ConfigurationError, match=r"No task is left of 2.*noisy-quadratic"):
        build_pool(specs, config=TINY, max_resolution=0, progress=lambda i, n, name: seen.append(i))
    assert seen == [1, 2]
    assert caplog.text.count("left out") == 2
    for none in ({"processes": 0}, {"cost_processes": 0}):
        with pytest.raises(ConfigurationError, match="processes is 0; at least 1"):
            build_pool(specs, config=TINY, **none)  # type: ignore[arg-type]
    kept = build_pool(specs, config=TINY, max_resolution=1e-3, keep_blunt=True)
    inside = [s for s, f in zip(specs, frontiers, strict=True) if not f.edge]
    assert [e.spec for e in kept.entries] == inside
    assert all(e.frontier.resolution <= 1e-3 * (1 + 1e-6) for e in kept.entries)


@pytest.mark.parametrize("processes", [1, 2, 64])
def test_what_tasks_cost_is_measured_by_so_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    asked: list[int] = []

    def noted(work: Any, jobs: Any, processes: int) -> Any:
        asked.append(processes)
        return each(work, jobs, min(processes, 2))

    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    monkeypatch.setattr("lhopt.env.pool.each", noted)
    specs = [TaskSpec(f"noisy-quadratic/{i}", 20) for i in range(8)]
    told: list[str] = []
    pool = build_pool(
        specs, config=TINY, max_resolution=10, cost_processes=processes,
        cost=partial(seconds_per_run_step, rule=ADAMW, n_runs=4),
        progress=lambda i, n, name: told.append(name),
    )  # fmt: skip
    assert len(pool) > 1
    assert asked == [1, min(processes, len(pool))]  # frontiers, then costs
    assert len({e.cost for e in pool.entries}) > 1
    assert all(0.0 < e.cost < 1.0 for e in pool.entries)
    assert told[len(specs) :] == [f"cost of {e.spec.task}" for e in pool.entries]


def test_a_pools_weights_are_those_of_its_families(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path))
    specs = [TaskSpec(name, 20) for name in (TASK, "teacher-regression/1")]
    plain, turned = (
        build_pool(specs, config=TINY, keep_blunt=True, family_weights=weights).weights
        for weights in (None, {"teacher-regression": 3.0})
    )
    assert len(plain) == 2
    assert turned[1] / turned[0] == pytest.approx(3.0 * plain[1] / plain[0])
