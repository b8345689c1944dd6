from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from lhopt.core.errors import ConfigurationError, WorkerError
from lhopt.env.config import EnvConfig
from lhopt.env.pool import TaskPool
from lhopt.env.sharded import ShardedVectorEnv
from lhopt.env.vector import HyperparameterVectorEnv

SIZES: dict[str, Any] = {"n_buckets": 3, "runs_per_bucket": 4, "seed": 5}


@contextmanager
def sharded(pool: TaskPool, config: EnvConfig, processes: int = 2) -> Iterator[ShardedVectorEnv]:
    with closing(ShardedVectorEnv(pool, config, processes=processes, **SIZES)) as env:
        yield env


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
    alone = HyperparameterVectorEnv(pool, config, **SIZES)
    with sharded(pool, config) as env:
        assert env.single_observation_space == alone.single_observation_space
        assert env.action_space == alone.action_space
        np.testing.assert_array_equal(env.reset()[0], alone.reset()[0])
        ends = 0
        for action in actions(env, 12):
            theirs = alone.step(action)
            same(env.step(action), theirs)
            ends += int(theirs[2].any())
        assert ends >= 2  # some buckets ended while others did not
        assert env.worker_seconds > 0.0
        state = pickle.loads(pickle.dumps(env.state()))
    other = HyperparameterVectorEnv(pool, config, **SIZES)
    other.load_state(state)
    with sharded(pool, config, 3) as three:
        three.load_state(state)
        for action in actions(alone, 6):
            theirs = alone.step(action)
            same(other.step(action), theirs)
            same(three.step(action), theirs)


def test_a_worker_that_fails_says_why_and_one_that_is_gone_is_noticed(
    pool: TaskPool, config: EnvConfig
) -> None:
    with sharded(pool, config) as env:
        with pytest.raises(WorkerError, match="list index out of range"):
            env.step(actions(env, 1)[0])  # not reset yet
        process, _ = env._workers[1]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.raises(WorkerError, match="is gone"):
            env.reset()


@pytest.mark.parametrize("processes", [0, 4])
def test_a_number_of_processes_that_cannot_be(
    pool: TaskPool, config: EnvConfig, processes: int
) -> None:
    with pytest.raises(ConfigurationError, match="1 to 3"):
        ShardedVectorEnv(pool, config, processes=processes, **SIZES)
