"""The vector environment as stable-baselines3 wants it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from ..core.errors import ConfigurationError
from ..core.types import BoolArray, FloatArray, IntArray


class Sb3VecEnv(VecEnv):
    """Adapter: a few lines between two vector APIs, and two things that PPO needs.

    Environments are permuted, because SB3 forms minibatches from neighbours: sorted by bucket,
    a minibatch would hold one task, and advantages are normalised per minibatch.

    With `baseline`, the reward that the learner sees at a run's end is its own minus the mean of
    the other runs of its bucket: same task, same length. Where the environment names a
    `group_size`, it is the mean of the others of its group, which share the seed and the hidden
    start too. That removes the task's difficulty from the return and, being independent of the
    run's own actions, leaves the gradient unbiased. The true reward is in
    `info["episode"]["r"]`, as SB3's Monitor writes it.

    A `Discrete` action is shown as a `MultiDiscrete` of one head, which is what learners here have.

    Args:
        env: A SAME_STEP vector environment. `state` and `load_state` of this adapter call those of
            the environment, if it is to be resumed.
        baseline: Subtract the leave-one-out mean; the environment then has `n_buckets`
            buckets of `runs_per_bucket` runs.
        seed: Of the permutation.
        bounds: Least and most that the last reward of a run can earn the learner, before the mean
            is subtracted; for environments that reward the end alone.
        floor: Above 0, what is left after the mean is divided by its root mean square over the
            bucket, at least this: every task teaches alike. A run's own reward is part of the
            divisor, so the gradient is no longer unbiased. At 0, those whose reward answers
            most to a small difference of loss outweigh the others (normalised per group of runs,
            as in GRPO: Shao et al., 2024, arXiv:2402.03300).
        leans: Whether each run leans in each head (`policy.learner.Leaning`), by a standard normal
            number each that is told in the last columns of an observation.
        lean_turn: Probability, at each decision, that a run leans another way from then on.

    Raises:
        ConfigurationError: The environment resets in another mode, has no buckets where `baseline`
            wants them, the bounds are no interval, or `floor` is below 0 or has no `baseline`.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        baseline: bool = True,
        seed: int = 0,
        bounds: tuple[float, float] | None = None,
        floor: float = 0.0,
        leans: bool = False,
        lean_turn: float = 0.0,
    ) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ConfigurationError(
                f"The environment resets in mode {env.metadata.get('autoreset_mode')}; SB3 needs "
                "SAME_STEP, or every episode gains one transition that never happened."
            )
        if baseline and not hasattr(env, "runs_per_bucket"):
            raise ConfigurationError(
                f"{type(env).__name__} has no buckets of runs (n_buckets, runs_per_bucket), so "
                "there is no mean to subtract; give baseline=False."
            )
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ConfigurationError(
                f"The reward's bounds are {bounds}; the lower one comes first, below the other."
            )
        if floor < 0.0 or (floor > 0.0 and not baseline):
            raise ConfigurationError(
                f"floor is {floor} and baseline {baseline}; a number of at least 0 is wanted, and "
                "above 0 a baseline: what is divided is the difference to the mean."
            )
        # first: SB3 asks `get_attr` for the render mode
        self.env: Any = env
        self.baseline, self.bounds, self.floor = baseline, bounds, floor
        space = env.single_action_space
        self._discrete = isinstance(space, spaces.Discrete)
        if isinstance(space, spaces.Discrete):
            space = spaces.MultiDiscrete([space.n])
        self.lean_turn = lean_turn
        seen: spaces.Space[Any] = env.single_observation_space
        #: Last columns of an observation, which say how a run leans.
        self.leans = 0
        if leans:
            assert isinstance(seen, spaces.Box)
            assert isinstance(space, spaces.MultiDiscrete)
            self.leans = len(space.nvec)
            more = np.full(self.leans, np.inf, np.float32)
            low, high = np.concatenate([seen.low, -more]), np.concatenate([seen.high, more])
            seen = spaces.Box(low, high, dtype=np.float32)
        super().__init__(env.num_envs, seen, space)
        self._rng = np.random.default_rng([seed, 2])
        self._leaning = np.zeros((env.num_envs, self.leans))
        self._order: IntArray = np.random.default_rng([seed, 1]).permutation(env.num_envs)
        self._inverse: IntArray = np.argsort(self._order)
        self._actions: IntArray = np.zeros((env.num_envs, 1), np.int64)
        self._length = np.zeros(env.num_envs, np.int64)
        self._reseed: int | None = None
        #: Finished episodes not yet read: (task or "", reward), for logging by family.
        self.finished: deque[tuple[str, float]] = deque(maxlen=10_000)

    @property
    def places(self) -> IntArray:
        """`(num_envs,)` the row here of each run of the environment, in the environment's order."""
        return self._inverse.copy()

    def seed_episodes(self, seed: int) -> None:
        """Let the next `reset` begin other episodes than those of the seed that we were made with.

        Tasks, frontiers and the order of rows stay those of that one.
        """
        self._reseed, self._rng = seed, np.random.default_rng([seed, 2])

    def reset(self) -> VecEnvObs:
        """Start new episodes everywhere."""
        seed, self._reseed = self._reseed, None
        observation, _ = self.env.reset(seed=seed)
        self._length[:] = 0
        self._lean_anew(np.ones(self.num_envs, bool))
        rows: FloatArray = self._told(observation)[self._order]
        return rows

    def _lean_anew(self, who: BoolArray) -> None:
        if self.leans:
            drawn = self._rng.normal(size=self._leaning.shape)
            self._leaning[who] = drawn[who]

    def _told(self, observation: FloatArray) -> FloatArray:
        """Observations with how each run leans."""
        return np.concatenate([observation, self._leaning.astype(observation.dtype)], axis=1)

    def step_async(self, actions: IntArray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = np.asarray(actions)[self._inverse]

    def step_wait(self) -> VecEnvStepReturn:
        """Carry out the kept actions."""
        actions = self._actions[:, 0] if self._discrete else self._actions
        observation, reward, terminated, _, info = self.env.step(actions)
        self._length += 1
        earned = reward
        if self.bounds is not None:
            earned = np.where(terminated, np.clip(reward, *self.bounds), reward)
        seen = self._centred(earned, terminated) if self.baseline else earned
        if self.floor:
            seen = self._scaled(seen, terminated, self.floor)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(terminated):
            infos[i] = {
                "terminal_observation": np.append(info["final_obs"][i], self._leaning[i]).astype(
                    observation.dtype
                ),
                "TimeLimit.truncated": False,
                "episode": {"r": float(reward[i]), "l": int(self._length[i]), "t": 0.0},
                **{name: info[name][i] for name in ("final_loss", "task") if name in info},
            }
            self.finished.append((str(infos[i].get("task", "")), float(reward[i])))
        self._length[terminated] = 0
        turns = self._rng.random(self.num_envs) < self.lean_turn if self.lean_turn else terminated
        self._lean_anew(terminated | turns)
        order = self._order
        return (
            self._told(observation)[order],
            seen[order].astype(np.float32),
            terminated[order],
            [infos[i] for i in order],
        )

    def _centred(self, reward: FloatArray, terminated: BoolArray) -> FloatArray:
        out = reward.copy()
        size = getattr(self.env, "group_size", None) or self.env.runs_per_bucket
        if size < 2:
            return out
        for b in range(self.env.num_envs // size):
            rows = slice(b * size, (b + 1) * size)
            if terminated[rows].all():
                others = (reward[rows].sum() - reward[rows]) / (size - 1)
                out[rows] = reward[rows] - others
        return out

    def _scaled(self, centred: FloatArray, terminated: BoolArray, floor: float) -> FloatArray:
        out, size = centred.copy(), self.env.runs_per_bucket
        for b in range(self.env.num_envs // size):
            rows = slice(b * size, (b + 1) * size)
            if terminated[rows].all():
                out[rows] /= max(floor, float(np.sqrt(np.mean(centred[rows] ** 2))))
        return out

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, picklable; see `load_state`."""
        return {
            "env": self.env.state(),
            "reseed": self._reseed,
            "length": self._length.copy(),
            "leaning": (self._leaning.copy(), self._rng.bit_generator.state),
            "finished": list(self.finished),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, in the middle of episodes."""
        self.env.load_state(state["env"])
        self._reseed = state["reseed"]
        self._length = state["length"].copy()
        leaning, generator = state["leaning"]
        self._leaning = leaning.copy()
        self._rng.bit_generator.state = generator
        self.finished.extend(state["finished"])

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """No environment here is wrapped, but SB3's Monitor is: episodes are reported."""
        from stable_baselines3.common.monitor import Monitor

        return [wrapper_class is Monitor] * len(self._rows(indices))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """One attribute of the vector environment, for each row asked for."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._rows(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment once."""
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)]

    def _rows(self, indices: Any) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else list(indices)
