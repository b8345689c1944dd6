from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest
import torch

from lhopt.core.errors import StatisticsError, UnknownNameError
from lhopt.core.moments import MOMENTS, tensor_moments
from lhopt.core.sampling import MAX_PER_INTERVAL, measured_steps, stride
from lhopt.core.statistics import (
    INDEX,
    STATISTICS,
    STEP_STATISTICS,
    Accumulator,
    Statistics,
    horizons,
    measure,
)
from lhopt.core.types import FloatArray


def phi(x: float) -> float:
    return 0.5 * (1 + erf(x / sqrt(2)))


def test_measure_equals_the_definitions_on_random_tensors() -> None:
    rng = np.random.default_rng(0)
    sizes, rate = (7, 30), 0.03
    tensors = [rng.normal(size=(4, 2, n)) for n in sizes]  # g, m, u, p of two runs
    v = [rng.random((2, n)) for n in sizes]
    eps = 0.25
    rows: list[FloatArray] = []
    for (g, m, u, p), second in zip(tensors, v, strict=True):
        tg, tm, tu, tp = (torch.from_numpy(x) for x in (g, m, u, p))
        parts = tensor_moments(tg, tm, tu, tp, torch.from_numpy(np.sqrt(second) > eps))
        numel = np.full(2, float(g.shape[1]))
        rows.append(np.stack([numel, *(x.numpy() for x in parts)], -1))
    got = measure(np.stack(rows, 1), np.full(2, rate), np.array([0.0, 1.0]))
    norm = np.linalg.norm
    for k in range(2):
        per: dict[str, list[float]] = {}
        for (g, m, u, p), second in zip(tensors, v, strict=True):
            g, m, u, p = g[k], m[k], u[k], p[k]
            d = len(g)

            def cos(a: FloatArray, b: FloatArray) -> float:
                return float(a @ b / norm(a) / norm(b))

            def logit(x: float) -> float:
                return float(np.log(x / (1 - x)))

            row = {
                "adam_like": float((np.sqrt(second[k]) > eps).mean()),
                "log_update_abs": float(np.log(np.abs(u)).mean()),
                "log_momentum_over_grad": float(np.log(norm(m) / norm(g))),
                "log_update_over_param": float(np.log(rate * norm(u) / norm(p))),
                "log_noise_scale": float(np.log(norm(m) / norm(m - g))),
                "cos_grad_momentum": cos(g, m),
                "cos_grad_param": cos(g, p),
                "log_param_over_update": float(np.log(norm(p) / norm(u))),
                "cos_grad_update": cos(g, u),
                "phi_cos_grad_momentum": logit(phi(sqrt(d) * cos(g, m))),
                "phi_cos_grad_update": logit(phi(sqrt(d) * cos(g, u))),
                "phi_cos_grad_param": phi(sqrt(d) * cos(g, p)),
            }
            for name, value in row.items():
                per.setdefault(name, []).append(value)
        wanted = {name: float(np.mean(values)) for name, values in per.items()}
        wanted["clipped"] = float(k)
        wanted["log_grad_norm"] = float(np.log(norm(np.concatenate([t[0, k] for t in tensors]))))
        wanted["log_param_norm"] = float(np.log(norm(np.concatenate([t[3, k] for t in tensors]))))
        assert set(wanted) == set(STEP_STATISTICS)
        for name, value in wanted.items():
            assert got[k, STEP_STATISTICS.index(name)] == pytest.approx(value, abs=1e-5), name


def test_a_rate_per_tensor_is_used_for_its_tensor() -> None:
    moments = np.ones((1, 2, len(MOMENTS)))
    both = measure(moments, np.array([[0.1, 0.3]]))
    each = [measure(moments, np.array([rate])) for rate in (0.1, 0.3)]
    column = STEP_STATISTICS.index("log_update_over_param")
    assert both[0, column] == pytest.approx((each[0][0, column] + each[1][0, column]) / 2)
    assert np.isnan(both[0, STEP_STATISTICS.index("clipped")])


def test_zero_gradients_measure_finite() -> None:
    moments = np.zeros((1, 1, len(MOMENTS)))
    moments[..., 0] = 4.0
    values = measure(moments, np.zeros(1), np.zeros(1))
    assert np.isfinite(values).all()


def test_no_second_moment_is_not_measured() -> None:
    g = torch.ones(1, 3)
    assert np.isnan(float(tensor_moments(g, g, g, g, None)[-1]))


def test_an_accumulator_means_its_steps_and_losses() -> None:
    rng = np.random.default_rng(0)
    steps, losses = rng.normal(size=(3, 2, len(STEP_STATISTICS))), rng.random((6, 2))
    accumulated = Accumulator.empty(2).add_losses(losses[0]).add_losses(losses[1:])
    for step in steps:
        accumulated = accumulated.add_step(step)
    got = accumulated.finish(log_displacement=np.array([1.0, 2.0]))
    np.testing.assert_allclose(got.values[:, : len(STEP_STATISTICS)], steps.mean(0))
    np.testing.assert_allclose(got["train_loss"], losses.mean(0))
    np.testing.assert_allclose(got["train_loss_std"], losses.std(0))
    np.testing.assert_allclose(got["train_loss_sem"], losses.std(0, ddof=1) / np.sqrt(6))
    np.testing.assert_allclose(got["train_loss_last"], losses[3:].mean(0))
    assert got["log_displacement"].tolist() == [1.0, 2.0]
    assert np.isnan(got["valid_loss"]).all()


def test_an_interval_may_have_one_loss_and_no_measured_step() -> None:
    got = Accumulator.empty(1).add_losses(np.array([2.0])).finish(valid_loss=np.array([3.0]))
    assert got.to_mapping() == {
        "train_loss": 2.0, "train_loss_std": 0.0, "train_loss_sem": 0.0, "train_loss_last": 2.0,
        "valid_loss": 3.0,
    }  # fmt: skip


def test_one_bad_loss_makes_the_interval_diverged() -> None:
    accumulated = Accumulator.empty(2).add_losses(np.array([[1.0, 1.0], [np.nan, 1.0]]))
    assert accumulated.finish().diverged.tolist() == [True, False]


def test_an_interval_without_a_loss_is_refused() -> None:
    with pytest.raises(StatisticsError, match="without a loss"):
        Accumulator.empty(1).finish()


def test_names_go_to_columns_and_back() -> None:
    statistics = Statistics.from_mapping({"train_loss": np.nan, "clipped": 1.0})
    assert statistics.diverged.tolist() == [True]
    mapping = statistics.to_mapping()
    assert set(mapping) == {"train_loss", "clipped"}
    stacked = Statistics.stack([statistics, Statistics.from_mapping({"train_loss": 2.0})])
    assert stacked["train_loss"][1] == 2.0
    assert stacked.to_mapping(1) == {"train_loss": 2.0}


def test_bad_statistics_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Nearest: train_loss"):
        Statistics.from_mapping({"trainloss": 1.0})
    with pytest.raises(StatisticsError, match="without train_loss"):
        Statistics.from_mapping({"clipped": 1.0})
    with pytest.raises(StatisticsError, match=rf"\(K, {len(STATISTICS)}\) is wanted"):
        Statistics(np.zeros((2, 3)))


@pytest.mark.parametrize("interval", [1, 2, 4, 5, 10, 16, 17, 100, 1001])
def test_measured_steps_start_at_the_first_and_are_few(interval: int) -> None:
    steps = measured_steps(interval)
    assert steps[0] == 0
    assert len(steps) <= MAX_PER_INTERVAL
    assert steps[-1] < interval
    assert len(set(np.diff(steps))) <= 1


@pytest.mark.parametrize(("numel", "wanted"), [(0, 1), (1, 1), (10, 1), (11, 2), (101, 11)])
def test_a_stride_reads_at_most_so_many(numel: int, wanted: int) -> None:
    assert stride(numel, 10) == wanted
    assert len(range(0, numel, stride(numel, 10))) <= 10


def test_one_bad_micro_batch_is_no_divergence() -> None:
    losses = np.array([1.0, np.nan, 3.0, 2.0])[:, None]
    statistics = Accumulator.empty(1).add_losses(losses).finish()
    assert not statistics.diverged[0]
    assert statistics["train_loss"][0] == pytest.approx(2.0)
    assert statistics["train_loss_last"][0] == pytest.approx(2.5)
    assert statistics["train_loss_std"][0] == pytest.approx(np.std([1.0, 3.0, 2.0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_interval_that_ends_without_a_number_is_divergence(bad: float) -> None:
    losses = np.array([1.0, 1.0, bad, bad])[:, None]
    assert Accumulator.empty(1).add_losses(losses).finish().diverged[0]


def test_an_update_that_carries_the_gradients_unit_is_not_measured_in_size() -> None:
    moments = np.ones((1, 2, len(MOMENTS)))
    sized = [INDEX["log_update_abs"], INDEX["log_param_over_update"]]
    assert np.isfinite(measure(moments, np.ones(1))[0, sized]).all()
    moments[..., MOMENTS.index("adam_like")] = np.nan  # SGD: no second moment
    plain = measure(moments, np.ones(1))[0]
    assert np.isnan(plain[sized]).all()
    assert np.isfinite(plain[INDEX["log_update_over_param"]])


def test_horizons_say_how_often_a_hyperparameter_fits_into_an_interval() -> None:
    found = horizons(
        20,
        learning_rate=np.array([0.01, 0.0]),
        one_minus_beta1=np.array([0.1, np.nan]),
        one_minus_beta2=np.array([0.001, 0.5]),
        weight_decay=np.array([0.5, 0.5]),
        epochs=0.25,
        params_per_label=8.0,
    )
    assert np.exp(found["log_decay"][0]) == pytest.approx(0.1)  # of the weights, in 20 steps
    assert np.exp(found["log_beta1_windows"][0]) == pytest.approx(2.0)
    assert np.isnan(found["log_beta1_windows"][1])
    assert np.exp(found["log_beta2_windows"]) == pytest.approx([0.02, 10.0])
    assert np.exp(found["log_epochs"]) == pytest.approx([0.25, 0.25])
    assert np.exp(found["log_params_per_label"]) == pytest.approx([8.0, 8.0])
    assert np.isfinite(found["log_decay"][1])  # a rate of 0 is very little, not minus infinity
    got = Accumulator.empty(2).add_losses(np.ones(2)).finish(others=found)
    assert got["log_epochs"] == pytest.approx(np.log([0.25, 0.25]))
