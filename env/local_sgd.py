"""Steer how often the workers of local SGD meet, where every meeting has its price."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..core.errors import ConfigurationError
from ..core.types import BoolArray, FloatArray, IntArray
from ..optimizers.local_sgd.features import BATCH_CHOICES, INTERVAL_CHOICES, OBSERVATIONS
from .choices import checked
from .local_sgd_fleet import LENGTHS, WORKERS, Fleet, Tasks
from .local_sgd_rivals import Teacher, evaluate
from .registry import Split

__all__ = ["LocalSGDEnv", "evaluate", "make_env"]

#: Prices are drawn log-uniformly between these, in nats of excess loss per round.
PRICES: tuple[float, float] = (2e-4, 0.03)
#: Rewards are not lower: a run that meets at every step at the highest price would drown the rest.
FLOOR = -5.0
SPLITS: Mapping[Split, int] = {"train": 0, "valid": 1, "test": 2}


class LocalSGDEnv(VectorEnv[FloatArray, IntArray, Any]):
    """Steer the communication of local SGD; an episode is one run on an online logistic regression.

    Tasks differ in curvature, distance, learning rate and its schedule, length, number of workers
    and price of a round (`local_sgd_fleet.Tasks`). The runs of a bucket share task, price and
    samples; the buckets of a fleet share length and number of workers. A run is cut into 32 equal
    parts, and one decision stands at the start of each: decisions do not depend on anything that
    one worker alone knows, so that all workers of a real run come to the same.

    Action: `MultiDiscrete([6, 3])`. The interval: times 1/8, 1/2, 1, 2, 8, or "sync now", which
    meets at once and keeps the interval. The local batch: times 1/2, 1, 2, within 1 to 8 times the
    first; the learning rate stays, and steps become as much rarer, so that all runs compute
    equally much. In half of the buckets the batch stays as it is, and the observation says so.
    Observation: `Box(-3, 3, (16,), float32)`, `optimizers.local_sgd.features.OBSERVATIONS`. Drift,
    cosine and learning rate are those of the last meeting.
    Reward: 0, and at the end the log of initial over final excess loss, minus price times rounds;
    at least -5. The final loss is exact, at the average iterate of the run's second half.
    Terminated: the run has computed all its gradients. Truncated: never.
    Info at the end: "final_obs", "cost" (log excess loss + price * rounds), "rounds".

    Args:
        split: Which problems; the splits have no problem in common.
        n_fleets: Fleets, stepped one after the other.
        buckets: Buckets of each fleet.
        runs_per_bucket: Runs of each bucket.
        seed: Of everything that is drawn; same seed, same episodes.

    Raises:
        ConfigurationError: An unknown split, or a size below 1.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    observation_names = OBSERVATIONS
    action_choices: Mapping[str, tuple[float | int | str, ...]] = {
        "interval": INTERVAL_CHOICES,
        "local_batch": BATCH_CHOICES,
    }

    def __init__(
        self,
        split: Split = "train",
        *,
        n_fleets: int = 2,
        buckets: int = 8,
        runs_per_bucket: int = 8,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS or min(n_fleets, buckets, runs_per_bucket) < 1:
            raise ConfigurationError(
                f"split={split!r}, n_fleets={n_fleets}, buckets={buckets}, "
                f"runs_per_bucket={runs_per_bucket}: split must be one of {', '.join(SPLITS)}, "
                "the sizes must be >= 1."
            )
        self.split, self.buckets, self.runs_per_bucket = split, buckets, runs_per_bucket
        self.n_fleets, self.n_buckets = n_fleets, n_fleets * buckets
        self.num_envs = self.n_buckets * runs_per_bucket
        self.single_observation_space = gym.spaces.Box(-3.0, 3.0, (len(OBSERVATIONS),), np.float32)
        self.single_action_space = gym.spaces.MultiDiscrete(
            [len(choices) for choices in self.action_choices.values()]
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._seed, self._count = seed, 0
        self.fleets: list[Fleet] = []
        self._teachers: dict[int, Teacher] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw new tasks everywhere."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._count = seed, 0
        self._draw()
        return self._observe(), {}

    def step(
        self, actions: IntArray
    ) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Carry out one decision per run and go on until the next.

        Raises:
            ConfigurationError: `reset` was never called.
            ControlError: Not one action per run, or a choice that there is not.
        """
        self._check_begun("step")
        chosen_by_run = checked(actions, self.action_space)
        shape = (self.n_fleets, self.buckets, self.runs_per_bucket, 2)
        for fleet, chosen in zip(self.fleets, chosen_by_run.reshape(shape), strict=True):
            fleet.decide(chosen)
            fleet.run()
        reward, over = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        info: dict[str, Any] = {}
        if self.fleets[0].finished:
            over[:] = True
            cost = np.stack([fleet.cost() for fleet in self.fleets])
            start = np.stack([fleet.log_start() for fleet in self.fleets])
            reward = np.maximum(start - cost, FLOOR).reshape(-1)
            info = {
                "final_obs": self._observe(),
                "cost": cost.reshape(-1),
                "rounds": np.stack([fleet.rounds for fleet in self.fleets]).reshape(-1),
            }
            info |= {f"_{name}": over.copy() for name in info}
            self._draw()
        return self._observe(), reward, over, np.zeros_like(over), info

    def expert(self) -> IntArray:
        """`(num_envs, 2)` choices that lead to the best of many schedules, found by search.

        Raises:
            ConfigurationError: `reset` was never called.
        """
        self._check_begun("expert")
        labels = []
        for i, fleet in enumerate(self.fleets):
            if i not in self._teachers:
                self._teachers[i] = Teacher(fleet, [self._seed, self._count, i])
            labels.append(self._teachers[i].label(fleet))
        return np.concatenate(labels).reshape(self.num_envs, 2)

    def _check_begun(self, asked: str) -> None:
        if not self.fleets:
            raise ConfigurationError(f"{asked}() before reset(): call reset() once, first.")

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, picklable."""
        return {"seed": self._seed, "count": self._count, "fleets": copy.deepcopy(self.fleets)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._seed, self._count = state["seed"], state["count"]
        self.fleets, self._teachers = copy.deepcopy(state["fleets"]), {}

    def _draw(self) -> None:
        shape = (self.buckets, self.runs_per_bucket)
        self.fleets, self._teachers = [], {}
        for i in range(self.n_fleets):
            key = [self._seed, SPLITS[self.split], self._count, i]
            rng = np.random.default_rng(key)
            tasks = Tasks.draw(
                rng, self.buckets, int(rng.choice(LENGTHS)), int(rng.choice(WORKERS))
            )
            prices = np.exp(rng.uniform(np.log(PRICES[0]), np.log(PRICES[1]), (self.buckets, 1)))
            may = rng.random((self.buckets, 1)) < 0.5
            self.fleets.append(
                Fleet(tasks, np.broadcast_to(prices, shape), np.broadcast_to(may, shape), [*key, 1])
            )
        self._count += 1

    def _observe(self) -> FloatArray:
        stacked = np.stack([fleet.observation() for fleet in self.fleets])
        return stacked.reshape(self.num_envs, len(OBSERVATIONS))


def make_env(split: Split, n_envs: int, seed: int, *, runs_per_bucket: int = 8) -> LocalSGDEnv:
    """The environment of `lhopt train --env local-sgd`: two fleets of `n_envs / 2` runs.

    Raises:
        ConfigurationError: `n_envs` is no multiple of `2 * runs_per_bucket`.
    """
    if runs_per_bucket < 1 or n_envs < 1 or n_envs % (2 * runs_per_bucket):
        raise ConfigurationError(
            f"n_envs={n_envs}, runs_per_bucket={runs_per_bucket}: n_envs must be a multiple of "
            "2 * runs_per_bucket."
        )
    return LocalSGDEnv(
        split,
        buckets=n_envs // (2 * runs_per_bucket),
        runs_per_bucket=runs_per_bucket,
        seed=seed,
    )
