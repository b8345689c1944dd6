"""Training a policy in any vector environment of `env/registry.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import gymnasium as gym

from ..core.errors import ConfigurationError
from ..env.registry import EnvironmentRow, SteeredEnv, get_environment
from ..env.sb3 import Sb3VecEnv
from .cloning import CloningConfig, clone
from .export import weights
from .learner import HyperparameterPolicy
from .ppo import PPOConfig, PPOTrainer
from .ranges import COUNT, COUNT_OR_NONE, check_ranges
from .small import SmallPolicy, play

#: Seed offset of the evaluation that chooses among checkpoints.
VALID = 7


@dataclass(frozen=True)
class EnvTrainConfig(PPOConfig):
    """Everything that determines a policy, next to the code.

    Attributes:
        environment: A name in `env.registry.ENVIRONMENTS`.
        n_envs: Environments stepped at once.
        n_valid: Environments of the periodic evaluation, on the split "valid"; with 0 there is
            none, and the last weights are exported instead of the best.
        valid_episodes: Episodes in each of them; their rewards add up.
        imitation: Sizes of the warm start (`CloningConfig`), for environments that know good
            actions (`env.registry.Taught`); None starts PPO from nothing.
        env: Settings of the environment.
    """

    environment: str = ""
    n_envs: int = 128
    n_valid: int = 128
    valid_episodes: int = 1
    baseline: bool = False
    imitation: Mapping[str, Any] | None = None
    env: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # before the base's: an update's transitions are counted by the first
        check_ranges(self, {"n_envs": COUNT, "n_valid": COUNT_OR_NONE, "valid_episodes": COUNT})
        super().__post_init__()

    @property
    def runs(self) -> int:
        """Environments stepped at once."""
        return self.n_envs

    @classmethod
    def of(cls, environment: str) -> EnvTrainConfig:
        """An environment's own defaults; the policy is called like it.

        Raises:
            UnknownNameError: There is no such environment.
        """
        row = get_environment(environment)
        return cls(**{"name": environment, **row.defaults, "environment": environment})

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        row = super().to_json()
        if self.imitation is not None:  # with its defaults: a manifest tells every setting
            row["imitation"] = asdict(CloningConfig(**self.imitation))
        return row


class EnvTrainer(PPOTrainer[SmallPolicy]):
    """One training run of one environment in one folder; see `PPOTrainer`.

    Args:
        config: What to train.
        folder: Where everything goes.
        row: The environment; `config.environment` looks it up if not given.

    Raises:
        ConfigurationError: The environment lacks something that training needs.
    """

    def __init__(
        self, config: EnvTrainConfig, folder: Path, row: EnvironmentRow | None = None
    ) -> None:
        row = row or get_environment(config.environment)
        made = row.make("train", config.n_envs, config.seed, **config.env)
        _check(made, config)
        self.env = cast(SteeredEnv, made)
        self.valid = (
            row.make("valid", config.n_valid, config.seed + VALID, **config.env)
            if config.n_valid
            else None
        )
        self._begin = cast(SteeredEnv, self.valid).state() if self.valid else {}
        super().__init__(
            config, folder, Sb3VecEnv(made, baseline=config.baseline, seed=config.seed)
        )
        self.config: EnvTrainConfig = config

    def warm_start(self, progress: Callable[[str, int, int, float], None] | None = None) -> None:
        """Clone the environment's own good actions, once, before the first update."""
        if self.started or self.config.imitation is None:
            return
        clock = time.process_time()
        policy = self.model.policy
        assert isinstance(policy, HyperparameterPolicy)
        losses = clone(
            policy,
            self.vec.env,
            CloningConfig(**self.config.imitation),
            seed=self.config.seed,
            progress=progress,
        )
        self._warm_started(losses[-1], clock)

    def export(self, *, best: bool = True) -> SmallPolicy:
        """The policy so far: the averaged weights, at the best evaluation if there was one."""
        state, update = self._state() if best else (self.averaged, self.update)
        return SmallPolicy(
            name=self.config.name,
            environment=self.config.environment,
            observations=tuple(self.env.observation_names),
            actions=dict(self.env.action_choices),
            weights=weights(state),
            training={
                "config": self.config.to_json(),
                "updates": update,
                "cpu_seconds": round(self.seconds, 1),
                "curve": json.loads(json.dumps(self.curve)),
            },
        )

    def evaluate(self) -> dict[str, float]:
        """Mean reward of the likeliest actions on the split "valid": always the same episodes."""
        if self.valid is None:
            return {}
        cast(SteeredEnv, self.valid).load_state(self._begin)
        reward, _ = play(self.export(best=False), self.valid, self.config.valid_episodes)
        return {"eval/mean_reward": float(reward.mean())}


def _check(env: Any, config: EnvTrainConfig) -> None:
    """Refuse an environment that cannot be trained in as configured."""
    name = config.environment or type(env).__name__
    space, actions = env.single_observation_space, env.single_action_space
    wanted = ("observation_names", "action_choices", "state", "load_state")
    lacks = [word for word in wanted if not hasattr(env, word)]
    if lacks:
        raise ConfigurationError(f"Environment {name!r} lacks {', '.join(lacks)}: add them to it.")
    if not isinstance(space, gym.spaces.Box) or space.shape != (len(env.observation_names),):
        raise ConfigurationError(
            f"Environment {name!r} observes {space}; a Box with one column per name of "
            f"observation_names ({len(env.observation_names)}) is wanted."
        )
    if isinstance(actions, gym.spaces.Discrete):
        sizes = [int(actions.n)]
    elif isinstance(actions, gym.spaces.MultiDiscrete) and actions.nvec.ndim == 1:
        sizes = actions.nvec.tolist()
    else:
        raise ConfigurationError(
            f"Environment {name!r} takes {actions}; Discrete or MultiDiscrete is wanted."
        )
    if sizes != [len(meaning) for meaning in env.action_choices.values()]:
        raise ConfigurationError(
            f"Environment {name!r} has {sizes} choices, and action_choices names "
            f"{ {k: len(v) for k, v in env.action_choices.items()} }; they must agree."
        )
    if env.num_envs != config.n_envs:
        raise ConfigurationError(
            f"Environment {name!r} made {env.num_envs} rows; n_envs={config.n_envs} were asked for."
        )
    if config.imitation is not None and not hasattr(env, "expert"):
        raise ConfigurationError(
            f"Environment {name!r} knows no good actions to clone (it has no `expert`); set "
            "imitation=null."
        )
