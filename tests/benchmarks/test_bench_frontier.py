from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.benchmarks import frontier_files as files
from lhopt.benchmarks.finished_runs import Run, curve_steps, train
from lhopt.benchmarks.frontier import (
    HORIZONS,
    PROTOCOL_HORIZONS,
    WIDE_BOUNDS,
    BenchFrontier,
    BenchTask,
    worth_of_trials,
)
from lhopt.benchmarks.tuning import (
    FIVE_BY_SEVEN,
    SCHEDULES,
    Box,
    Protocol,
    Setting,
    choose,
    tune,
)
from lhopt.core.errors import ConfigurationError, FrontierError
from lhopt.core.types import FloatArray
from lhopt.env.frontier import FrontierConfig, measure_frontier
from lhopt.env.pool import TaskSpec
from lhopt.inner_tasks.engine import BatchOrder, initial_params
from lhopt.inner_tasks.registry import get_task

TINY = Protocol(
    horizons=(0.5, 1.0, 2.0),
    seeds=(0, 1),
    n_trials=3,
    max_rounds=1,
    grid=FIVE_BY_SEVEN[-3:],
)
SPEC = TaskSpec("tabular-mlp", 20)


def frontier(
    runs: Sequence[Sequence[float]] | FloatArray,
    trials: Sequence[Sequence[float]] = (),
    horizons: tuple[float, ...] = HORIZONS,
) -> BenchFrontier:
    table = np.asarray(runs, np.float64)
    return BenchFrontier(
        task="made",
        steps=100,
        strength="k24",
        horizons=horizons,
        seeds=tuple(range(table.shape[1])),
        runs=table,
        test_runs=2.0 * table,
        setting={},
        trials=tuple({"setting": {}, "losses": list(row)} for row in trials),
        edge=False,
        rounds=1,
    )


def power(exponent: float, seeds: int = 3) -> BenchFrontier:
    return frontier(np.repeat(np.asarray(HORIZONS)[:, None] ** -exponent, seeds, axis=1))


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.0])
def test_speed_inverts_a_power_law_between_and_on_the_horizons(exponent: float) -> None:
    h = np.array([0.25, 0.3, 0.6, 1.0, 1.2, 1.9, 2.0, 3.3, 4.0])
    found = power(exponent).speed(h**-exponent, bounds=WIDE_BOUNDS)
    np.testing.assert_allclose(found, h, rtol=1e-12)


def test_speed_is_clipped_to_the_protocols_bounds_and_nothing_is_extrapolated() -> None:
    own = power(1.0)
    losses = np.array([1 / 0.1, 1 / 0.26, 1 / 3.0, 1 / 50.0])
    np.testing.assert_allclose(own.speed(losses), [0.25, 0.26, 2.0, 2.0])
    np.testing.assert_allclose(own.speed(losses, bounds=WIDE_BOUNDS), [0.25, 0.26, 3.0, 4.0])
    seven = frontier(own.runs[:7], horizons=PROTOCOL_HORIZONS)
    np.testing.assert_allclose(seven.speed(losses), own.speed(losses))


def test_a_loss_that_is_not_finite_gets_the_lower_bound() -> None:
    np.testing.assert_array_equal(power(1.0).speed(np.array([np.inf, np.nan])), [0.25, 0.25])


def test_the_envelope_is_monotone_and_a_level_is_reached_at_its_start() -> None:
    medians = [4.0, 5.0, 3.0, 3.0, 2.0, 2.5, 1.0, 1.0, 1.5]
    own = frontier([[m] for m in medians])
    np.testing.assert_array_equal(own.losses(), [4, 4, 3, 3, 2, 2, 1, 1, 1])
    np.testing.assert_allclose(
        own.speed(np.array([4.0, 3.0, 2.0, 1.0]), bounds=WIDE_BOUNDS), [0.25, 0.5, 1.0, 2.0]
    )


def test_the_frontier_is_the_median_over_seeds_and_a_diverged_run_counts_as_infinite() -> None:
    runs = np.array([[3.0, 9.0, np.inf], [2.0, np.inf, np.inf], [1.0, 1.0, 7.0]])
    own = frontier(runs, horizons=(0.5, 1.0, 2.0))
    np.testing.assert_array_equal(own.losses(), [9.0, 9.0, 1.0])
    rows = np.array([0, 0, 2])
    np.testing.assert_array_equal(own.losses(rows), [3.0, 2.0, 1.0])
    np.testing.assert_array_equal(own.losses(np.stack([rows, rows])), [[3, 2, 1]] * 2)
    assert own.speed(2.0, rows=rows) == pytest.approx(1.0)


def test_where_the_median_diverged_the_first_finite_horizon_is_what_is_needed() -> None:
    own = frontier([[np.inf], [np.inf], [1.0]], horizons=(0.5, 1.0, 2.0))
    np.testing.assert_array_equal(own.speed(np.array([5.0, 1.0, 0.5])), [2.0, 2.0, 2.0])


def test_speed_on_test_is_read_against_the_frontier_on_test() -> None:
    own = power(1.0)
    assert own.speed(2.0 / 0.7, test=True) == pytest.approx(0.7)


def test_a_misshapen_frontier_is_refused() -> None:
    with pytest.raises(FrontierError, match="shape"):
        frontier([[1.0], [2.0]])
    with pytest.raises(FrontierError, match="ascending"):
        frontier([[2.0], [1.0]], horizons=(1.0, 0.5))


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_worth_of_trials_is_the_mean_over_all_draws(k: int) -> None:
    trials = [[4.0, 2.0], [1.1, 1.5], [np.inf, 0.9], [0.8, np.inf], [2.0, 1.0], [1.5, 3.0]]
    own = frontier(power(1.0).runs, trials)
    logs = []
    for drawn in itertools.combinations(range(6), k):
        for chosen_on, read_on in ((0, 1), (1, 0)):
            best = min(drawn, key=lambda i: trials[i][chosen_on])
            logs.append(np.log(own.speed(trials[best][read_on])))
    assert worth_of_trials(own, k) == pytest.approx(float(np.exp(np.mean(logs))))


def test_worth_of_trials_wants_trials() -> None:
    with pytest.raises(ConfigurationError, match="1 to 2"):
        worth_of_trials(frontier(power(1.0).runs, [[1.0, 1.0], [2.0, 2.0]]), 3)
    with pytest.raises(FrontierError, match="tuning seed"):
        worth_of_trials(power(1.0), 1)


def test_trials_are_drawn_from_the_box_and_again_the_same() -> None:
    box = Box()
    drawn = box.draw(24, 7)
    assert drawn == box.draw(24, 7)
    assert drawn != box.draw(24, 8)
    rates = np.log10([s.learning_rate for s in drawn])
    # a Sobol sequence: 16 points put one in each sixteenth of the range
    cells = np.floor((rates[:16] + 4.0) / 4.0 * 16.0).astype(int)
    assert sorted(cells) == list(range(16))
    for name in ("weight_decay", "beta1", "beta2"):
        assert {getattr(s, name) for s in drawn} == set(getattr(box, name))


def test_a_box_widens_on_the_side_the_winner_lies_on_and_nowhere_else() -> None:
    box, middle = Box(), Setting(0.01, 0.1, 0.9, 0.99)
    assert box.widened(middle) == box
    assert not box.on_edge(middle)
    cases: dict[tuple[str, float], tuple[float, ...]] = {
        ("learning_rate", 0.7): (1e-4, 10.0),
        ("learning_rate", 1.4e-4): (1e-5, 1.0),
        ("weight_decay", 0.3): (0.0, 0.01, 0.1, 0.3, 1.0),
        ("beta1", 0.8): (0.5, 0.7, 0.8, 0.9, 0.95),
        ("beta1", 0.95): (0.8, 0.9, 0.95, 0.98),
        ("beta2", 0.95): (0.8, 0.9, 0.95, 0.99, 0.999),
        ("beta2", 0.999): (0.95, 0.99, 0.999, 0.9999),
    }
    for (name, value), wanted in cases.items():
        change: dict[str, Any] = {name: value}
        wider: dict[str, Any] = {name: pytest.approx(wanted)}
        setting = replace(middle, **change)
        assert box.on_edge(setting)
        assert box.widened(setting) == replace(box, **wider)
    assert not box.on_edge(replace(middle, weight_decay=0.0))
    assert not box.on_edge(replace(middle, learning_rate=0.65))
    assert box.widened(replace(middle, weight_decay=0.3)).widened(
        replace(middle, weight_decay=1.0)
    ).weight_decay == (0.0, 0.01, 0.1, 0.3, 1.0, 3.0)


def test_a_winner_on_a_widened_side_widens_it_once_more_and_then_lies_on_an_edge() -> None:
    middle = Setting(0.01, 0.1, 0.9, 0.99)
    low = replace(middle, beta2=0.95), replace(middle, beta2=0.8), replace(middle, beta2=0.5)
    box = Box().widened(low[0]).widened(low[1])
    assert box.beta2 == (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
    assert box.widened(low[2]) == box
    assert box.on_edge(low[2])


def test_no_momentum_at_all_is_no_edge() -> None:
    middle = Setting(0.01, 0.1, 0.9, 0.99)
    box = Box().widened(replace(middle, beta1=0.8)).widened(replace(middle, beta1=0.5))
    assert box.beta1 == (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    assert not box.on_edge(replace(middle, beta1=0.0))
    assert box.widened(replace(middle, beta1=0.0)) == box


def surface(rate: float, n_trials: int = 24) -> list[list[Setting]]:
    """Rounds that `tune` asked for, on a bowl around these values."""
    asked: list[list[Setting]] = []

    def attempt(settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
        if len(seeds) == 2:  # the finalists come again on other seeds
            asked.append(list(settings))
        bowl = [
            1.0 + np.log10(s.learning_rate / rate) ** 2 + 5.0 * (s.beta1 != 0.9)
            + 5.0 * (s.beta2 != 0.99) + 5.0 * abs(s.weight_decay - 0.01)
            for s in settings
        ]  # fmt: skip
        return np.repeat(np.array(bowl)[:, None], len(seeds), axis=1)

    tuned = tune(attempt, Protocol(n_trials=n_trials))
    assert tuned.trials == tuple(itertools.chain(*asked))
    assert tuned.setting == tuned.trials[int(tuned.losses.mean(axis=1).argmin())]
    assert tuned.rounds == len(asked)
    assert all(len(settings) == n_trials for settings in asked)
    interior = not tuned.edge
    assert interior or tuned.rounds == 3
    return asked


def test_a_winner_inside_the_box_takes_one_round() -> None:
    # of 24 points, none has all of its values inside
    assert len(surface(0.01, n_trials=128)) == 1


def test_a_winner_at_a_high_rate_widens_the_range_by_a_decade() -> None:
    asked = surface(5.0)
    assert len(asked) >= 2
    assert max(s.learning_rate for s in asked[0]) <= 1.0
    assert 1.0 < max(s.learning_rate for s in asked[1]) <= 10.0


def test_three_rounds_are_the_most_and_an_edge_is_said() -> None:
    def attempt(settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
        return np.array([[1.0 / s.learning_rate] * len(seeds) for s in settings])

    tuned = tune(attempt, Protocol())
    assert tuned.rounds == 3
    assert tuned.edge
    assert len(tuned.trials) == 72
    assert tuned.setting.learning_rate > 10.0


def test_a_later_round_never_replaces_a_better_trial() -> None:
    calls = itertools.count()

    def attempt(settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
        later = next(calls) > 0
        return np.array([[10.0 if later else 1.0 / s.learning_rate] for s in settings])

    tuned = tune(attempt, Protocol(tuning_seeds=(100,), final_seeds=()))
    assert tuned.setting in tuned.trials[:24]


def test_a_diverged_trial_never_wins_and_all_diverged_is_an_error() -> None:
    def one(settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
        losses = np.array([[1.0, np.inf], [5.0, 5.0], [6.0, 6.0]])
        return losses[: len(settings)]

    few = Protocol(grid=FIVE_BY_SEVEN[:3], final_seeds=())
    assert choose(one, few).setting == FIVE_BY_SEVEN[1]
    with pytest.raises(FrontierError, match="diverged"):
        choose(lambda s, seeds: np.full((len(s), len(seeds)), np.inf), few)


def test_finalists_are_chosen_among_on_more_seeds() -> None:
    """The luckiest of two seeds is passed over where four more say otherwise."""

    def attempt(settings: Sequence[Setting], seeds: Sequence[int]) -> FloatArray:
        numbers = [FIVE_BY_SEVEN.index(s) for s in settings]
        lucky = seeds == (100, 101)
        return np.array([[0.1 if lucky and n == 3 else 1.0 + n] * len(seeds) for n in numbers])

    tuned = choose(attempt, Protocol(grid=FIVE_BY_SEVEN[:8], finalists=4))
    assert int(np.argmin(tuned.losses.mean(axis=1))) == 3
    assert tuned.setting == FIVE_BY_SEVEN[0]
    run = np.flatnonzero(~np.isnan(tuned.finals).any(axis=1))
    assert run.tolist() == [0, 1, 2, 3]
    assert tuned.finals.shape == (8, 4)


def test_five_rates_times_seven_schedules() -> None:
    assert len(set(FIVE_BY_SEVEN)) == 35
    assert {s.learning_rate for s in FIVE_BY_SEVEN} == {1e-4, 3e-4, 1e-3, 3e-3, 1e-2}
    assert {(s.weight_decay, s.beta1, s.beta2) for s in FIVE_BY_SEVEN} == {(0.01, 0.9, 0.999)}


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("multi-step", [1.0, 1.0, 0.1, 0.01]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("quadratic", [1.0, 0.5625, 0.25, 0.0625]),
        ("exponential", [1.0, 0.1**0.5, 0.1, 0.1**1.5]),
        ("cosine to 0", [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
        ("cosine to 0.1", [1.0, 0.55 + 0.45 * 0.5**0.5, 0.55, 0.55 - 0.45 * 0.5**0.5]),
    ],
)
def test_schedules_at_the_quarters_of_a_run(name: str, at: list[float]) -> None:
    t = np.arange(200.0)[:, None]
    factors = SCHEDULES[name](t, np.array([100.0, 200.0]))
    assert factors.shape == (200, 2)
    np.testing.assert_allclose(factors[[0, 25, 50, 75], 0], at)
    np.testing.assert_allclose(factors[[0, 50, 100, 150], 1], at)


def test_the_stronger_baseline_warms_up_for_a_twentieth_and_decays_to_zero() -> None:
    factors = SCHEDULES["warm-up + cosine to 0"](np.arange(100.0)[:, None], np.array([100.0]))[:, 0]
    np.testing.assert_allclose(factors[:4], [0.2, 0.4, 0.6, 0.8], rtol=0.01)
    assert factors.argmax() == 4
    assert factors[-1] < 1e-3


def test_finished_runs_equal_torchs_own_adamw_whatever_they_share_a_batch_with() -> None:
    task = get_task("tabular-mlp")
    setting = Setting(3e-3, 0.3, 0.8, 0.95, "quadratic")
    others = [Run(Setting(1e-2), 5, 9), Run(Setting(1e-3, schedule="constant"), 3, 40)]
    runs = [others[1], Run(setting, 3, 24), others[0]]
    steps: list[int] = []
    found = train(task, runs, progress=steps.append)
    assert sum(steps) == 9 + 24 + 40
    np.testing.assert_allclose(train(task, runs, max_runs=1), found, rtol=1e-4)

    params = [p.requires_grad_() for p in initial_params(task, 3).values()]
    names = list(initial_params(task, 3))
    optimizer = torch.optim.AdamW(params, lr=1.0, betas=(0.8, 0.95), weight_decay=0.3)
    data = task.arrays("train")
    for step, rows in enumerate(BatchOrder(3, len(data[0]), task.batch_size).take(24)):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / 24.0) ** 2
        optimizer.zero_grad()
        batch = tuple(a[torch.from_numpy(rows)] for a in data)
        task.loss(dict(zip(names, params, strict=True)), batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        own = dict(zip(names, params, strict=True))
        wanted = [float(task.evaluate(own, task.arrays(s))) for s in ("outer_valid", "test")]
    np.testing.assert_allclose(found[1], wanted, rtol=1e-3)


def test_a_run_scored_by_its_best_takes_test_at_the_same_step() -> None:
    task = get_task("tabular-mlp")
    run = Run(Setting(0.3, schedule="constant"), 0, 100)
    last = train(task, [run])[0]
    # the same run, cut at every point of its curve: a constant rate does not know its end
    cuts = [Run(run.setting, 0, int(n)) for n in curve_steps(100)]
    curve = train(task, cuts)
    assert len(curve) == 50
    best = curve[curve[:, 0].argmin()]
    assert best[0] < last[0]
    task.selection = "best"
    np.testing.assert_allclose(train(task, [run])[0], best, rtol=1e-3)


def test_a_diverged_run_has_an_infinite_loss_and_its_neighbours_have_theirs() -> None:
    task = get_task("tabular-mlp")
    good = Run(Setting(1e-3), 0, 30)
    bad = Run(Setting(1e30, schedule="constant"), 0, 30)
    losses = train(task, [bad, good])
    assert np.isinf(losses[0]).all()
    np.testing.assert_allclose(losses[1], train(task, [good])[0], rtol=1e-4)


def test_a_measured_frontier_agrees_with_the_environments(tmp_path: Path) -> None:
    task = get_task("tabular-mlp")
    rate = 0.01
    protocol = replace(
        TINY, seeds=(900_001, 900_002), grid=(Setting(rate, schedule="warm-up + cosine to 0"),)
    )
    pair = files.measure(task, 20, protocol)
    config = FrontierConfig(protocol.horizons, (rate,), protocol.seeds)
    reference = measure_frontier(task, 20, config)
    np.testing.assert_allclose(pair.five_by_seven.runs.mean(axis=1), reference.losses, rtol=1e-4)
    assert len(pair.k24.trials) == 3
    means = [np.mean(trial["losses"]) for trial in pair.k24.trials]
    assert pair.k24.setting == pair.k24.trials[int(np.argmin(means))]["setting"]


def test_a_shipped_file_is_read_back_and_one_of_another_protocol_is_measured_anew(
    tmp_path: Path,
) -> None:
    shipped, said = tmp_path / "shipped", list[str]()

    def get(protocol: Protocol, *, ship: bool = False) -> BenchTask:
        return files.bench_task(
            SPEC, "small", protocol=protocol, ship=ship, shipped=shipped, report=said.append
        )

    first = get(TINY)
    assert said == ["measuring the baselines of tabular-mlp, 20 steps"]
    assert not shipped.exists()
    again = get(TINY, ship=True)  # from the cache, and shipped now
    path = shipped / files.file_name(SPEC)
    assert len(said) == 1
    assert json.loads(path.read_text())["device"] == "cpu"
    np.testing.assert_array_equal(first.k24.runs, again.k24.runs)
    (tmp_path / "cache").rename(tmp_path / "gone")
    third = get(TINY)
    assert len(said) == 1
    assert third.k24.setting == first.k24.setting
    np.testing.assert_array_equal(first.five_by_seven.test_runs, third.five_by_seven.test_runs)

    get(replace(TINY, seeds=(0, 2)))
    assert said[1:] == [
        "measuring the baselines of tabular-mlp, 20 steps: tabular-mlp-20.json was made with "
        "another baseline"
    ]
    path.write_text(path.read_text()[:100])
    with pytest.raises(FrontierError, match="delete it"):
        get(TINY)


def test_divergence_survives_a_file() -> None:
    own = frontier(np.array([[np.inf, 2.0]] * 9), [[np.inf, 1.0]])
    row = json.loads(json.dumps(files.to_json(own), allow_nan=False))
    read = files.from_json(row)
    np.testing.assert_array_equal(read.runs, own.runs)
    assert read.trials[0]["losses"] == [np.inf, 1.0]
    del row["runs"]
    with pytest.raises(FrontierError, match="delete it"):
        files.from_json(row)


def test_every_tier_has_its_protocol_and_names_give_distinct_files() -> None:
    assert files.protocol_of("small").horizons == HORIZONS
    assert files.protocol_of("small").seeds == tuple(range(10))
    assert files.protocol_of("real").horizons == PROTOCOL_HORIZONS
    assert files.protocol_of("real").seeds == tuple(range(5))
    pairs = files.tasks_of("all")
    names = {files.file_name(spec) for spec, _ in pairs}
    assert len(names) == len(pairs)
    assert all("/" not in name and ":" not in name for name in names)
    assert len(files.tasks_of("smoke")) == 3
    with pytest.raises(ConfigurationError, match="tier"):
        files.tasks_of("huge")


def test_tuning_seeds_must_differ_from_the_seeds_that_are_measured() -> None:
    with pytest.raises(ConfigurationError, match="overlap"):
        Protocol(tuning_seeds=(0, 100))
