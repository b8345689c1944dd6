from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lhopt.benchmarks.bootstrap import (
    READINGS,
    Reading,
    draw_seeds,
    envelopes,
    estimate,
    log_speeds,
    resample,
    tabulate,
    task_means,
)
from lhopt.benchmarks.frontier import HORIZONS, BenchFrontier, BenchTask, Strength
from lhopt.benchmarks.records import Row
from lhopt.core.errors import ConfigurationError
from lhopt.core.types import FloatArray
from lhopt.env.pool import TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.policy.intervals import levels

INNER = get_task("noisy-quadratic")
STEPS = READINGS[0]


def frontier(task: str, runs: FloatArray, strength: Strength = "k24") -> BenchFrontier:
    return BenchFrontier(
        task=task,
        steps=100,
        strength=strength,
        horizons=HORIZONS,
        seeds=tuple(range(runs.shape[1])),
        runs=runs,
        test_runs=2.0 * runs,
        setting={},
        trials=(),
        edge=False,
        rounds=1,
    )


def bench_task(name: str, runs: FloatArray) -> BenchTask:
    k24, weak = frontier(name, runs), frontier(name, 1.5 * runs, "5x7")
    return BenchTask(TaskSpec(name, 100), INNER, "small", k24, weak, "last")


def exact(n_seeds: int = 4) -> FloatArray:
    """Loss 1 / horizon: the speed of a loss L is 1 / L."""
    return np.repeat(1.0 / np.array(HORIZONS)[:, None], n_seeds, axis=1)


def row(
    arm: str,
    task: str,
    loss: float,
    *,
    seed: int = 0,
    offset: int | None = None,
    cost: float | None = None,
) -> Row:
    finite = loss if math.isfinite(loss) else None
    test = None if finite is None else 2.0 * finite
    plain = None if cost is None else 1.0
    return Row(arm, "small", task, 100, seed, offset, 0.1, finite, test, (), cost, plain, "")


def noisy(rng: np.random.Generator, n_seeds: int) -> FloatArray:
    runs = exact(n_seeds) * np.exp(0.3 * rng.normal(size=(len(HORIZONS), n_seeds)))
    runs[rng.random(runs.shape) < 0.15] = np.inf
    return runs


def test_every_draw_reads_the_speed_that_its_frontier_reads() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([np.exp(rng.normal(size=30)), [1.0, np.inf, np.nan, 1e-30, 1e30]])
    for n_seeds in (2, 5, 10):
        baseline = frontier("a", noisy(rng, n_seeds))
        drawn = rng.integers(0, n_seeds, (40, n_seeds))
        envelope = envelopes(baseline.runs, drawn)
        found = np.exp(log_speeds(envelope, np.array(HORIZONS), losses))
        for i, rows in enumerate(drawn):
            np.testing.assert_allclose(envelope[i], baseline.losses(rows))
            expected = baseline.speed(losses, bounds=(0.25, 4.0), rows=rows)
            np.testing.assert_allclose(found[i], expected, rtol=1e-9)


def test_a_seed_that_the_baseline_does_not_have_changes_no_median() -> None:
    runs = np.concatenate([exact(3) * [1.0, 1.2, 1.7], np.full((len(HORIZONS), 1), np.nan)], axis=1)
    found = envelopes(runs, np.array([[0, 1, 2, 3], [0, 3, 3, 0], [0, 1, 3, 3]]))
    np.testing.assert_allclose(found[:, 4], [1.2, 1.0, 1.1])


def reference(
    tasks: Sequence[BenchTask],
    rows: Sequence[Row],
    arms: Sequence[str],
    reading: Reading,
    pair: tuple[str, str],
    resamples: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """The bootstrap written plainly, run by run; only the draws are taken from the module."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, len(tasks), (resamples, len(tasks)))
    means: list[dict[str, list[float]]] = [{} for _ in range(resamples)]
    for t, task in enumerate(tasks):
        own = [r for r in rows if r.task == task.spec.task]
        table = tabulate(own, task, arms)
        which = np.nonzero(slots == t)[0]
        baseline = task.k24 if reading.strength == "k24" else task.five_by_seven
        for b, drawn in zip(which, draw_seeds(table, len(which), rng), strict=True):
            seeds = [table.seeds[column] for column in drawn]
            columns = np.array([s for s in seeds if s in baseline.seeds])

            def speed(arm: str, seed: int, own=own, columns=columns, baseline=baseline):  # type: ignore[no-untyped-def]
                out = []
                for r in own:
                    if (r.arm, r.seed) == (arm, seed):
                        loss = r.test_loss if reading.test else r.loss
                        found = baseline.speed(
                            math.inf if loss is None else loss,
                            bounds=reading.bounds,
                            rows=columns,
                            test=reading.test,
                        )
                        out.append(math.log(found) - (math.log(r.cpu_ms) if reading.cpu else 0.0))
                return np.mean(out) if out else None

            for arm in arms:
                values = [v for v in (speed(arm, s) for s in seeds) if v is not None]
                if values:
                    means[b].setdefault(arm, []).append(float(np.mean(values)))
            both = [(speed(pair[0], s), speed(pair[1], s)) for s in seeds]
            gaps = [x - y for x, y in both if x is not None and y is not None]
            if gaps:
                means[b].setdefault("pair", []).append(float(np.mean(gaps)))
    table_of = np.array([[np.mean(m.get(a, [np.nan])) for a in (*arms, "pair")] for m in means])
    return table_of[:, :-1], table_of[:, -1]


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
def test_the_bootstrap_is_that_of_a_plain_loop(reading: Reading) -> None:
    rng = np.random.default_rng(1)
    tasks = [bench_task(name, noisy(rng, 5)) for name in "abc"]
    rows = []
    for name in "abc":
        for seed in range(6):  # the baseline has no sixth
            loss = float(np.exp(0.6 * rng.normal()))
            if name != "c":
                rows += [
                    row("steered", name, loss * f, seed=seed, offset=o, cost=1.5)
                    for o, f in ((-1, 1.1), (1, 0.8))
                ]
            rows.append(row("all", name, 1.3 * loss, seed=seed, cost=2.0))
            if seed < 2:
                rows.append(row("few", name, 0.7 if seed else math.inf, seed=seed, cost=1.2))
    arms, pair = ("steered", "all", "few"), ("few", "steered")
    tables = [tabulate([r for r in rows if r.task == t.spec.task], t, arms) for t in tasks]
    found = resample(tables, [reading], [pair], resamples=30, seed=3)[reading.name]
    expected, gaps = reference(tasks, rows, arms, reading, pair, 30, 3)
    np.testing.assert_allclose(found.arms, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.pairs[:, 0], gaps, rtol=1e-9, atol=1e-12)


def test_readings_share_their_draws() -> None:
    rng = np.random.default_rng(2)
    tasks = [bench_task(name, noisy(rng, 5)) for name in "ab"]
    rows = [row("all", n, float(np.exp(rng.normal())), seed=s) for n in "ab" for s in range(5)]
    tables = [tabulate([r for r in rows if r.task == t.spec.task], t, ("all",)) for t in tasks]
    together = resample(tables, READINGS, [], resamples=50, seed=0)
    for reading in READINGS:
        alone = resample(tables, [reading], [], resamples=50, seed=0)[reading.name]
        np.testing.assert_array_equal(alone.arms, together[reading.name].arms)


def test_no_draw_leaves_an_arm_without_a_run() -> None:
    task = bench_task("a", exact(10))
    rows = [row("all", "a", 1.0, seed=s) for s in range(10)] + [row("one", "a", 1.0, seed=7)]
    table = tabulate(rows, task, ("all", "one"))
    drawn = draw_seeds(table, 500, np.random.default_rng(0))
    assert (drawn == table.seeds.index(7)).any(axis=1).all()
    assert set(np.unique(drawn)) == set(range(10))


def test_what_makes_a_seed_lucky_for_both_cancels_in_a_pair() -> None:
    rng = np.random.default_rng(3)
    tasks, rows = [], []
    for name in "ab":
        luck = np.exp(0.1 * rng.normal(size=6))
        tasks.append(bench_task(name, exact(6)))
        rows += [row("one", name, luck[s], seed=s) for s in range(6)]
        rows += [row("other", name, 1.1 * luck[s], seed=s) for s in range(6)]
    arms = ("one", "other")
    tables = [tabulate([r for r in rows if r.task == t.spec.task], t, arms) for t in tasks]
    draws = resample(tables, [STEPS], [arms], resamples=300)["steps"]
    assert draws.arms.std(axis=0).min() > 0.01
    np.testing.assert_allclose(draws.pairs, math.log(1.1), atol=1e-9)
    means, gaps = zip(*[task_means(table, STEPS, [arms]) for table in tables], strict=True)
    found = estimate(np.array(gaps)[:, 0], draws.pairs[:, 0])
    assert found is not None
    assert [found.value, found.low, found.high] == pytest.approx([1.1] * 3)
    assert np.array(means).shape == (2, 2)


def test_the_starts_of_a_seed_stay_together() -> None:
    # one start is as much too fast as the other is too slow: by seed there is nothing to vary
    task = bench_task("a", exact(5))
    rows = [row("x", "a", f, seed=s, offset=o) for s in range(5) for o, f in ((-1, 0.8), (1, 1.25))]
    draws = resample([tabulate(rows, task, ("x",))], [STEPS], [], resamples=100)["steps"]
    np.testing.assert_allclose(draws.arms, 0.0, atol=1e-12)


def test_the_interval_is_that_of_drawing_tasks_with_replacement() -> None:
    # four tasks, two of speed 2 and two of 1/2: (2 k - 4) / 4 octaves, k binomial(4, 1/2), so
    # that both ends are the extremes: P(k = 0) = 1/16 > 2.5%
    tables = [
        tabulate([row("x", n, loss)], bench_task(n, exact(1)), ("x",))
        for n, loss in zip("abcd", (0.5, 0.5, 2.0, 2.0), strict=True)
    ]
    drawn = resample(tables, [STEPS], [], resamples=4000)["steps"].arms[:, 0]
    found = estimate(np.log([2.0, 2.0, 0.5, 0.5]), drawn)
    assert found is not None
    assert [found.value, found.low, found.high] == pytest.approx([1.0, 0.5, 2.0])
    octaves = np.round(2 + 2 * drawn / math.log(2)).astype(int)
    expected = np.array([1, 4, 6, 4, 1]) / 16
    np.testing.assert_allclose(np.bincount(octaves, minlength=5) / 4000, expected, atol=0.03)


def test_a_lucky_baseline_widens_the_interval() -> None:
    rows = [row("x", "a", 1.0, seed=s) for s in range(6)]
    spread = exact(6) * np.exp(np.linspace(-0.4, 0.4, 6))
    widths = []
    for runs in (exact(6), spread):
        table = tabulate(rows, bench_task("a", runs), ("x",))
        widths.append(np.ptp(resample([table], [STEPS], [], resamples=300)["steps"].arms))
    assert widths[0] == pytest.approx(0.0)
    assert widths[1] > 0.2


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(4)
    truth, inside, n = math.log(0.9), 0, 150
    for _ in range(n):
        tables = []
        for name in "abcdefghij":
            luck = 0.1 * rng.normal(size=8)  # of a seed, for arm and baseline alike
            runs = exact(8) * np.exp(luck + 0.15 * rng.normal(size=(len(HORIZONS), 8)))
            own = -truth + 0.12 * rng.normal() + luck + 0.15 * rng.normal(size=8)
            rows = [row("x", name, math.exp(v), seed=s) for s, v in enumerate(own)]
            tables.append(tabulate(rows, bench_task(name, runs), ("x",)))
        drawn = resample(tables, [STEPS], [], resamples=200)["steps"].arms[:, 0]
        low, high = np.quantile(drawn, levels(len(tables)))
        inside += bool(low <= truth <= high)
    assert 0.91 <= inside / n <= 0.995


def test_a_run_counts_once() -> None:
    rows = [row("x", "a", 1.0, offset=1), row("x", "a", 1.0, offset=1)]
    with pytest.raises(ConfigurationError, match=r"task 'a' .* \('x', 0, 1\)"):
        tabulate(rows, bench_task("a", exact()), ("x",))
