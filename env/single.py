"""One steered run as a plain Gymnasium environment, and what `gymnasium.make_vec` builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from ..core.actions import COLUMN, action_deltas
from ..core.errors import ConfigurationError
from ..core.types import FloatArray, IntArray
from ..inner_tasks.registry import get_task
from .config import EnvConfig
from .episode import Episode, draw
from .frontier import Frontier, get_frontier
from .pool import Entry, TaskPool, TaskSpec
from .vector import HyperparameterVectorEnv, action_space, observation_space


class HyperparameterEnv(gym.Env[FloatArray, IntArray]):
    """Steer the hyperparameters of one inner training run; an episode is one run.

        import gymnasium, lhopt.env
        env = gymnasium.make("lhopt/HyperparameterControl-v0", task="digits-mlp/3", steps=200)

    To train a policy take `gymnasium.make_vec(..., num_envs=64)`: runs of one task cost several
    times less together than one after another.

    Action: `MultiDiscrete`, one index per steered control (`core/controls.py`, `choices`), for the
        interval that begins.
    Observation: `Box(-3, 3, (n_features,), float32)`, in the order of `core.features.FEATURES`:
        what the interval that just ended looked like, without units.
    Reward: 0, and at the last step log2 of the speed against the task's frontier, in
        `config.speed_bounds` ([-3, 2]): the budget at which tuned AdamW reaches this run's final
        loss, in units of ours. The lower bound if the run diverged.
    Start: `reset` draws weights, data order, the hidden starting hyperparameters and the number of
        decisions from `np_random`, so `reset(seed=...)` fixes the episode. One interval has run,
        under the schedule alone, before the first observation.
    Terminated: the inner run has made all its steps. A diverged run is frozen and ends with them,
        as it does among others in the vector environment.
    Truncated: never; time limits are a wrapper.
    Info: "inner_step", "train_loss" and "hyperparameters" of the interval that ended; at the end
        also "final_loss", "speed" (log2) and "diverged".
    Versions: v0, first release.

    Args:
        task: Name of an inner task: "digits-mlp/3" is a family's member 3, "digits-mlp" its plain
            one. `lhopt tasks` lists the families.
        steps: Inner steps of a run; 100 to 500 is what policies are trained on.
        optimizer: What is steered, a name in `env.config.OPTIMIZERS`; `config`'s if not given.
        config: Everything else about episodes.
        frontier: The task's yardstick. If not given it is read from the cache, or measured, which
            trains 130 runs of up to four times `steps` and is cached under `LHOPT_CACHE`.

    Raises:
        UnknownNameError: No task family or optimizer has this name.
        ConfigurationError: `steps` is too small for a decision.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        task: str = "digits-mlp",
        *,
        steps: int = 200,
        optimizer: str | None = None,
        config: EnvConfig | None = None,
        frontier: Frontier | None = None,
    ) -> None:
        self.config = _config(optimizer, config)
        self._entry = _entry(task, steps, frontier)
        space: gym.spaces.Space[Any] = observation_space()
        self.observation_space = space
        self.action_space = action_space(self.config)
        self.render_mode = None
        self._episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw a run and train its first interval."""
        super().reset(seed=seed)
        drawn = draw(self.config, self.np_random, 1)
        entry = self._entry
        self._episode = Episode(entry.task, entry.spec.steps, self.config, drawn, entry.frontier)
        return self._episode.observation[0].copy(), self._info(self._episode)

    def step(self, action: IntArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Carry out one decision and train one interval.

        Raises:
            ResetNeeded: The run has ended, or none was begun.
            ControlError: An index without a choice.
        """
        episode = self._episode
        if episode is None or episode.finished:
            raise ResetNeeded("step() without a running episode; call reset() first.")
        deltas = action_deltas(np.asarray(action)[None], self.config.controls)
        observation = episode.step(deltas)[0].copy()
        done = episode.finished
        reward = float(episode.reward[0]) if done else 0.0
        return observation, reward, done, False, self._info(episode)

    def _info(self, episode: Episode) -> dict[str, Any]:
        assert episode.statistics is not None
        names = [control.name for control in self.config.controls]
        info: dict[str, Any] = {
            "inner_step": episode.done,
            "train_loss": float(episode.statistics["train_loss"][0]),
            "hyperparameters": {name: float(episode.values[0, COLUMN[name]]) for name in names},
        }
        if episode.finished:
            info["final_loss"] = float(episode.final_loss[0])
            info["speed"] = float(episode.reward[0])
            info["diverged"] = bool(episode.diverged[0])
        return info


def make_vector(
    num_envs: int = 32,
    task: str = "digits-mlp",
    *,
    steps: int = 200,
    optimizer: str | None = None,
    config: EnvConfig | None = None,
    frontier: Frontier | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> HyperparameterVectorEnv:
    """What `gymnasium.make_vec` builds: one bucket of `num_envs` runs of one task.

    A pool of several tasks needs `HyperparameterVectorEnv` itself.

    Args:
        num_envs: Runs at once.
        task: As in `HyperparameterEnv`, like the next four.
        steps: Inner steps of a run.
        optimizer: What is steered.
        config: Everything else about episodes.
        frontier: The task's yardstick.
        seed: Of everything that is drawn, until `reset(seed=...)` gives another.
        device: Where the runs live.
    """
    pool = TaskPool([_entry(task, steps, frontier)])
    return HyperparameterVectorEnv(
        pool,
        _config(optimizer, config),
        n_buckets=1,
        runs_per_bucket=num_envs,
        seed=seed,
        device=device,
    )


def _config(optimizer: str | None, config: EnvConfig | None) -> EnvConfig:
    config = config or EnvConfig()
    return config if optimizer is None else replace(config, optimizer=optimizer)


def _entry(task: str, steps: int, frontier: Frontier | None) -> Entry:
    if steps < 2:
        raise ConfigurationError(
            f"steps is {steps}; a run needs at least 2, one before and one after a decision."
        )
    found = get_task(task)
    return Entry(TaskSpec(task, steps), found, frontier or get_frontier(found, steps))
