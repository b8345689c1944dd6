"""Many steered runs at once, as a native Gymnasium vector environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..core.actions import action_deltas
from ..core.errors import ConfigurationError
from ..core.features import BOUND, FEATURES
from ..core.types import BoolArray, FloatArray, IntArray
from .choices import checked
from .config import EnvConfig
from .episode import Episode, draw
from .pool import TaskPool
from .privileged import PrivilegedView


def observation_space() -> gym.spaces.Box:
    """All features, in the order of `core.features.FEATURES`, in [-3, 3]."""
    return gym.spaces.Box(-BOUND, BOUND, (len(FEATURES),), np.float32)


def action_space(config: EnvConfig) -> gym.spaces.MultiDiscrete:
    """One choice per control that `config` steers."""
    return gym.spaces.MultiDiscrete([len(c.choices) for c in config.controls])


def spaces_of(pool: TaskPool, config: EnvConfig) -> tuple[gym.spaces.Box, gym.spaces.MultiDiscrete]:
    """Observations of one run, with the columns that only a critic may see, and its actions."""
    width = len(FEATURES) + (PrivilegedView(pool, config).size if config.privileged else 0)
    return gym.spaces.Box(-BOUND, BOUND, (width,), np.float32), action_space(config)


class HyperparameterVectorEnv(VectorEnv[FloatArray, IntArray, Any]):
    """Steer many inner training runs at once; an episode is one run.

    The runs live in buckets: the runs of a bucket share task, length and number of decisions, and
    differ in seed, data order and hidden starting hyperparameters. All of a bucket end together;
    it then draws a new task at once (SAME_STEP autoreset).

    Action: `MultiDiscrete`, one index per steered control (`core/controls.py`, `choices`).
    Observation: `Box(-3, 3, (n_features,), float32)`, in the order of `core.features.FEATURES`;
        with `config.privileged`, `PrivilegedView.size` columns follow that only a critic may see.
    Reward: 0, and at the last step log2 of the speed against the task's frontier, in
        `config.speed_bounds` ([-3, 2]).
    Terminated: the inner run has made all its steps. A diverged run waits, frozen, for its bucket.
    Truncated: never.
    Info at the end: "final_obs", "final_loss", "task", "speed" (log2), and "diverged".

    Args:
        pool: Tasks to draw from.
        config: Which optimizer, schedule and controls.
        n_buckets: Buckets.
        runs_per_bucket: Runs in each; 32 or more, or batching gains little.
        seed: Of everything that is drawn; same seed, same episodes.
        device: Where the runs live.
        first_bucket: Number of the first bucket: what a bucket draws depends on its number alone,
            so buckets can be shared out over environments (`ShardedVectorEnv`).

    Raises:
        ConfigurationError: No bucket, no run, or a bucket that is not whole groups.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        pool: TaskPool,
        config: EnvConfig | None = None,
        *,
        n_buckets: int = 4,
        runs_per_bucket: int = 32,
        seed: int = 0,
        device: str = "cpu",
        first_bucket: int = 0,
    ) -> None:
        if n_buckets < 1 or runs_per_bucket < 1:
            raise ConfigurationError(
                f"n_buckets={n_buckets}, runs_per_bucket={runs_per_bucket}: both must be >= 1."
            )
        self.pool, self.config, self.device = pool, config or EnvConfig(), device
        #: Neighbouring runs whose rewards are each other's baseline.
        self.group_size = self.config.group_size or runs_per_bucket
        if runs_per_bucket % self.group_size:
            raise ConfigurationError(
                f"runs_per_bucket={runs_per_bucket} with group_size={self.group_size}: a bucket "
                "must be whole groups. Give a multiple of group_size, or group_size=None."
            )
        self.privileged = PrivilegedView(pool, self.config) if self.config.privileged else None
        self.n_buckets, self.runs_per_bucket = n_buckets, runs_per_bucket
        self.num_envs = n_buckets * runs_per_bucket
        self.single_observation_space, self.single_action_space = spaces_of(pool, self.config)
        width = self.single_observation_space.shape[0]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._seed, self._first = seed, first_bucket
        self._episodes: list[Episode] = []
        self._counts = [0] * n_buckets
        self._observation = np.zeros((self.num_envs, width), np.float32)

    @property
    def groups(self) -> IntArray:
        """`(num_envs,)` the bucket of each run."""
        return np.repeat(np.arange(self.n_buckets), self.runs_per_bucket)

    @property
    def tasks(self) -> tuple[str, ...]:
        """`(n_buckets,)` the name of the task that each bucket trains now."""
        return tuple(episode.task.name for episode in self._episodes)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw new episodes everywhere and run their first interval."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._counts = seed, [0] * self.n_buckets
        self._episodes = [self._draw(b) for b in range(self.n_buckets)]
        for b, episode in enumerate(self._episodes):
            self._observation[self._rows(b)] = self._seen(episode)
        return self._observation.copy(), {}

    def step(
        self, actions: IntArray
    ) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Carry out one decision per run and train one interval.

        Raises:
            ConfigurationError: `reset` was never called.
            ControlError: Not one action per run, or a choice that there is not.
        """
        if not self._episodes:
            raise ConfigurationError("step() before reset(): call reset() once, first.")
        # all of them before any bucket goes on: what is refused changes nothing
        actions = checked(actions, self.action_space)
        deltas = action_deltas(actions, self.config.controls)
        reward = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, bool)
        info: dict[str, Any] = {}
        for b in range(self.n_buckets):
            rows, episode = self._rows(b), self._episodes[b]
            episode.step(deltas[rows])
            self._observation[rows] = self._seen(episode)
            if episode.finished:
                reward[rows], terminated[rows] = episode.reward, True
                self._report(info, rows, episode)
                self._episodes[b] = self._draw(b)
                self._observation[rows] = self._seen(self._episodes[b])
        return self._observation.copy(), reward, terminated, np.zeros_like(terminated), info

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, picklable: running episodes, counts, weights.

        The pool's weights are among it, because those that even out cost were measured.
        """
        return {
            "weights": self.pool.weights.copy(),
            "seed": self._seed,
            "counts": list(self._counts),
            "episodes": [(e.task.name, e.steps, e.state()) for e in self._episodes],
            "observation": self._observation.copy(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; the pool must be the same.

        Raises:
            ConfigurationError: The state is of other buckets.
        """
        self._check_state(state)
        self.pool = self.pool.weighted(state["weights"])
        self._seed, self._counts = state["seed"], list(state["counts"])
        self._observation = state["observation"].copy()
        entries = {(e.name, e.spec.steps): e for e in self.pool.entries}
        self._episodes = []
        for name, steps, saved in state["episodes"]:
            entry = entries[(name, steps)]
            self._episodes.append(
                Episode.restore(entry.task, self.config, entry.frontier, saved, device=self.device)
            )

    def _check_state(self, state: dict[str, Any]) -> None:
        if (seen := np.shape(state["observation"])) != self._observation.shape:
            raise ConfigurationError(
                f"The state's observations are {seen}; these of {self.n_buckets} buckets of "
                f"{self.runs_per_bucket} runs are {self._observation.shape}. Make the environment "
                "as the one that the state was taken from."
            )

    def _seen(self, episode: Episode) -> FloatArray:
        """The episode's rows of the observation."""
        if self.privileged is None:
            return episode.observation
        return np.concatenate([episode.observation, self.privileged.of(episode)], axis=1)

    def _rows(self, bucket: int) -> slice:
        return slice(bucket * self.runs_per_bucket, (bucket + 1) * self.runs_per_bucket)

    def _draw(self, bucket: int) -> Episode:
        rng = np.random.default_rng([self._seed, self._first + bucket, self._counts[bucket]])
        self._counts[bucket] += 1
        entry = self.pool.sample(rng)
        drawn = draw(self.config, rng, self.runs_per_bucket)
        return Episode(
            entry.task, entry.spec.steps, self.config, drawn, entry.frontier, device=self.device
        )

    def _report(self, info: dict[str, Any], rows: slice, episode: Episode) -> None:
        """Fill Gymnasium's dict of arrays with a finished bucket."""
        if not info:
            info.update(self._blank())
        for name in [name for name in info if name.startswith("_")]:
            info[name][rows] = True
        info["final_obs"][rows] = self._seen(episode)
        info["final_loss"][rows] = episode.final_loss
        info["speed"][rows] = episode.reward
        info["diverged"][rows] = episode.diverged
        info["task"][rows] = episode.task.name

    def _blank(self) -> dict[str, Any]:
        """Gymnasium's dict of arrays before anything has ended, with its masks."""
        values: dict[str, Any] = {
            "final_obs": np.zeros((self.num_envs, *self._observation.shape[1:]), np.float32),
            "final_loss": np.full(self.num_envs, np.nan),
            "speed": np.full(self.num_envs, np.nan),
            "diverged": np.zeros(self.num_envs, bool),
            "task": np.full(self.num_envs, "", dtype=object),
        }
        return values | {f"_{name}": np.zeros(self.num_envs, bool) for name in values}
