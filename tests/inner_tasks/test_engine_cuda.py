"""The engine on an accelerator against the CPU, which is the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lhopt.benchmarks.finished_runs import Run, train
from lhopt.benchmarks.tuning import Setting
from lhopt.env.config import EnvConfig
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskPool, TaskSpec
from lhopt.env.vector import HyperparameterVectorEnv
from lhopt.inner_tasks import get_task
from lhopt.inner_tasks.engine import BatchedRuns, Settings
from lhopt.inner_tasks.registry import families
from lhopt.optimizers.update import ADAMW, STEERABLE, StepRule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FAMILIES = sorted(family.name for family in families(available_only=True))


@pytest.mark.parametrize("rule", [ADAMW, STEERABLE], ids=["adamw", "steerable"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_there_as_on_the_cpu(family: str, rule: StepRule) -> None:
    task = get_task(f"{family}/0")
    settings = Settings(learning_rate=1e-3)
    runs = [BatchedRuns(task, [1, 2, 3], settings, rule=rule, device=d) for d in ("cpu", "cuda")]
    seen = [r.advance(4, measured=[3]) for r in runs]
    np.testing.assert_allclose(seen[1].losses, seen[0].losses, rtol=2e-3, atol=1e-5)
    assert np.isfinite(seen[1].moments).all()
    mine, theirs = (r.evaluate("outer_valid", limit=256) for r in runs)
    np.testing.assert_allclose(theirs, mine, rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["glyphs-mlp", "zipf-bilinear", "signal-conv", "parity-rnn"])
def test_a_recorded_gradient_gives_the_same_numbers_there(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for patience in (10**9, 2):
        monkeypatch.setattr("lhopt.inner_tasks.tracing.PATIENCE", patience)
        runs = BatchedRuns(get_task(f"{family}/0"), [1, 2], rule=STEERABLE, device="cuda")
        losses.append(runs.advance(6).losses)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_bucket_of_thousands_of_runs_is_steered_there() -> None:
    spec = TaskSpec("glyphs-mlp/3", 60)
    frontier = Frontier(
        task=spec.task, steps=60, budgets=(0.5, 1.0, 2.0), losses=(2.0, 1.0, 0.5),
        best_rates=(0.1, 0.1, 0.1), noise=0.1, untrained=3.0, rates=(0.01, 0.1, 1.0),
    )  # fmt: skip
    config = EnvConfig(optimizer="lhopt.SteerableAdamW", group_size=8, privileged=True)
    pool = TaskPool([Entry(spec, get_task(spec.task), frontier)])
    env = HyperparameterVectorEnv(
        pool, config, n_buckets=1, runs_per_bucket=2048, device="cuda", seed=1
    )
    env.reset()
    done = np.zeros(2048, bool)
    for _ in range(60):
        observation, reward, done, _, _ = env.step(np.full((2048, len(config.controls)), 0))
        assert np.isfinite(observation).all()
        if done.any():
            break
    assert done.all()
    assert np.isfinite(reward).all()
    state = env.state()
    env.load_state(state)


def test_finished_runs_agree() -> None:
    task = get_task("digits-mlp")
    runs = [Run(Setting(rate), seed, 40) for rate in (1e-3, 1e-2) for seed in (0, 1)]
    np.testing.assert_allclose(train(task, runs, device="cuda"), train(task, runs), rtol=5e-3)
