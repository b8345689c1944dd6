"""Common signal, a task's own and noise are told apart, on gradients made of known parts."""

from __future__ import annotations

import numpy as np
import pytest

from lhopt.core.errors import ConfigurationError
from lhopt.core.types import FloatArray
from lhopt.policy import gradient_noise
from lhopt.policy.gradient_noise import Estimate, GradientNoise, Products

GROUPS, SIZE, WIDTH = 4, 8, 60


def made(
    rng: np.random.Generator, tasks: list[str], common: float, own: float, noise: float
) -> FloatArray:
    """Gradients `(visits, GROUPS, WIDTH)` of parts with those squared norms; noise is a run's."""

    def part(*shape: int, squared: float) -> FloatArray:
        return np.asarray(rng.standard_normal((*shape, WIDTH)) * np.sqrt(squared / WIDTH))

    shared = np.zeros(WIDTH)
    shared[0] = np.sqrt(common)
    owns = {task: part(squared=own) for task in sorted(set(tasks))}
    signal = np.stack([shared + owns[task] for task in tasks])
    return np.asarray(signal[:, None] + part(len(tasks), GROUPS, SIZE, squared=noise).mean(axis=2))


@pytest.mark.parametrize(
    ("common", "least", "most"), [(0.0, 0.0, 0.12), (0.2, 0.75, 1.0), (1.0, 0.98, 1.0)]
)
def test_parts_are_recovered_without_bias_and_so_is_their_error(
    common: float, least: float, most: float
) -> None:
    tasks = [f"a/{i % 30}" for i in range(40)]  # ten of them are met twice
    found = []
    for seed in range(100):
        gradients = made(np.random.default_rng(seed), tasks, common=common, own=4.0, noise=100.0)
        found.append(Products.of(gradients, tasks, SIZE).read(seed=seed))
    for name, wanted in (("common", common), ("task", common + 4.0), ("noise", 100.0)):
        estimates: list[Estimate] = [getattr(reading, name) for reading in found]
        values = np.array([estimate.value for estimate in estimates])
        assert values.mean() == pytest.approx(wanted, abs=3.5 * values.std() / 10.0), name
        told = np.sqrt(np.mean([estimate.error**2 for estimate in estimates]))
        assert 0.75 < told / values.std() < 1.35, name
    assert least <= np.mean([reading.common.told_apart for reading in found]) <= most


def test_the_error_of_what_is_common_is_that_of_pairs_without_a_common_task() -> None:
    tasks = ["a/0", "a/1", "a/0", "b/0", "b/1", "b/2", "b/2"]
    gradients = np.random.default_rng(5).standard_normal((7, 2, 9))
    gradients += np.linspace(0.0, 2.0, 9)
    common = Products.of(gradients, tasks, 2).read().common
    means = {t: sum(g for g, task in zip(gradients.mean(1), tasks, strict=True) if task == t)
             for t in set(tasks)}  # fmt: skip
    pairs = {(a, b): tasks.count(a) * tasks.count(b) for a in means for b in means if a != b}
    apart = {(a, b): means[a] @ means[b] - common.value * n for (a, b), n in pairs.items()}
    products = [apart[one] * apart[two] for one in pairs for two in pairs if not {*one} & {*two}]
    scale = len(pairs) / sum(pairs.values())
    assert common.error**2 == pytest.approx(-np.mean(products) * scale**2)


def test_visits_to_one_task_do_not_tell_what_tasks_have_in_common() -> None:
    tasks = [f"a/{i % 6}" for i in range(60)]
    gradients = made(np.random.default_rng(0), tasks, common=0.0, own=25.0, noise=1.0)
    common = Products.of(gradients, tasks, SIZE).read().common
    assert not common.told_apart
    assert abs(common.value) < 2.5
    apart = Products.of(gradients, [f"{task}{i}" for i, task in enumerate(tasks)], SIZE)
    assert apart.read().common.value > common.value + 1.5  # a ninth of all pairs is of one task


def test_no_signal_is_not_told_apart_from_none() -> None:
    tasks = [f"a/{i}" for i in range(20)]
    told = [
        Products.of(made(np.random.default_rng(seed), tasks, 0.0, 1.0, 50.0), tasks, SIZE)
        .read()
        .common.told_apart
        for seed in range(40)
    ]
    assert np.mean(told) <= 0.1


def test_products_are_the_means_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ["a/0", "a/1", "a/0", "b/0", "b/1", "b/2"]
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((6, 3, 10)).astype(np.float32)
    monkeypatch.setattr(gradient_noise, "_COLUMNS", 4)
    reading = Products.of(gradients, tasks, 2).read()
    g = gradients.astype(np.float64)
    across = [
        (g[i, a] @ g[j, b])
        for i in range(6) for j in range(6) if tasks[i] != tasks[j]
        for a in range(3) for b in range(3)
    ]  # fmt: skip
    within = [g[i, a] @ g[i, b] for i in range(6) for a in range(3) for b in range(3) if a != b]
    square = [g[i, a] @ g[i, a] for i in range(6) for a in range(3)]
    assert reading.common.value == pytest.approx(np.mean(across))
    assert reading.task.value == pytest.approx(np.mean(within))
    assert reading.noise.value == pytest.approx(2 * (np.mean(square) - np.mean(within)))
    assert reading.runs_per_visit == 6


def test_alike_no_visit_dominates() -> None:
    tasks = [f"a/{i}" for i in range(12)]
    gradients = made(np.random.default_rng(1), tasks, common=4.0, own=1.0, noise=8.0)
    even = Products.of(gradients, tasks, SIZE).alike()
    gradients[:3] *= 1000.0
    gradients[3] *= 0.001
    again = Products.of(gradients, tasks, SIZE).alike()
    ratio = again.square / even.square
    np.testing.assert_allclose(again.square, again.square[0])
    np.testing.assert_allclose(again.across, even.across * ratio[0])  # all but the median's size
    gradients[4] = 0.0  # no reward told any of its runs from another
    silent = Products.of(gradients, tasks, SIZE).alike().read()
    assert np.isfinite([silent.common.value, silent.task.value, silent.noise.value]).all()


def test_what_a_reading_means() -> None:
    def reading(error: float) -> GradientNoise:
        return GradientNoise(Estimate(2.0, error), Estimate(5.0, 0.1), Estimate(96.0, 1.0), 32)

    clear = reading(0.9)
    assert clear.scatter == 6.0  # of its own 3, and 96 over 32 runs
    assert clear.signal_to_noise(9) == 3.0
    assert clear.visits_needed() == 3.0
    assert clear.signal_to_noise(clear.visits_needed()) == 1.0
    assert np.isnan(reading(1.0).visits_needed())
    below = GradientNoise(Estimate(1.0, 0.1), Estimate(0.5, 0.1), Estimate(-1.0, 1.0), 32)
    assert below.scatter == 0.0  # by chance: no part has less than none
    assert np.isnan(below.signal_to_noise(5))


def test_what_cannot_be_read_is_refused() -> None:
    tasks = [f"a/{i}" for i in range(6)]
    gradients = np.ones((6, 2, 3))
    assert Products.of(gradients, tasks, 1).groups == 2
    for wrong, names, size, says in (
        (gradients[0], tasks, 1, "shape"),
        (gradients, tasks[:5], 1, "5 tasks"),
        (gradients, tasks, 0, "groups of 0 runs"),
        (gradients[:, :1], tasks, 1, "One group"),
        (gradients, [*tasks[:4], "a/0", "a/1"], 1, "4 different tasks were met in 6 visits"),
        (np.full_like(gradients, np.nan), tasks, 1, r"of a/0, a/1, .* is not finite"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            Products.of(wrong, names, size)
