from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lhopt.core.errors import ConfigurationError, ControlError
from lhopt.env.config import EnvConfig
from lhopt.env.local_sgd import LocalSGDEnv
from lhopt.env.noisy_quadratic import NoisyQuadraticEnv
from lhopt.env.pool import TaskPool
from lhopt.env.quadratic_pool import get_problems
from lhopt.env.sharded import ShardedVectorEnv
from lhopt.env.vector import HyperparameterVectorEnv
from lhopt.env.workers import Workers


def environments(pool: TaskPool, workers: Workers) -> list[Any]:
    config = EnvConfig(intervals=(4, 6))
    return [
        HyperparameterVectorEnv(pool, config, n_buckets=2, runs_per_bucket=3),
        ShardedVectorEnv(pool, config, n_buckets=2, runs_per_bucket=3, workers=workers),
        NoisyQuadraticEnv(get_problems(1, 4, 250), 6),
        LocalSGDEnv(n_fleets=1, buckets=2, runs_per_bucket=3),
    ]


def test_actions_that_are_not_one_for_each_run_change_nothing(pool: TaskPool) -> None:
    with Workers(1) as workers:
        for env in environments(pool, workers):
            env.reset(seed=1)
            state = env.state()
            sound = np.asarray(env.action_space.sample())
            for wrong in (
                sound[:4],
                np.concatenate([sound, sound[:3]]),
                sound.astype(float),
                np.full_like(sound, -1),
                np.full_like(sound, 99),
            ):
                with pytest.raises(ControlError):
                    env.step(wrong)
            after = env.step(sound)
            env.load_state(state)
            for one, other in zip(after[:3], env.step(sound)[:3], strict=True):
                np.testing.assert_array_equal(one, other)


def test_what_is_said_of_a_wrong_action(pool: TaskPool) -> None:
    env = HyperparameterVectorEnv(pool, EnvConfig(intervals=(4, 6)), n_buckets=1, runs_per_bucket=3)
    env.reset()
    heads = len(env.config.controls)
    wrong = np.zeros((3, heads), int)
    wrong[1, 0] = 9
    with pytest.raises(ControlError, match="Action 9 of run 1, head 0; its choices are 0 to 8"):
        env.step(wrong)
    with pytest.raises(ControlError, match=rf"shape \(4, {heads}\).*a row for each of 3 runs"):
        env.step(np.zeros((4, heads), int))


def test_a_state_of_other_buckets_is_refused(pool: TaskPool) -> None:
    config = EnvConfig(intervals=(4, 6))
    two, one = (
        HyperparameterVectorEnv(pool, config, n_buckets=n, runs_per_bucket=3) for n in (2, 1)
    )
    two.reset()
    with pytest.raises(ConfigurationError, match="these of 1 buckets of 3 runs"):
        one.load_state(two.state())


def test_local_sgd_says_that_reset_comes_first() -> None:
    env = LocalSGDEnv(n_fleets=1, buckets=1, runs_per_bucket=2)
    for ask in (lambda: env.step(np.zeros((2, 2), int)), env.expert):
        with pytest.raises(ConfigurationError, match=r"before reset\(\)"):
            ask()


def test_problems_come_in_turn_where_there_are_fewer_rows() -> None:
    env = NoisyQuadraticEnv(get_problems(1, 8, 250), 4, in_order=True)
    env.reset(seed=0)
    rows = [env._rows.tolist()]
    for _ in range(2):
        for _ in range(49):
            env.step(env.expert())
        rows.append(env._rows.tolist())
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"start": {"learning_rate": -1.0}}, "start has learning_rate -1.0; a number from"),
        ({"start": {"clip_ratio": 0.5}}, "start has 'clip_ratio', which torch.optim.AdamW does"),
        ({"start": {"lr": 0.1}}, "It does with learning_rate"),
        ({"valid_examples": 0}, "valid_examples is 0; a whole number of at least 1"),
        ({"noise_scale": -1}, "noise_scale is -1; a finite number"),
        ({"group_size": 2.0}, "group_size is 2.0"),
        ({"intervals": (2.5, 4)}, r"intervals is \(2.5, 4\); two whole numbers"),
        ({"intervals": (4,)}, "two whole numbers"),
    ],
)
def test_a_configuration_that_cannot_be_drawn_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        EnvConfig(**wrong)
