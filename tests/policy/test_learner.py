from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import MultiCategoricalDistribution

from lhopt.core.controls import get_controls
from lhopt.env.pool import TaskPool
from lhopt.policy.learner import HyperparameterPolicy, PaddedCategorical
from lhopt.policy.train import TrainConfig, Trainer

DIMS = [9, 3, 5, 1]


def test_padded_heads_equal_a_list_of_categoricals() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, sum(DIMS), generator=generator, dtype=torch.float64) * 2
    actions = torch.stack([torch.randint(n, (32,), generator=generator) for n in DIMS], 1)
    results = []
    for make in (PaddedCategorical, MultiCategoricalDistribution):
        x = logits.clone().requires_grad_()
        distribution = make(DIMS).proba_distribution(x)
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        (gradient,) = torch.autograd.grad((log_prob * 0.7 + entropy.square()).sum(), x)
        results.append((log_prob, entropy, gradient, distribution.mode()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padded_samples_follow_the_probabilities_and_stay_inside() -> None:
    torch.manual_seed(0)
    logits = torch.arange(sum(DIMS)).float().div(5).repeat(8000, 1)
    distribution = PaddedCategorical(DIMS).proba_distribution(logits)
    drawn = distribution.sample()
    start = 0
    for j, n in enumerate(DIMS):
        share = torch.bincount(drawn[:, j], minlength=n) / len(drawn)
        assert len(share) == n
        torch.testing.assert_close(
            share, logits[0, start : start + n].softmax(0), rtol=0, atol=0.02
        )
        start += n


def test_the_first_policy_mostly_holds() -> None:
    controls = get_controls(["learning_rate", "eps"])
    policy = HyperparameterPolicy(
        spaces.Box(-3, 3, (7,), np.float32),
        spaces.MultiDiscrete([9, 3]),
        lambda _: 1e-3,
        controls=controls,
        hold=0.7,
        lstm_hidden_size=8,
        enable_critic_lstm=True,
    )
    state = torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)
    observation = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    distribution, _ = policy.get_distribution(observation, state, torch.ones(4))
    assert isinstance(distribution, PaddedCategorical)
    p = distribution.log_p.exp()
    torch.testing.assert_close(p[:, 0, 4], torch.full((4,), 0.7), rtol=0, atol=0.02)
    torch.testing.assert_close(p[:, 1, 1], torch.full((4,), 0.7), rtol=0, atol=0.02)
    assert (p[:, 0, 5] > p[:, 0, 8]).all()  # small moves before large ones
    torch.testing.assert_close(p.sum(-1), torch.ones(4, 2))


@pytest.fixture(scope="module")
def trainer(pool: TaskPool, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """After one update: its rollout buffer is full, with episodes that start in the middle."""
    config = TrainConfig(
        updates=1, n_buckets=2, runs_per_bucket=4, n_steps=10, batch_size=20, n_epochs=1, lstm=8,
        imitation=None, critic_warmup=0, env={"intervals": [4, 6]},
    )  # fmt: skip
    folder: Path = tmp_path_factory.mktemp("learner")
    trainer = Trainer(config, folder, pool)
    trainer.learn()
    return trainer


def test_one_call_per_sequence_equals_the_walk_through_time(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = trainer.model.policy
    torch.manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    buffer: Any = trainer.model.rollout_buffer
    batches = list(buffer.get(20))
    assert len(batches) == 4
    inner_starts = buffer.episode_starts.reshape(-1, 10)[:, 1:]
    assert inner_starts.any()
    results = []
    for process in (
        HyperparameterPolicy._process_sequence,
        RecurrentActorCriticPolicy._process_sequence,
    ):
        monkeypatch.setattr(HyperparameterPolicy, "_process_sequence", staticmethod(process))
        rows = []
        for batch in batches:
            values, log_prob, entropy = policy.evaluate_actions(
                batch.observations, batch.actions, batch.lstm_states, batch.episode_starts
            )
            mask = batch.mask > 1e-8
            rows += [values.flatten()[mask], log_prob[mask], entropy[mask]]
            policy.zero_grad()
            loss = (values.flatten() * 0.3 + log_prob + entropy.square())[mask].sum()
            torch.autograd.backward(loss)
            rows += [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        results.append(rows)
    assert len(results[0]) > 4 * 12
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
