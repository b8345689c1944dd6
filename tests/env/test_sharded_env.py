from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from lhopt.core.errors import ConfigurationError, EnvWorkerError
from lhopt.env.config import EnvConfig
from lhopt.env.pool import TaskPool
from lhopt.env.sharded import ShardedVectorEnv
from lhopt.env.vector import HyperparameterVectorEnv
from lhopt.env.workers import Workers

SIZES: dict[str, Any] = {"n_buckets": 3, "runs_per_bucket": 4, "seed": 5}


def actions(env: Any, n: int) -> list[Any]:
    rng = np.random.default_rng(0)
    nvec = env.single_action_space.nvec
    return [rng.integers(0, nvec, (env.num_envs, len(nvec))) for _ in range(n)]


def same(mine: Any, theirs: Any) -> None:
    for x, y in zip(mine[:4], theirs[:4], strict=True):
        np.testing.assert_array_equal(x, y)
    assert mine[4].keys() == theirs[4].keys()
    for key, value in theirs[4].items():
        np.testing.assert_array_equal(mine[4][key], value)


def test_workers_change_nothing_and_a_run_goes_on_with_another_number_of_them(
    pool: TaskPool, config: EnvConfig
) -> None:
    config = EnvConfig(intervals=(4, 6), valid_share=0.5, group_size=2, privileged=True)
    alone = HyperparameterVectorEnv(pool, config, **SIZES)
    with Workers(2) as workers:
        env = ShardedVectorEnv(pool, config, workers=workers, **SIZES)
        assert env.single_observation_space == alone.single_observation_space
        assert env.action_space == alone.action_space
        np.testing.assert_array_equal(env.groups, alone.groups)
        with pytest.raises(ConfigurationError, match="reset"):
            env.step(actions(env, 1)[0])
        np.testing.assert_array_equal(env.reset()[0], alone.reset()[0])
        ends = 0
        for action in actions(env, 12):
            theirs = alone.step(action)
            same(env.step(action), theirs)
            ends += int(theirs[2].any())
        assert ends >= 2  # some buckets ended while others did not
        state = pickle.loads(pickle.dumps(env.state()))
    other = HyperparameterVectorEnv(pool, config, **SIZES)
    other.load_state(state)
    with Workers(1) as one:
        env = ShardedVectorEnv(pool, config, workers=one, **SIZES)
        env.load_state(state)
        for action in actions(alone, 6):
            theirs = alone.step(action)
            same(other.step(action), theirs)
            same(env.step(action), theirs)


class Standby:
    """Workers that must not be asked."""

    def __len__(self) -> int:
        return 2

    def ask(self, *_: object) -> None:
        raise EnvWorkerError("asked")


def test_settings_are_checked_before_a_worker_is_asked(pool: TaskPool, config: EnvConfig) -> None:
    workers: Any = Standby()
    with pytest.raises(ConfigurationError, match="whole groups"):
        ShardedVectorEnv(pool, EnvConfig(group_size=3), workers=workers, **SIZES)
    env = ShardedVectorEnv(pool, config, workers=workers, **SIZES)
    with pytest.raises(EnvWorkerError, match="asked"):
        env.reset()
