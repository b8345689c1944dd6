"""Warm start in any environment that knows good actions: clone them, from any state.

Runs are steered by a mixture of expert, chance and the policy itself, and the expert labels every
state on the way (DAgger: Ross et al., 2011, arXiv:1011.0686).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.types import BoolArray, FloatArray, IntArray
from .imitation import ACTOR, actor_logits
from .learner import HyperparameterPolicy, PaddedCategorical
from .ranges import COUNT, POSITIVE, SHARE, Numbers, check_ranges

RANGES: dict[str, Numbers] = {
    "steps": COUNT,
    "rounds": COUNT,
    "passes": COUNT,
    "batch": COUNT,
    "policy_share": SHARE,
    "chance": SHARE,
    "learning_rate": POSITIVE,
}


@dataclass(frozen=True)
class CloningConfig:
    """How the warm start is made.

    Attributes:
        steps: Decisions collected per environment and round; at least an episode's.
        rounds: Rounds of collecting runs and fitting.
        passes: Passes over everything collected, after each round.
        batch: Episodes per minibatch.
        policy_share: Share of runs that the policy steers, from the second round on.
        chance: Share of random actions among the expert's.
        learning_rate: Of Adam in the fit, falling linearly to a tenth.
    """

    steps: int = 50
    rounds: int = 12
    passes: int = 3
    batch: int = 128
    policy_share: float = 0.7
    chance: float = 0.15
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)


@dataclass(frozen=True)
class Episodes:
    """Episodes from their first observation on, padded to one length.

    Attributes:
        observation: `(T, N, F)`.
        label: `(T, N, heads)` int64; -1 is nothing to learn.
    """

    observation: Tensor
    label: Tensor


def clone(
    policy: HyperparameterPolicy,
    env: Any,
    config: CloningConfig,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> list[float]:
    """Fit the actor to the environment's expert, in place; returns the loss after each round.

    Args:
        policy: Whose actor is fitted; the critic is left alone.
        env: A SAME_STEP vector environment with `expert()` (`env.registry.Taught`).
        config: Sizes.
        seed: Of everything that is drawn here.
        progress: Called with "imitation", done, total and the loss.
    """
    actor = [p for name, p in policy.named_parameters() if name.startswith(ACTOR)]
    optimizer = torch.optim.Adam(actor, lr=config.learning_rate)
    rng = np.random.default_rng([seed, 78])
    collected: list[Episodes] = []
    losses: list[float] = []
    for turn in range(config.rounds):
        share = config.policy_share if turn else 0.0
        collected.append(_collect(policy, env, config, share, rng))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1.0 - 0.9 * turn / config.rounds)
        losses.append(_fit(policy, optimizer, actor, collected, config, rng))
        if progress:
            progress("imitation", turn + 1, config.rounds, losses[-1])
    return losses


def _collect(
    policy: HyperparameterPolicy,
    env: Any,
    config: CloningConfig,
    policy_share: float,
    rng: np.random.Generator,
) -> Episodes:
    """Steer every row for `config.steps` decisions and note what the expert would have done."""
    sizes = _sizes(policy)
    k, discrete = env.num_envs, len(env.single_action_space.shape) == 0
    observation, _ = env.reset()
    started = np.ones(k, bool)
    width = policy.lstm_actor.hidden_size
    state = (torch.zeros(1, k, width), torch.zeros(1, k, width))
    by_policy = rng.random(k) < policy_share
    seen: list[FloatArray] = []
    labels: list[IntArray] = []
    starts: list[BoolArray] = []
    for _ in range(config.steps):
        label = np.asarray(env.expert(), np.int64).reshape(k, len(sizes))
        seen.append(np.asarray(observation, np.float32))
        labels.append(label)
        starts.append(started)
        with torch.no_grad():
            keep = torch.from_numpy(~started).float()[None, :, None]
            x = torch.from_numpy(seen[-1])[None]
            output, state = policy.lstm_actor(x, (keep * state[0], keep * state[1]))
            logits = policy.action_net(policy.mlp_extractor.forward_actor(output))[0]
        chance = np.stack([rng.integers(0, n, k) for n in sizes], axis=1)
        own = np.stack([_draw(part, rng) for part in torch.split(logits, sizes, 1)], axis=1)
        wander = (rng.random(k) < config.chance)[:, None] | (label < 0)
        # a run has one driver for its whole life, or the expert would mend every wandering
        action = np.where(by_policy[:, None], own, np.where(wander, chance, label))
        observation, _, started, _, _ = env.step(action[:, 0] if discrete else action)
        by_policy = np.where(started, rng.random(k) < policy_share, by_policy)
    return _episodes(np.stack(seen), np.stack(labels), np.stack(starts))


def _sizes(policy: HyperparameterPolicy) -> list[int]:
    """Choices of each head."""
    assert isinstance(policy.action_dist, PaddedCategorical)
    return list(policy.action_dist.action_dims)


def _draw(logits: Tensor, rng: np.random.Generator) -> IntArray:
    """One choice per row, by its probability (Gumbel's trick)."""
    scores = logits.double().numpy() + rng.gumbel(size=logits.shape)
    return np.asarray(scores.argmax(axis=1))


def _episodes(observation: FloatArray, label: IntArray, starts: BoolArray) -> Episodes:
    """Cut `(T, K, ...)` rows at their starts into padded episodes."""
    length, k = starts.shape
    pieces = []
    for row in range(k):
        cuts = [*np.flatnonzero(starts[:, row]).tolist(), length]
        pieces += [(row, a, b) for a, b in pairwise(cuts)]
    longest = max(b - a for _, a, b in pieces)
    x = np.zeros((longest, len(pieces), observation.shape[2]), np.float32)
    y = np.full((longest, len(pieces), label.shape[2]), -1, np.int64)
    for i, (row, a, b) in enumerate(pieces):
        x[: b - a, i] = observation[a:b, row]
        y[: b - a, i] = label[a:b, row]
    return Episodes(torch.from_numpy(x), torch.from_numpy(y))


def _fit(
    policy: HyperparameterPolicy,
    optimizer: torch.optim.Optimizer,
    actor: Sequence[Tensor],
    collected: list[Episodes],
    config: CloningConfig,
    rng: np.random.Generator,
) -> float:
    """Cross-entropy to the labels; returns the last pass's mean over minibatches."""
    sizes = _sizes(policy)
    batches: list[tuple[Episodes, Tensor]] = [
        (episodes, rows)
        for episodes in collected
        for rows in torch.split(torch.arange(episodes.label.shape[1]), config.batch)
    ]
    mean = float("nan")
    for _ in range(config.passes):
        total = 0.0
        for i in rng.permutation(len(batches)):
            episodes, rows = batches[i]
            logits = actor_logits(policy, episodes.observation[:, rows])
            label = episodes.label[:, rows]
            losses = [
                torch.nn.functional.cross_entropy(
                    part.flatten(0, 1), label[..., j].flatten(), ignore_index=-1
                )
                for j, part in enumerate(torch.split(logits, sizes, -1))
                if (label[..., j] >= 0).any()  # a mean over no labels is nan
            ]
            if not losses:
                continue
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(actor, 1.0)
            optimizer.step()
            total += float(loss.detach())
        mean = total / len(batches)
    return mean
