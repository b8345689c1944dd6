from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lhopt.benchmarks import batched_arms, loop_arms, real
from lhopt.benchmarks.arms import UNTUNED
from lhopt.benchmarks.loop_arms import LIBRARY, hidden_matrices, holding
from lhopt.benchmarks.real import DECISIONS
from lhopt.benchmarks.records import CURVE, evaluation_steps
from lhopt.client import Tuner
from lhopt.core.actions import COLUMN
from lhopt.core.feedback import Feedback
from lhopt.core.schedules import Schedule
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskSpec
from lhopt.inner_tasks.engine import initial_params
from lhopt.inner_tasks.registry import get_task
from lhopt.optimizers.together import Together
from lhopt.policy.artifact import Policy
from lhopt.policy.bundled import bundled
from lhopt.policy.combine import with_feedback
from lhopt.policy.evaluate import Controller, closed_loop, hold, run

STEPS, SEEDS, RATE = 100, (0, 3), 0.005


def entry(name: str) -> Entry:
    plain = Frontier(name, STEPS, (1.0, 2.0), (1.0, 0.5), (0.01, 0.01), 0.0, 2.0)
    return Entry(TaskSpec(name, STEPS), get_task(name), plain)


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "lhopt.SteerableAdamW"])
@pytest.mark.parametrize(
    ("name", "validates"),
    [("digits-mlp", False), ("digits-autoencoder", False), ("digits-mlp:loss_scale=3", True)],
)
def test_the_tuner_in_a_real_loop_is_the_batched_environment(
    name: str, validates: bool, optimizer: str, make_policy: Callable[..., Policy]
) -> None:
    policy = with_feedback(make_policy(optimizer), Feedback(60.0))  # idle where nothing validates
    # orthogonalised updates amplify rounding, as torch.optim.Muon's do: the batch and the single
    # run part by 1e-3 within 100 steps
    close = 1e-4 if optimizer == "torch.optim.AdamW" else 1e-2
    episodes: list[Episode] = []

    def controller(episode: Episode) -> Controller:
        episodes.append(episode)
        return closed_loop(policy, episode.n_runs)

    starts = {k: np.full(len(SEEDS), v) for k, v in real.default_values(optimizer).items()}
    starts["learning_rate"] = np.full(len(SEEDS), RATE)
    config = EnvConfig(optimizer=optimizer, feedback=policy.feedback)
    batched = run(
        entry(name), config, controller, seeds=SEEDS, starts=starts, n_intervals=DECISIONS,
        reports_valid=validates, tells_slope=validates,
    )  # fmt: skip
    epochs, labels = get_task(name).epochs(STEPS), get_task(name).n_labels()
    for i, seed in enumerate(SEEDS):
        ours = real.train(
            get_task(name), STEPS, seed, real.recipe(optimizer, RATE),
            tuner=lambda o, validate: Tuner(
                o, STEPS, decisions=DECISIONS, policy=policy, epochs=epochs, labels=labels,
                validate=validate if validates else None,
            ),
        )  # fmt: skip
        decided = ours.history[1:]
        assert len(decided) == len(batched.actions)
        assert {record.source for record in decided} == {"policy"}
        for control in policy.controls:
            last = decided[-1].values[control.name]
            there = episodes[0].values[i, COLUMN[control.name]]
            assert last == pytest.approx(there, rel=close)
            # no schedule in these moves, and no feedback where nothing validates
            if control.name == "one_minus_beta1" or (
                control.name == "weight_decay" and not validates
            ):
                moves = np.log([record.moves[control.name] for record in decided])
                chosen = batched.actions[:, i, COLUMN[control.name]]
                np.testing.assert_allclose(moves, chosen, atol=close)
        assert ours.loss == pytest.approx(batched.final_loss[i], rel=close)
        test = episodes[0].runs.evaluate("test")[i]
        assert ours.test_loss == pytest.approx(test, rel=close)


@pytest.mark.parametrize("name", ["adamw", "steerable"])
def test_the_best_weights_in_a_real_loop_are_those_of_the_batched_environment(name: str) -> None:
    policy, task = bundled(name), get_task("digits-mlp:width=48")
    # from 0.05 rounding alone ends one of the two runs 1.7% apart on some processors
    rate = 0.05 if name == "adamw" else 0.02
    close = 1e-4 if name == "adamw" else 1e-2  # as above
    starts = {k: np.full(2, v) for k, v in real.default_values(policy.optimizer).items()}
    starts["learning_rate"] = np.full(2, rate)
    plain, best = (
        run(
            entry("digits-mlp:width=48"),
            EnvConfig(optimizer=policy.optimizer, feedback=policy.feedback, averages=averages),
            lambda episode: closed_loop(policy, episode.n_runs),
            seeds=SEEDS, starts=starts, n_intervals=DECISIONS, reports_valid=True, tells_slope=True,
        )
        for averages in (False, True)
    )  # fmt: skip
    # mixes of both averages that are lower by far more than what the two may differ by
    assert (best.final_loss < plain.final_loss * (1.0 - 2.0 * close)).all()
    for i, seed in enumerate(SEEDS):
        ours = real.train(
            task, STEPS, seed, real.recipe(policy.optimizer, rate),
            tuner=lambda o, validate: Tuner(
                o, STEPS, decisions=DECISIONS, policy=policy, epochs=task.epochs(STEPS),
                labels=task.n_labels(), validate=validate, averages=True,
            ),
            averages=True,
        )  # fmt: skip
        assert ours.curve[-1] == pytest.approx(best.final_loss[i], rel=close)


def test_a_run_whose_loss_is_not_finite_has_diverged() -> None:
    hot = real.recipe("torch.optim.AdamW", 1e30)
    outcome = real.train(get_task("teacher-regression"), 30, 0, hot)
    assert outcome.diverged
    assert outcome.loss == outcome.test_loss == np.inf
    assert outcome.steps < 30


def test_a_decade_off_start_is_a_decade_off_and_the_rest_is_the_optimizers_default() -> None:
    values = real.default_values("torch.optim.AdamW")
    assert values["learning_rate"] == 1e-3
    assert values["one_minus_beta2"] == pytest.approx(1e-3)
    assert set(real.default_values("lhopt.SteerableAdamW")) > set(values)


def test_a_curve_has_fifty_points_and_ends_at_the_end() -> None:
    assert len(evaluation_steps(300)) == len(evaluation_steps(7)) == CURVE
    assert evaluation_steps(300)[:2] == (6, 12)
    assert evaluation_steps(7)[0] == 1
    assert evaluation_steps(7)[-1] == 7


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "lhopt.SteerableAdamW"])
@pytest.mark.parametrize("selection", ["last", "best"])
def test_the_no_op_arm_is_the_tuner_with_a_policy_that_holds(
    optimizer: str, selection: str, make_policy: Callable[..., Policy]
) -> None:
    task = copy.copy(get_task("digits-mlp"))
    task.selection = selection  # type: ignore[assignment]
    policy = make_policy(optimizer)
    rates = np.array([0.01, 0.03])
    batch = batched_arms.steered(
        task, STEPS, optimizer, policy.schedule, lambda _: hold, (0, 3), rates
    )
    for i, seed in enumerate((0, 3)):
        ours = real.train(
            task, STEPS, seed, real.recipe(optimizer, float(rates[i])),
            tuner=lambda o, _: Tuner(o, STEPS, decisions=DECISIONS, policy=holding(policy)),
        )  # fmt: skip
        assert all(
            move == 1.0 for r in ours.history[1:] for n, move in r.moves.items() if "beta" in n
        )
        np.testing.assert_allclose(ours.curve, batch.curve[i], rtol=1e-2)
        assert ours.loss == pytest.approx(batch.loss[i], rel=1e-2)
        assert ours.test_loss == pytest.approx(batch.test_loss[i], rel=1e-2)
        wanted = ours.curve.min() if selection == "best" else ours.curve[-1]
        assert ours.loss == wanted


def test_the_default_alone_is_the_no_op_at_the_default() -> None:
    task, name = get_task("digits-mlp"), "lhopt.SteerableAdamW"
    rate = real.default_values(name)["learning_rate"]
    batch = batched_arms.steered(
        task, STEPS, name, Schedule(), lambda _: hold, (1,), np.array([rate])
    )
    alone = real.train(task, STEPS, 1, loop_arms.steerable_default(name, Schedule()))
    np.testing.assert_allclose(alone.curve, batch.curve[0], rtol=1e-2)


def test_a_cosine_is_the_same_in_the_batch_and_in_the_loop() -> None:
    task = get_task("digits-mlp")
    setting = {**UNTUNED, "learning_rate": 0.02, "beta1": 0.8, "weight_decay": 0.1}
    batch = batched_arms.adamw_cosine(task, STEPS, (0, 1), setting)
    alone = real.train(task, STEPS, 1, loop_arms.adamw_cosine(setting))
    np.testing.assert_allclose(alone.curve, batch.curve[1], rtol=1e-3)
    assert alone.test_loss == pytest.approx(batch.test_loss[1], rel=1e-3)


def test_a_batch_evaluates_on_its_way_without_changing_it() -> None:
    task = get_task("digits-mlp")
    found = batched_arms.adamw_cosine(task, STEPS, (0,), UNTUNED)
    pieces = [
        real.train(task, STEPS, 0, loop_arms.adamw_cosine(UNTUNED), marks=(stop,), until=stop)
        for stop in (10, 62)
    ]
    at = evaluation_steps(STEPS)
    for stop, piece in zip((10, 62), pieces, strict=True):
        assert found.curve[0, at.index(stop)] == pytest.approx(piece.loss, rel=1e-3)


@pytest.mark.parametrize("name", sorted(LIBRARY))
@pytest.mark.parametrize("task", ["digits-cnn", "char-gru"])
def test_every_library_arm_trains(name: str, task: str) -> None:
    inner = get_task(task)
    before = real.evaluate(inner, initial_params(inner, 0), "outer_valid")
    outcome = real.train(inner, 40, 0, LIBRARY[name]())
    assert outcome.steps == 40
    assert outcome.loss < before
    assert outcome.cpu_ms > 0


def test_schedule_free_is_evaluated_at_its_average_and_warms_up() -> None:
    task = get_task("digits-mlp")
    kept: list[torch.optim.Optimizer] = []
    plain = LIBRARY["schedule-free"]()

    def make(*given: object) -> torch.optim.Optimizer:
        kept.append(plain.make(*given))  # type: ignore[arg-type]
        return kept[0]

    ours = real.train(task, 60, 0, replace(plain, make=make))
    group = kept[0].param_groups[0]
    assert group["warmup_steps"] == 3
    assert group["train_mode"]
    named = dict(zip(initial_params(task, 0), group["params"], strict=True))
    raw = real.evaluate(task, named, "outer_valid")
    kept[0].eval()  # type: ignore[attr-defined]
    assert ours.loss == real.evaluate(task, named, "outer_valid") != raw


def test_muon_gets_hidden_layers_and_adamw_the_rest() -> None:
    def hidden(name: str) -> tuple[str, ...]:
        task = get_task(name)
        initial = initial_params(task, 0)
        return hidden_matrices(task, {n: nn.Parameter(p) for n, p in initial.items()})

    assert hidden("digits-mlp") == ("layer0.weight",)
    vit = hidden("digits-vit")
    assert "block0.qkv.weight" in vit
    assert not any("embed" in name or "head" in name or "position" in name for name in vit)
    assert not any("embed" in name for name in hidden("char-gru"))
    task = get_task("digits-cnn")
    weights = {n: nn.Parameter(p.flatten(1) if p.ndim > 2 else p) for n, p in
               initial_params(task, 0).items()}  # fmt: skip
    made = LIBRARY["muon"]().make(task, weights, 10)
    assert isinstance(made, Together)
    muon, adamw = made.children
    assert isinstance(muon, torch.optim.Muon)
    filters = [weights[name] for name in weights if name.startswith("conv") and "weight" in name]
    assert {id(p) for p in muon.param_groups[0]["params"]} == {id(p) for p in filters}
    assert muon.param_groups[0]["lr"] == 0.02
    assert adamw.param_groups[0]["lr"] == 3e-4


def test_filters_shown_as_matrices_train_as_filters_do() -> None:
    task = get_task("digits-cnn")
    plain = real.recipe("torch.optim.AdamW", 0.01)
    folded = real.train(task, 20, 0, replace(plain, filters_as_matrices=True))
    assert folded.loss == pytest.approx(real.train(task, 20, 0, plain).loss, rel=1e-5)


def test_halfway_is_told_once_at_half_of_the_run() -> None:
    seen: list[int] = []
    steps = 21
    task = get_task("digits-mlp")
    made: list[torch.optim.Optimizer] = []

    def make(*given: object) -> torch.optim.Optimizer:
        made.append(plain.make(*given))  # type: ignore[arg-type]
        return made[0]

    def note() -> None:
        params = made[0].param_groups[0]["params"]
        seen.append(int(made[0].state[params[0]]["step"]))

    plain = real.recipe("torch.optim.AdamW")
    real.train(task, steps, 0, replace(plain, make=make), halfway=note)
    assert seen == [10]
