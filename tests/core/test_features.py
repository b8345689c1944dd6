from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhopt.core import features
from lhopt.core.actions import N_CONTROLS
from lhopt.core.features import (
    BOUND,
    CDF_WIDTHS,
    FEATURES,
    RANKED,
    FeatureState,
    Situation,
)
from lhopt.core.numerics import log_ratio, normal_cdf
from lhopt.core.statistics import INDEX, STATISTICS, STEP_STATISTICS, Statistics, measure
from lhopt.core.types import FloatArray

N_STATISTICS = len(STATISTICS)


def situation(k: int, progress: float = 0.5) -> Situation:
    return Situation(np.full(k, progress), np.full(k, 0.04), np.zeros((k, N_CONTROLS)), np.zeros(k))


def random_statistics(seed: int, k: int) -> Statistics:
    values = np.random.default_rng(seed).normal(size=(k, N_STATISTICS))
    for name in ("train_loss", "train_loss_std", "train_loss_sem", "train_loss_last", "valid_loss"):
        values[:, INDEX[name]] = np.exp(values[:, INDEX[name]])
    return Statistics(values)


def observe(sequence: list[Statistics]) -> FloatArray:
    """Observations of all intervals: (intervals, K, features)."""
    state, out = FeatureState.initial(len(sequence[0].values)), []
    for i, statistics in enumerate(sequence):
        now = situation(len(statistics.values), (i + 1) / len(sequence))
        state, observation = features.update(state, statistics, now)
        out.append(observation)
    return np.stack(out)


def test_names_are_unique_and_one_per_column() -> None:
    assert len(set(FEATURES)) == len(FEATURES)
    assert observe([random_statistics(0, 2)]).shape == (1, 2, len(FEATURES))


@pytest.mark.parametrize("unit", [1e-8, 1e-3, 7.0, 1e9])
def test_a_loss_in_another_unit_leaves_the_observation(unit: float) -> None:
    sequence = [random_statistics(i, 3) for i in range(12)]
    losses = [INDEX[n] for n in STATISTICS if "loss" in n]
    scaled = []
    for statistics in sequence:
        values = statistics.values.copy()
        values[:, losses] *= unit
        scaled.append(Statistics(values))
    np.testing.assert_allclose(observe(scaled), observe(sequence), atol=1e-5)


def moments(seed: int, *, gradient: float = 1.0, param: float = 1.0) -> FloatArray:
    """Of three tensors of 50 entries, gradients and parameters in other units."""
    rng = np.random.default_rng(seed)
    g, m, u, p = rng.normal(size=(4, 3, 50)) * 0.3
    g, m, p = g * gradient, (m + 0.1) * gradient, p * param

    def dot(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.asarray((a * b).sum(-1))

    log_u = np.log(np.abs(u) + 1e-8).mean(-1)
    return np.stack(
        [
            np.full(3, 50.0), dot(g, g), dot(m, m), dot(u, u), dot(p, p), dot(g, m), dot(g, p),
            dot(g, u), dot(m - g, m - g), log_u, np.full(3, 0.7),
        ],
        axis=-1,
    )[None]  # fmt: skip


def from_moments(**words: float) -> FloatArray:
    rate = 0.01 * words.get("param", 1.0)  # weights c times as large move c times as far
    sequence = []
    for i in range(10):
        values = np.full((1, N_STATISTICS), np.nan)
        step = measure(moments(i, **words), np.array([rate]), np.zeros(1))
        values[:, : len(STEP_STATISTICS)] = step
        values[:, INDEX["train_loss"]] = 1.0 / (i + 1)
        sequence.append(Statistics(values))
    return observe(sequence)


@pytest.mark.parametrize("unit", [1e-9, 1e-2, 1e6])
def test_a_gradient_in_another_unit_leaves_the_observation(unit: float) -> None:
    """Adam's update does not depend on the gradient's unit, and neither does what we read."""
    np.testing.assert_allclose(from_moments(gradient=unit), from_moments(), atol=1e-4)


@pytest.mark.parametrize("unit", [1e-2, 30.0])
def test_weights_in_another_unit_leave_all_but_their_ratio_to_the_raw_update(unit: float) -> None:
    """|p| / |u| before the learning rate has the weights' unit; its rank has none."""
    keep = [i for i, name in enumerate(FEATURES) if name != "raw/log_param_over_update"]
    ours, theirs = from_moments(param=unit), from_moments()
    np.testing.assert_allclose(ours[..., keep], theirs[..., keep], atol=1e-4)


anything = st.floats(allow_nan=True, allow_infinity=True, width=64) | st.sampled_from(
    [np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -5e-324, 0.0, -0.0, 1e-300]
)
rows = st.lists(anything, min_size=N_STATISTICS, max_size=N_STATISTICS)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=4))
def test_observations_are_finite_and_bounded_whatever_comes(sequence: list[list[float]]) -> None:
    observation = observe([Statistics(np.array([row])) for row in sequence])
    assert observation.dtype == np.float32
    assert np.isfinite(observation).all()
    assert np.abs(observation).max() <= BOUND


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3) | st.just(np.nan), min_size=N_CONTROLS, max_size=N_CONTROLS),
    st.floats(1e-9, 1.0),
    st.floats(1e-9, 1.0),
)
def test_any_situation_gives_a_bounded_observation(
    relative: list[float], progress: float, share: float
) -> None:
    where = Situation(np.array([progress]), np.array([share]), np.array([relative]), np.zeros(1))
    _, observation = features.update(FeatureState.initial(1), random_statistics(0, 1), where)
    assert np.isfinite(observation).all()
    assert np.abs(observation).max() <= BOUND


def test_a_batch_equals_one_at_a_time_to_the_bit() -> None:
    sequence = [random_statistics(i, 5) for i in range(6)]
    sequence[3].values[2, INDEX["train_loss"]] = np.nan
    together = observe(sequence)
    for i in range(5):
        one = observe([Statistics(s.values[i : i + 1]) for s in sequence])
        np.testing.assert_array_equal(one[:, 0], together[:, i])


def test_states_stack_and_split() -> None:
    state, _ = features.update(FeatureState.initial(3), random_statistics(0, 3), situation(3))
    again = FeatureState.stack([state.take(slice(i, i + 1)) for i in range(3)])
    for name, value in vars(state).items():
        np.testing.assert_array_equal(getattr(again, name), value)


@pytest.mark.parametrize("width", CDF_WIDTHS)
def test_windows_equal_a_slow_weighted_mean(width: float) -> None:
    """Weights of `alpha_t = w / (w + t)` written out, and their limit w s^(w-1)."""
    n, column = 30, RANKED.index("train_loss")
    sequence = [random_statistics(i, 1) for i in range(n)]
    x = np.array([s["train_loss"][0] for s in sequence])
    alpha = width / (width + np.arange(n))
    weights = np.array([alpha[i] * np.prod(1 - alpha[i + 1 :]) for i in range(n)])
    assert weights.sum() == pytest.approx(1.0)
    mean = (weights * x).sum()
    var = (weights * (x - mean) ** 2).sum()
    state = FeatureState.initial(1)
    for statistics in sequence:
        state, observation = features.update(state, statistics, situation(1))
    j = CDF_WIDTHS.index(width)
    assert state.mean[0, column, j] == pytest.approx(mean)
    assert state.var[0, column, j] == pytest.approx(var)
    rank = 2 * normal_cdf(np.array((x[-1] - mean) / np.sqrt(var))) - 1
    got = observation[0, FEATURES.index(f"cdf{width:g}/train_loss")]
    assert got == pytest.approx(float(rank), abs=1e-6)

    many = 4000
    alpha = width / (width + np.arange(many))
    tail = np.concatenate([np.cumprod((1 - alpha[1:])[::-1])[::-1], [1.0]])
    s = (np.arange(many) + 1) / many
    late = s > 0.2
    np.testing.assert_allclose(
        (alpha * tail * many)[late], (width * s ** (width - 1))[late], rtol=0.3, atol=0.02
    )


def column(observation: FloatArray, name: str) -> FloatArray:
    return np.asarray(observation[..., FEATURES.index(name)])


def losses(*values: float, valid: tuple[float, ...] = ()) -> list[Statistics]:
    out = []
    for i, value in enumerate(values):
        named = {"train_loss": value, "train_loss_sem": 0.1, "train_loss_std": 0.3}
        if valid:
            named["valid_loss"] = valid[i]
        out.append(Statistics.from_mapping(named))
    return out


def test_a_diverged_loss_reads_as_the_worst() -> None:
    observation = observe(losses(1.0, 0.9, np.nan, np.inf, 0.8))
    assert column(observation, "loss/is_nan")[:, 0].tolist() == [0, 0, 1, 0, 0]
    assert column(observation, "loss/is_inf")[:, 0].tolist() == [0, 0, 0, 1, 0]
    for name in ("loss/ratio_previous", "cdf5/train_loss"):
        assert column(observation, name)[2:4] == pytest.approx(1.0)
    # and it is forgotten: the next ratio is to the last loss that was a number
    ratio = np.tanh(4 * np.log(0.8 / 0.9))
    assert column(observation, "loss/ratio_previous")[4, 0] == pytest.approx(ratio, abs=1e-6)


def test_a_job_without_validation_reads_zero_there() -> None:
    without = observe(losses(1.0, 0.9, 0.8))
    for name in FEATURES:
        if name.startswith("valid/") or name.endswith("/valid_loss"):
            np.testing.assert_allclose(column(without, name), 0, atol=1e-8, err_msg=name)
    assert (column(observe(losses(1.0, valid=(1.1,))), "valid/present") == 1).all()


def test_validation_that_is_skipped_is_no_divergence_but_one_that_vanishes_is() -> None:
    observation = observe(losses(1.0, 0.9, 0.8, valid=(np.nan, 1.0, np.nan)))
    assert column(observation, "valid/diverged")[:, 0].tolist() == [0, 0, 1]


def test_a_constant_statistic_has_no_rank() -> None:
    observation = observe(losses(1.0, 1.0, 1.0, 1.0))
    np.testing.assert_allclose(column(observation, "cdf5/train_loss"), 0, atol=1e-8)


def test_moves_are_remembered_and_shown_relative_to_their_bound() -> None:
    state, _ = features.update(FeatureState.initial(1), losses(1.0)[0], situation(1))
    state = features.remember(state, np.full((1, N_CONTROLS), np.log(2.0)))
    _, observation = features.update(state, losses(1.0)[0], situation(1))
    assert column(observation, "last/learning_rate")[0] == pytest.approx(0.5)


def test_a_control_reads_in_decades_from_its_start_and_zero_if_not_steered() -> None:
    where = situation(1)
    where.relative[0] = [np.log(100.0), 0, np.nan, 0, 0, 0]
    _, observation = features.update(FeatureState.initial(1), losses(1.0)[0], where)
    assert column(observation, "control/learning_rate")[0] == pytest.approx(2.0)
    assert column(observation, "steered/one_minus_beta2")[0] == 0
    assert column(observation, "control/one_minus_beta2")[0] == 0
    late = replace(where, progress=np.ones(1))
    _, observation = features.update(FeatureState.initial(1), losses(1.0)[0], late)
    assert column(observation, "progress")[0] == 1.0


@pytest.mark.parametrize(
    ("new", "old", "wanted"),
    [
        (2.0, 1.0, np.log(2)),
        (np.nan, 1.0, 5.0),
        (np.inf, 1.0, 5.0),
        (1e300, 1e-300, 5.0),
        (1e-300, 1e300, -5.0),
        (-1.0, 1.0, -2.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_log_ratio(new: float, old: float, wanted: float) -> None:
    assert float(log_ratio(np.array(new), np.array(old))) == pytest.approx(wanted)


def test_normal_cdf_is_within_1e7_of_erf() -> None:
    from math import erf, sqrt

    x = np.linspace(-9, 9, 601)
    exact: list[Any] = [0.5 * (1 + erf(v / sqrt(2))) for v in x]
    np.testing.assert_allclose(normal_cdf(x), exact, atol=1e-7)
    assert normal_cdf(np.array([-np.inf, np.inf])).tolist() == [0.0, 1.0]
