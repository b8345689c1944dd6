from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.core.averages import LONG, MIXES, SHORT, UPDATES, Mix, share
from lhopt.core.errors import ConfigurationError
from lhopt.core.moments import MOMENTS, tensor_moments
from lhopt.core.types import FloatArray
from lhopt.inner_tasks import InnerTask, get_task
from lhopt.inner_tasks.engine import (
    BatchedRuns,
    BatchOrder,
    Settings,
    initial_params,
    split_params,
)
from lhopt.optimizers import STEERABLE, SteerableAdamW
from lhopt.optimizers.update import ADAMW, StepRule

torch.set_num_threads(1)

SEEDS = tuple(range(40, 48))
SETTINGS = Settings(
    learning_rate=np.geomspace(1e-4, 1e-2, 8),
    one_minus_beta1=np.array([0.1, 0.05, 0.2, 0.1, 0.5, 0.1, 0.3, 0.1]),
    one_minus_beta2=np.array([1e-3, 1e-2, 1e-3, 5e-2, 1e-3, 1e-2, 2e-3, 1e-3]),
    weight_decay=np.array([0.0, 0.01, 0.1, 1.0, 0.01, 0.3, 0.05, 0.01]),
)


@cache
def digits() -> InnerTask:
    return get_task("digits-mlp")


@cache
def quadratic() -> InnerTask:
    return get_task("noisy-quadratic/3")


def rows(settings: Settings, index: Sequence[int]) -> Settings:
    names = ("learning_rate", "one_minus_beta1", "one_minus_beta2", "weight_decay")
    return Settings(**{name: settings.array(name, 8)[list(index)] for name in names})


def alone(task: InnerTask, seed: int, make: Any, steps: int) -> FloatArray:
    """One run in a plain torch loop: the reference twin."""
    params = {k: v.requires_grad_() for k, v in initial_params(task, seed).items()}
    optimizer = make(list(params.values()))
    train = task.arrays("train")
    losses = []
    for index in BatchOrder(seed, len(train[0]), task.batch_size).take(steps):
        picked = torch.from_numpy(index)
        loss = task.loss(params, tuple(a[picked] for a in train))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


def test_losses_agree_with_torch_adamw_run_by_run() -> None:
    ours = BatchedRuns(digits(), SEEDS, SETTINGS).advance(200).losses
    for i, seed in enumerate(SEEDS):

        def make(params: Any, i: int = i) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                params,
                lr=float(SETTINGS.array("learning_rate", 8)[i]),
                betas=(
                    1.0 - float(SETTINGS.array("one_minus_beta1", 8)[i]),
                    1.0 - float(SETTINGS.array("one_minus_beta2", 8)[i]),
                ),
                weight_decay=float(SETTINGS.array("weight_decay", 8)[i]),
            )

        np.testing.assert_allclose(ours[:, i], alone(digits(), seed, make, 200), atol=1e-5)


def test_losses_agree_with_the_steerable_face() -> None:
    settings = Settings(0.01, one_minus_beta1=0.25, one_minus_beta2=0.01, clip_ratio=0.6)
    face: dict[str, Any] = {
        "lr": 0.01, "betas": (0.75, 0.99), "weight_decay": 0.01, "clip_ratio": 0.6,
    }  # fmt: skip
    ours = BatchedRuns(digits(), SEEDS[:2], settings, rule=STEERABLE).advance(60).losses
    for i in range(2):
        theirs = alone(digits(), SEEDS[i], lambda p: SteerableAdamW(p, **face), 60)
        np.testing.assert_allclose(ours[:, i], theirs, atol=1e-4)


def test_a_run_does_not_depend_on_its_neighbours() -> None:
    together = BatchedRuns(digits(), SEEDS, SETTINGS).advance(60).losses
    pair = BatchedRuns(digits(), [SEEDS[5], SEEDS[2]], rows(SETTINGS, [5, 2])).advance(60).losses
    np.testing.assert_allclose(pair, together[:, [5, 2]], atol=1e-6)


def test_chunks_of_steps_change_no_bit() -> None:
    whole, pieces = (BatchedRuns(quadratic(), SEEDS, SETTINGS) for _ in range(2))
    losses = whole.advance(23).losses
    parts = np.concatenate([pieces.advance(n).losses for n in (1, 10, 12)])
    np.testing.assert_array_equal(losses, parts)
    assert torch.equal(whole.flat, pieces.flat)
    assert pieces.step == 23


def test_rates_of_every_step_stand_in_for_the_setting() -> None:
    fixed = BatchedRuns(quadratic(), SEEDS, SETTINGS)
    stepwise = BatchedRuns(quadratic(), SEEDS)
    stepwise.set(rows(SETTINGS, range(8)))
    rates = np.tile(SETTINGS.array("learning_rate", 8), (9, 1))
    expected = fixed.advance(9).losses
    np.testing.assert_array_equal(stepwise.advance(9, learning_rates=rates).losses, expected)
    # and no longer than they are given: the setting holds again
    held = BatchedRuns(quadratic(), SEEDS, SETTINGS)
    held.advance(3, learning_rates=0.5 * rates[:3])
    setting = SETTINGS.array("learning_rate", 8)
    wanted = BatchedRuns(quadratic(), SEEDS, SETTINGS)
    wanted.advance(3, learning_rates=0.5 * rates[:3])
    expected = wanted.advance(6, learning_rates=np.tile(setting, (6, 1))).losses
    np.testing.assert_array_equal(held.advance(6).losses, expected)


def test_a_diverged_run_is_frozen_and_its_neighbours_go_on() -> None:
    rates = np.full(4, 1e-3)
    rates[2] = 1e6
    seeds = [1, 2, 3, 4]
    runs = BatchedRuns(digits(), seeds, Settings(learning_rate=rates, weight_decay=1.0))
    losses = runs.advance(40).losses
    assert runs.alive.tolist() == [True, True, False, True]
    assert np.isnan(losses[-1, 2])
    assert np.isfinite(losses[:, [0, 1, 3]]).all()
    assert not runs.flat[2].any()
    final = runs.evaluate()
    assert final[2] == np.inf
    assert np.isfinite(final[[0, 1, 3]]).all()
    rates[2] = 1e-3
    calm = BatchedRuns(digits(), seeds, Settings(learning_rate=rates, weight_decay=1.0))
    np.testing.assert_array_equal(calm.advance(40).losses[:, [0, 1, 3]], losses[:, [0, 1, 3]])
    # and it stays frozen, at a rate that would train
    runs.set(Settings(learning_rate=1e-3))
    assert np.isnan(runs.advance(3).losses[:, 2]).all()
    assert not runs.flat[2].any()


def test_a_run_that_overflows_is_frozen_with_eps_relative_to_gradients() -> None:
    rule = replace(ADAMW, relative_eps=True)
    rates = np.full(3, 1e-3)
    rates[1] = 1e15
    runs = BatchedRuns(digits(), [1, 2, 3], Settings(learning_rate=rates), rule=rule)
    runs.advance(30)
    assert runs.alive.tolist() == [True, False, True]
    assert not runs.flat[1].any()
    assert torch.isfinite(runs.flat).all()


def test_kept_runs_go_on_and_the_others_are_gone() -> None:
    runs, all_runs = (BatchedRuns(quadratic(), SEEDS, SETTINGS, rule=STEERABLE) for _ in range(2))
    all_runs.advance(20)
    runs.advance(10)
    runs.keep(np.array([6, 1]))
    runs.advance(10)
    assert runs.n_runs == 2
    torch.testing.assert_close(runs.flat, all_runs.flat[[6, 1]])
    np.testing.assert_allclose(runs.evaluate(), all_runs.evaluate()[[6, 1]], rtol=1e-5)


def test_a_saved_state_continues_to_the_bit() -> None:
    whole = BatchedRuns(quadratic(), SEEDS, SETTINGS, rule=STEERABLE)
    cut = BatchedRuns(quadratic(), SEEDS, SETTINGS, rule=STEERABLE)
    cut.advance(11)
    resumed = BatchedRuns(quadratic(), SEEDS, SETTINGS, rule=STEERABLE)
    saved = cut.state()
    cut.advance(5)  # what is saved is a copy
    resumed.load_state(saved)
    expected = whole.advance(30).losses[11:]
    np.testing.assert_array_equal(resumed.advance(19).losses, expected)
    np.testing.assert_array_equal(resumed.evaluate(), whole.evaluate())


def test_evaluation_is_the_tasks_own_over_the_whole_split() -> None:
    runs = BatchedRuns(digits(), SEEDS[:2])
    runs.advance(5)
    batch = digits().arrays("outer_valid")
    for i, value in enumerate(runs.evaluate("outer_valid")):
        wanted = float(digits().evaluate(split_params(runs, i), batch))
        assert value == pytest.approx(wanted, rel=1e-5)
    few = tuple(a[:10] for a in digits().arrays("inner_valid"))
    wanted = float(digits().evaluate(split_params(runs, 1), few))
    assert runs.evaluate("inner_valid", limit=10)[1] == pytest.approx(wanted, rel=1e-5)


def test_evaluation_reads_the_averaged_weights_unless_told_not_to() -> None:
    runs = BatchedRuns(quadratic(), SEEDS, Settings(learning_rate=0.05), rule=STEERABLE)
    runs.advance(20)
    assert (runs.evaluate() != runs.evaluate(averaged=False)).all()


def test_moments_are_those_of_one_run_by_hand() -> None:
    task = digits()
    runs = BatchedRuns(task, SEEDS[:3], Settings(learning_rate=1e-2, weight_decay=0.0))
    runs.advance(3)
    before = split_params(runs, 1)
    seen = runs.advance(4, [0, 2])
    after_first = BatchedRuns(task, SEEDS[:3], Settings(learning_rate=1e-2, weight_decay=0.0))
    after_first.advance(4)
    after = split_params(after_first, 1)
    assert seen.moments.shape == (2, 3, len(before), len(MOMENTS))
    assert np.isnan(seen.clipped).all()
    index = BatchOrder(SEEDS[1], len(task.arrays("train")[0]), task.batch_size).take(4)[3]
    batch = tuple(a[torch.from_numpy(index)] for a in task.arrays("train"))
    gradient = torch.func.grad(task.loss)(before, batch)
    for j, name in enumerate(before):
        row = dict(zip(MOMENTS, seen.moments[0, 1, j], strict=True))
        update = (before[name] - after[name]) / 1e-2
        assert row["numel"] == before[name].numel()
        assert row["gg"] == pytest.approx(float(gradient[name].square().sum()), rel=1e-4)
        assert row["pp"] == pytest.approx(float(before[name].square().sum()), rel=1e-5, abs=1e-12)
        assert row["uu"] == pytest.approx(float(update.square().sum()), rel=1e-3)
        assert row["gu"] == pytest.approx(float((gradient[name] * update).sum()), rel=1e-3)


def test_the_steerable_face_measures_as_the_engine_does() -> None:
    """What the Tuner reads of a job and what the environment reads of a run are the same."""
    task, rate = digits(), 0.02
    settings = Settings(
        rate, one_minus_beta1=0.25, one_minus_beta2=0.01, weight_decay=0.1, clip_ratio=0.6
    )
    runs = BatchedRuns(task, [SEEDS[0]], settings, rule=STEERABLE)
    runs.advance(12)
    seen = runs.advance(1, [0])
    rows: list[torch.Tensor] = []
    clips: list[float | None] = []

    class Measured(SteerableAdamW):
        def step(self, closure: Any = None) -> Any:
            before = [p.detach().clone() for p in self.param_groups[0]["params"]]
            super().step(closure)
            rows.clear()
            clips.append(self.last_clipped)
            for p, old in zip(self.param_groups[0]["params"], before, strict=True):
                momentum, adam_like = self.momentum(p), self.adam_like(p)
                assert momentum is not None
                assert adam_like is not None
                update = (old - p.detach()) / rate
                parts = (p.grad, momentum, update, old, adam_like)
                rows.append(torch.stack(tensor_moments(*(x.reshape(-1) for x in parts))))

    def make(p: Any) -> Measured:
        return Measured(p, rate, (0.75, 0.99), weight_decay=0.1, clip_ratio=0.6)

    alone(task, SEEDS[0], make, 13)
    np.testing.assert_allclose(torch.stack(rows), seen.moments[0, 0, :, 1:], rtol=2e-3, atol=1e-5)
    assert clips[-1] == seen.clipped[0, 0]


def test_clipping_is_reported_where_the_rule_clips() -> None:
    runs = BatchedRuns(quadratic(), SEEDS, Settings(clip_ratio=0.999), rule=STEERABLE)
    clipped = runs.advance(8, range(8)).clipped
    assert set(np.unique(clipped)) <= {0.0, 1.0}
    assert (clipped[0] == 0.0).all()


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no seeds"):
        BatchedRuns(quadratic(), [])


@pytest.mark.parametrize("rule", [STEERABLE, ADAMW])
def test_each_run_reads_its_best_average_until_it_moves_on(rule: StepRule) -> None:
    runs = BatchedRuns(
        digits(), SEEDS, Settings(learning_rate=np.geomspace(1e-3, 0.3, 8)), rule=rule,
        averages_over=60,
    )  # fmt: skip
    runs.advance(60)
    own = runs.evaluate("inner_valid", limit=128)
    raw = runs.evaluate("inner_valid", limit=128, averaged=False)
    chosen = runs.choose("inner_valid", limit=128)
    best = runs.evaluate("inner_valid", limit=128)
    assert len(set(chosen.tolist())) > 1  # rates differ so much that the horizons do
    assert (best <= np.minimum(own, raw)).all()
    last = [i for i in range(8) if MIXES[chosen[i]].last == 1.0]
    np.testing.assert_array_equal(best[last], raw[last])
    state = runs.state()
    resumed = BatchedRuns(digits(), SEEDS, rule=rule, averages_over=60)
    resumed.load_state(state)
    np.testing.assert_array_equal(resumed.choose("inner_valid", limit=128), chosen)
    runs.keep(np.array([2, 5]))
    np.testing.assert_array_equal(runs.choose("inner_valid", limit=128), chosen[[2, 5]])
    runs.advance(1)
    np.testing.assert_allclose(runs.evaluate("inner_valid", limit=128), own[[2, 5]], rtol=0.2)


@pytest.mark.parametrize("average", [0.0, SHORT, 0.2, LONG])
def test_kept_averages_are_by_a_stride_and_the_rules_own_is_the_short_one(average: float) -> None:
    rule = replace(STEERABLE, average=average)
    total = 2 * UPDATES
    runs = BatchedRuns(digits(), SEEDS[:2], rule=rule, averages_over=total)
    assert torch.equal(runs._mixed(Mix(0.0, 0.0, 1.0)), runs.flat)  # before the first
    taken: list[torch.Tensor] = []
    for _ in range(5):
        runs.advance(2)
        taken.append(runs.flat.clone())
    runs.advance(1)  # off the stride
    by_count = torch.stack([k * w for k, w in enumerate(taken, 1)]).sum(0) / 15.0
    torch.testing.assert_close(runs._mixed(Mix(0.0, 0.0, 1.0)), by_count)
    short = taken[0]
    for k, weights in enumerate(taken[1:], 2):
        short = short + share(SHORT, k) * (weights - short)
    if average:
        assert runs._average is not None
        short = runs._average
    torch.testing.assert_close(runs._mixed(Mix(0.0, 1.0, 0.0)), short)
    half = runs._mixed(Mix(0.5, 0.5, 0.0))
    torch.testing.assert_close(half, 0.5 * runs.flat + 0.5 * short)


def test_last_weights_that_are_not_finite_spoil_no_other_mix() -> None:
    runs = BatchedRuns(digits(), SEEDS[:2], rule=STEERABLE, averages_over=20)
    runs.advance(20)
    runs.flat[1] = torch.inf
    chosen = runs.choose("inner_valid")
    assert MIXES[chosen[1]].last == 0.0
    assert np.isfinite(runs.evaluate("inner_valid")).all()


def test_a_state_that_is_loaded_has_chosen_nothing() -> None:
    runs = BatchedRuns(digits(), SEEDS[:2], rule=STEERABLE, averages_over=20)
    runs.advance(20)
    own, state = runs.evaluate("inner_valid"), runs.state()
    runs.choose("inner_valid")
    runs.load_state(state)
    np.testing.assert_array_equal(runs.evaluate("inner_valid"), own)


def test_runs_that_keep_no_averages_cannot_choose() -> None:
    runs = BatchedRuns(digits(), SEEDS)
    with pytest.raises(ConfigurationError, match="averages_over"):
        runs.choose("inner_valid")
