"""Environments that steer inner training runs, and the yardstick of their reward.

Importing this registers `lhopt/HyperparameterControl-v0` with Gymnasium, for `gymnasium.make` (one
run, `env/single.py`) and `gymnasium.make_vec` (many at once, `env/vector.py`). The names below are
imported when they are first asked for: they need torch, and `Sb3VecEnv` stable-baselines3.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError

if TYPE_CHECKING:
    from .config import EnvConfig
    from .episode import Episode
    from .frontier import Frontier, FrontierConfig, get_frontier
    from .pool import TaskPool, TaskSpec, build_pool
    from .sb3 import Sb3VecEnv
    from .sharded import ShardedVectorEnv
    from .single import HyperparameterEnv
    from .vector import HyperparameterVectorEnv

try:
    import gymnasium
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    raise MissingExtraError("gymnasium", "train") from error

ENV_ID = "lhopt/HyperparameterControl-v0"

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID,
        entry_point="lhopt.env.single:HyperparameterEnv",
        vector_entry_point="lhopt.env.single:make_vector",
    )

__all__ = [
    "ENV_ID",
    "EnvConfig",
    "Episode",
    "Frontier",
    "FrontierConfig",
    "HyperparameterEnv",
    "HyperparameterVectorEnv",
    "Sb3VecEnv",
    "ShardedVectorEnv",
    "TaskPool",
    "TaskSpec",
    "build_pool",
    "get_frontier",
]

_HOME = {
    "EnvConfig": "config",
    "Episode": "episode",
    "Frontier": "frontier",
    "FrontierConfig": "frontier",
    "HyperparameterEnv": "single",
    "HyperparameterVectorEnv": "vector",
    "Sb3VecEnv": "sb3",
    "ShardedVectorEnv": "sharded",
    "TaskPool": "pool",
    "TaskSpec": "pool",
    "build_pool": "pool",
    "get_frontier": "frontier",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
