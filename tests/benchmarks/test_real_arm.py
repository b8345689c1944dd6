from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lhopt.benchmarks import real
from lhopt.benchmarks.real import DECISIONS
from lhopt.core.actions import COLUMN
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Episode
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.policy.artifact import Policy
from lhopt.policy.evaluate import Controller, closed_loop, run

STEPS, SEEDS, RATE = 100, (0, 3), 0.005


def entry(name: str) -> Entry:
    plain = Frontier(name, STEPS, (1.0, 2.0), (1.0, 0.5), (0.01, 0.01), 0.0, 2.0)
    return Entry(TaskSpec(name, STEPS), get_task(name), plain)


@pytest.mark.parametrize("optimizer", ["torch.optim.AdamW", "lhopt.SteerableAdamW"])
@pytest.mark.parametrize("name", ["digits-mlp", "digits-autoencoder"])
def test_the_tuner_in_a_real_loop_is_the_batched_environment(
    name: str, optimizer: str, make_policy: Callable[..., Policy]
) -> None:
    policy = make_policy(optimizer)
    # orthogonalised updates amplify rounding, as torch.optim.Muon's do: the batch and the single
    # run part by 1e-3 within 100 steps
    close = 1e-4 if optimizer == "torch.optim.AdamW" else 1e-2
    episodes: list[Episode] = []

    def controller(episode: Episode) -> Controller:
        episodes.append(episode)
        return closed_loop(policy, episode.n_runs)

    starts = {k: np.full(len(SEEDS), v) for k, v in real.default_values(optimizer).items()}
    starts["learning_rate"] = np.full(len(SEEDS), RATE)
    config = EnvConfig(optimizer=optimizer)
    batched = run(
        entry(name), config, controller, seeds=SEEDS, starts=starts, n_intervals=DECISIONS
    )
    for i, seed in enumerate(SEEDS):
        ours = real.train(get_task(name), STEPS, seed, optimizer, RATE, policy=policy)
        decided = ours.history[1:]
        assert len(decided) == len(batched.actions)
        assert {record.source for record in decided} == {"policy"}
        for control in policy.controls:
            last = decided[-1].values[control.name]
            there = episodes[0].values[i, COLUMN[control.name]]
            assert last == pytest.approx(there, rel=close)
            if control.name in ("one_minus_beta1", "weight_decay"):  # no schedule in the moves
                moves = np.log([record.moves[control.name] for record in decided])
                chosen = batched.actions[:, i, COLUMN[control.name]]
                np.testing.assert_allclose(moves, chosen, atol=close)
        assert ours.loss == pytest.approx(batched.final_loss[i], rel=close)
        test = episodes[0].runs.evaluate("test")[i]
        assert ours.test_loss == pytest.approx(test, rel=close)


def test_a_run_whose_loss_is_not_finite_has_diverged() -> None:
    outcome = real.train(get_task("teacher-regression"), 30, 0, "torch.optim.AdamW", 1e30)
    assert outcome.diverged
    assert outcome.loss == np.inf


def test_a_decade_off_start_is_a_decade_off_and_the_rest_is_the_optimizers_default() -> None:
    values = real.default_values("torch.optim.AdamW")
    assert values["learning_rate"] == 1e-3
    assert values["one_minus_beta2"] == pytest.approx(1e-3)
    assert set(real.default_values("lhopt.SteerableAdamW")) > set(values)
