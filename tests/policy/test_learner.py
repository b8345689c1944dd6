from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from torch import Tensor

from lhopt.core.controls import get_controls
from lhopt.core.features import FEATURES
from lhopt.env.pool import TaskPool
from lhopt.policy.imitation import actor_logits
from lhopt.policy.learner import HyperparameterPolicy, Leaning, PaddedCategorical
from lhopt.policy.runtime import forward
from lhopt.policy.train import Trainer
from lhopt.policy.train_config import TrainConfig

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


def leaning_policy(runs: int, lean: float) -> tuple[HyperparameterPolicy, Tensor, RNNStates]:
    """A policy, what its runs observe, and their first state."""
    controls = get_controls(["learning_rate", "eps", "clip_ratio"])
    policy = HyperparameterPolicy(
        spaces.Box(-3, 3, (10,), np.float32),
        spaces.MultiDiscrete([len(c.choices) for c in controls]),
        lambda _: 1e-3,
        controls=controls,
        n_features=5,
        lean=lean,
        lstm_hidden_size=8,
        enable_critic_lstm=True,
    )
    zeros = (torch.zeros(1, runs, 8), torch.zeros(1, runs, 8))
    return policy, torch.randn(runs, 10), RNNStates(zeros, zeros)


def test_a_run_that_leans_goes_one_way_and_for_given_logits_choices_are_as_likely() -> None:
    torch.manual_seed(0)
    runs, steps, share = 4000, 20, 0.2
    policy, observation, states = leaning_policy(runs, share)
    zeros = (torch.zeros(1, runs, 8), torch.zeros(1, runs, 8))
    observation[:, :7] = observation[0, :7]  # runs differ by how they lean alone
    z, starts = observation[:, -3:], torch.ones(runs)
    counts = torch.zeros(3, 9)
    total = torch.zeros(runs, 3)
    with torch.no_grad():
        found, _ = policy.get_distribution(observation, zeros, starts)
        assert isinstance(found, PaddedCategorical)
        plain = found.log_p
        for _ in range(steps):
            actions, value, log_prob, _ = policy(observation, states, starts)
            chosen = plain.gather(-1, actions[:, :, None])[..., 0].sum(-1)
            torch.testing.assert_close(log_prob, chosen)
            again = policy.evaluate_actions(observation, actions, states, starts)
            torch.testing.assert_close(again[:2], (value, log_prob))
            counts += torch.nn.functional.one_hot(actions, 9).sum(0)
            total += actions
        likeliest = policy(observation, states, starts, deterministic=True)[0]
    # over runs the choices are drawn from the policy's own distribution
    torch.testing.assert_close(counts / (runs * steps), plain[0].exp(), rtol=0, atol=0.02)
    for j in range(3):
        assert torch.corrcoef(torch.stack([z[:, j], total[:, j]]))[0, 1] > 0.5
    # neither actor nor critic is told
    assert float(value.std()) < 1e-6
    assert policy.lstm_critic is not None
    assert policy.lstm_critic.input_size == 7
    assert policy.lstm_actor.input_size == 5
    # what is deterministic does not lean
    assert torch.equal(likeliest, plain.argmax(-1))


def test_leaning_lets_lasting_changes_stand_out_of_the_noise() -> None:
    """What each move up pays little, next to a run's noise: the gradient's common part is clearer.

    With share s over T decisions by the root of 1 + (T - 1) s, which the draws here come near to.
    """
    controls, steps, runs, visits = get_controls(["learning_rate"]), 20, 64, 300
    moves = torch.arange(9.0) - 4.0

    def signal_to_noise(share: float) -> float:
        torch.manual_seed(0)
        dist = PaddedCategorical([9]).proba_distribution(-0.5 * moves[None] ** 2)
        p = dist.log_p[0, 0].exp()
        found = []
        for _ in range(visits):
            z = torch.randn(runs, 1)
            taken = []
            for _ in range(steps):
                if share:
                    dist.drawn_by = Leaning(controls, share).draw(z)
                dist.proba_distribution((-0.5 * moves[None] ** 2).expand(runs, -1))
                taken.append(moves[dist.sample()[:, 0]])
            total = torch.stack(taken).sum(0) - steps * (p * moves).sum()
            reward = 0.05 * total + 2.0 * torch.randn(runs)
            found.append(float(((reward - reward.mean()) * total).mean()))
        return float(np.mean(found) / np.std(found))

    gain = signal_to_noise(0.2) / signal_to_noise(0.0)
    assert gain == pytest.approx((1 + 19 * 0.2) ** 0.5, rel=0.25)


@pytest.fixture(scope="module")
def trainer(pool: TaskPool, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """After one update: its rollout buffer is full, with episodes that start in the middle."""
    config = TrainConfig(
        updates=1, n_buckets=2, runs_per_bucket=4, group_size=2, n_steps=10, batch_size=20,
        n_epochs=1, lstm=8, imitation=None, critic_warmup=0, env={"intervals": [4, 6]},
    )  # fmt: skip
    folder: Path = tmp_path_factory.mktemp("learner")
    trainer = Trainer(config, folder, pool)
    trainer.learn()
    return trainer


def test_the_actor_sees_the_features_alone_and_the_critic_all(trainer: Trainer) -> None:
    policy: Any = trainer.model.policy
    n, k = len(FEATURES), trainer.vec.num_envs
    assert policy.lstm_actor.input_size == n
    shape = trainer.vec.observation_space.shape
    assert shape is not None
    assert policy.lstm_critic.input_size == shape[0] > n
    first = torch.from_numpy(np.asarray(trainer.model._last_obs))
    other = first.clone()
    other[:, n:] = torch.randn(other[:, n:].shape, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(1, k, 8), torch.zeros(1, k, 8)
    with torch.no_grad():
        a, b = (policy.get_distribution(x, zeros, torch.ones(k))[0].log_p for x in (first, other))
        values = [policy.predict_values(x, zeros, torch.ones(k)) for x in (first, other)]
        alone = actor_logits(policy, first[None, :, :n])[0]
    assert torch.equal(a, b)
    assert not torch.equal(*values)
    blind = PaddedCategorical([len(c.choices) for c in trainer.env_config.controls])
    assert torch.equal(blind.proba_distribution(alone).log_p, a)


def test_the_exported_actor_is_the_learners(trainer: Trainer) -> None:
    state = trainer.model.policy.state_dict()
    trainer.averaged = {key: value.clone() for key, value in state.items()}
    exported = trainer.export(best=False)
    assert exported.weights["lstm.weight_ih"].shape == (4 * 8, len(FEATURES))
    twin: Any = trainer.model.policy
    # the learner's two biases are one in the file: put it back as one, and nothing else differs
    with torch.no_grad():
        twin.lstm_actor.bias_ih_l0.add_(twin.lstm_actor.bias_hh_l0)
        twin.lstm_actor.bias_hh_l0.zero_()
    x = torch.randn(5, 3, len(FEATURES), generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    with torch.no_grad():
        learners = actor_logits(twin, x)
        for name, tensor in exported_tensors(exported.weights).items():
            twin.get_parameter(name).copy_(tensor)
        assert torch.equal(actor_logits(twin, x), learners)
    hidden = cell = np.zeros((3, 8), np.float32)
    for t in range(5):
        hidden, cell, logits = forward(exported, hidden, cell, x[t].numpy())
        np.testing.assert_allclose(logits, learners[t].numpy(), atol=1e-5)


def exported_tensors(weights: Any) -> dict[str, torch.Tensor]:
    """A policy file's tensors under the learner's names."""
    names = {
        "lstm_actor.weight_ih_l0": "lstm.weight_ih",
        "lstm_actor.weight_hh_l0": "lstm.weight_hh",
        "lstm_actor.bias_ih_l0": "lstm.bias",
        "mlp_extractor.policy_net.0.weight": "hidden.weight",
        "mlp_extractor.policy_net.0.bias": "hidden.bias",
        "action_net.weight": "head.weight",
        "action_net.bias": "head.bias",
    }
    return {name: torch.from_numpy(weights[key]) for name, key in names.items()}


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

    def original(features: torch.Tensor, states: Any, starts: Any, lstm: Any) -> Any:
        """Which knows no columns that are the critic's alone."""
        return RecurrentActorCriticPolicy._process_sequence(
            features[:, : lstm.input_size], states, starts, lstm
        )

    for process in (HyperparameterPolicy._process_sequence, original):
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
