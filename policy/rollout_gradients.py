"""The policy gradients of groups of runs, from rollouts of a training that stands still."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from ..core.errors import ConfigurationError
from ..core.types import FloatArray, IntArray
from .gradient_noise import FEWEST_TASKS
from .imitation import ACTOR
from .learner import HyperparameterPolicy
from .train import Trainer
from .train_config import TrainConfig

logger = logging.getLogger("lhopt")

#: Fewer decisions than this of a visit inside one rollout are left out: they are the edge of it.
SHORTEST = 5
#: As stable-baselines3 has it, where it normalises advantages.
_TINY = 1e-8


@dataclass(frozen=True)
class RolloutGradients:
    """Gradients of groups of runs, by visit: what of one episode lies in one rollout.

    Attributes:
        gradients: `(visits, groups, parameters)`, float32.
        tasks: `(visits,)`, names.
        group_size: Runs of a group.
        updates: Rollouts.
    """

    gradients: FloatArray = field(repr=False)
    tasks: tuple[str, ...]
    group_size: int
    updates: int

    @property
    def visits_per_update(self) -> float:
        """Visits of a rollout, on average."""
        return len(self.tasks) / self.updates


def check_groups(config: TrainConfig) -> None:
    """Refuse a training whose buckets are one group of runs.

    Raises:
        ConfigurationError: It is.
    """
    if (config.group_size or config.runs_per_bucket) == config.runs_per_bucket:
        raise ConfigurationError(
            f"This training has group_size {config.group_size} and runs_per_bucket "
            f"{config.runs_per_bucket}, one group to a task: what a task's groups share cannot be "
            "told from noise. Name a training with two groups or more to a bucket."
        )


def check_readable(config: TrainConfig, updates: int, tasks: Sequence[str]) -> None:
    """Refuse a training whose policy has not begun to learn, or that has too few tasks.

    Args:
        config: Of the training.
        updates: That it has done.
        tasks: That it draws from, each by name.

    Raises:
        ConfigurationError: As described.
    """
    if updates < config.critic_warmup:
        raise ConfigurationError(
            f"This training is at update {updates}, and its critic learns alone until update "
            f"{config.critic_warmup}: advantages mean little until then. Go on with it first."
        )
    if (n := len(set(tasks))) < FEWEST_TASKS:
        raise ConfigurationError(
            f"This training has {n} tasks; at least {FEWEST_TASKS} are wanted to tell what tasks "
            "have in common. Name one with more."
        )


def check_updates(updates: int) -> None:
    """Refuse to collect nothing.

    Raises:
        ConfigurationError: `updates` is below 1.
    """
    if updates < 1:
        raise ConfigurationError(f"updates is {updates}; at least 1 is wanted.")


def collect(
    trainer: Trainer,
    updates: int,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> RolloutGradients:
    """Collect rollouts as PPO would, with the policy as it is, and take no gradient step.

    Args:
        trainer: Of the training; its episodes go on.
        updates: Rollouts.
        progress: Called with done, total and "updates".

    Raises:
        ConfigurationError: As `check_updates` and `check_groups`; or no visit is long enough,
            or none has a finite gradient.
    """
    check_updates(updates)
    check_groups(trainer.config)
    model, watch = trainer.model, _Watch(trainer)
    model._setup_learn(updates * trainer.per_update, watch, reset_num_timesteps=False)
    gradients, tasks, left_out = [], [], 0
    for done in range(1, updates + 1):
        # on its own: `learn` would follow each rollout with gradient steps
        model.collect_rollouts(trainer.vec, watch, model.rollout_buffer, model.n_steps)
        for task, found in rollout_gradients(trainer, watch.tasks):
            if not np.isfinite(found).all():
                logger.warning("A visit to %s is left out: its gradient is not finite.", task)
                left_out += 1
                continue
            tasks.append(task)
            gradients.append(found)
        if progress:
            progress(done, updates, "updates")
    if not tasks and left_out:
        raise ConfigurationError(
            f"All {left_out} visits have gradients that are not finite: the policy's weights or "
            "what it was paid are not. Name a training that is sound."
        )
    if not tasks:
        raise ConfigurationError(
            f"No episode has {SHORTEST} decisions inside one rollout of {model.n_steps}; name a "
            "training with longer rollouts."
        )
    size = trainer.vec.env.group_size
    return RolloutGradients(np.stack(gradients), tuple(tasks), size, updates)


def rollout_gradients(
    trainer: Trainer, tasks: Sequence[Sequence[str]], *, shortest: int = SHORTEST
) -> Iterator[tuple[str, FloatArray]]:
    """The gradients that the last rollout gives, one visit after another.

    Of the policy term of PPO's loss, without the entropy's, at the weights that collected it, where
    the ratio is 1 and nothing is clipped: minus the sum over decisions of advantage times
    log-probability, mean over a group's runs. Advantages are normalised over the rollout, as PPO
    does over a minibatch. A rollout is cut at the starts of episodes alone, and where it begins the
    state is the one that it was met with.

    Args:
        trainer: Whose rollout buffer is full and has not been read by PPO, which rearranges it.
        tasks: `(n_steps, n_buckets)`, each bucket's task at every decision.
        shortest: Visits of fewer decisions are left out.

    Yields:
        A visit's task and `(groups, parameters)` float32, parameters as in `actor_parameters`.
    """
    buffer, policy = trainer.model.rollout_buffer, trainer.model.policy
    assert isinstance(buffer, RecurrentRolloutBuffer)
    assert isinstance(policy, HyperparameterPolicy)
    env = trainer.vec.env
    advantages = buffer.advantages - buffer.advantages.mean()
    advantages /= buffer.advantages.std(ddof=1) + _TINY
    rows = trainer.vec.places.reshape(env.n_buckets, -1, env.group_size)
    for bucket, groups in enumerate(rows):
        # all runs of a bucket begin together
        starts = 1 + np.flatnonzero(buffer.episode_starts[1:, groups[0, 0]])
        for first, last in pairwise([0, *starts.tolist(), buffer.buffer_size]):
            if last - first < shortest:
                continue
            found = [
                _gradient(policy, buffer, advantages, slice(first, last), group) for group in groups
            ]
            yield tasks[first][bucket], np.stack(found)


def actor_parameters(policy: HyperparameterPolicy) -> list[torch.nn.Parameter]:
    """What the gradients are of: the actor's parameters, in the policy's order."""
    return [p for name, p in policy.named_parameters() if name.startswith(ACTOR)]


def _gradient(
    policy: HyperparameterPolicy,
    buffer: RecurrentRolloutBuffer,
    advantages: FloatArray,
    decisions: slice,
    runs: IntArray,
) -> FloatArray:
    """Of some runs over some decisions in a row, `(parameters,)`."""

    def in_rows(values: FloatArray) -> torch.Tensor:
        """`(runs * decisions, ...)`, run after run, of `(n_steps, num_envs, ...)`."""
        part = values[decisions][:, runs].swapaxes(0, 1)
        return torch.from_numpy(part.reshape(-1, *values.shape[2:]))

    def at_first(states: FloatArray) -> torch.Tensor:
        """`(layers, runs, width)`, of `(n_steps, layers, num_envs, width)`."""
        return torch.from_numpy(np.ascontiguousarray(states[decisions.start][:, runs]))

    observations = in_rows(buffer.observations)
    distribution, _ = policy.get_distribution(
        observations,
        (at_first(buffer.hidden_states_pi), at_first(buffer.cell_states_pi)),
        in_rows(buffer.episode_starts),
    )
    log_p = distribution.log_prob(in_rows(buffer.actions))
    loss = -(log_p * in_rows(advantages)).sum() / len(runs)
    parts = torch.autograd.grad(loss, actor_parameters(policy))
    return torch.cat([part.flatten() for part in parts]).numpy()


class _Watch(BaseCallback):
    """Which task each bucket trains at every decision of a rollout.

    Attributes:
        tasks: `(decisions so far, n_buckets)`.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self._env = trainer.vec.env
        self._now: tuple[str, ...] = ()
        self.tasks: list[tuple[str, ...]] = []

    def _on_rollout_start(self) -> None:
        self.tasks, self._now = [], self._env.tasks

    def _on_step(self) -> bool:
        self.tasks.append(self._now)
        if self.locals["dones"].any():  # the next decision is of what was drawn then
            self._now = self._env.tasks
        return True
