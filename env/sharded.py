"""The vector environment over several processes: each trains some of the buckets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..core.types import BoolArray, FloatArray, IntArray
from .choices import checked
from .config import EnvConfig
from .frontier import Frontier
from .pool import Entry, TaskPool, TaskSpec
from .vector import HyperparameterVectorEnv
from .workers import Kept, Workers

#: What a worker is told about a task; it makes those that it draws itself, data are not sent.
_Row = tuple[TaskSpec, Frontier, float]


class ShardedVectorEnv(HyperparameterVectorEnv):
    """`HyperparameterVectorEnv` with its buckets shared out over worker processes.

    What a bucket draws depends on its number alone, and a bucket lives in one process. So on the
    CPU, with one torch thread, episodes, observations and rewards are those of the environment
    without workers, to the bit. `state` and `load_state` are the same too: a run may go on with
    another number of workers. A step takes as long as its slowest worker.

    Args:
        pool: Tasks to draw from; workers build them by name, so each must be one that
            `inner_tasks.registry.get_task` knows.
        config: Which optimizer, schedule and controls.
        workers: Who trains; no more of them are used than there are buckets. They are their
            maker's to close.
        n_buckets: As in `HyperparameterVectorEnv`, like the next.
        runs_per_bucket: Runs in each.
        seed: Of everything that is drawn.
        device: Where the runs live.

    Raises:
        ConfigurationError: As `HyperparameterVectorEnv`.
        EnvWorkerError: A worker failed or is gone; what it said is in the message.
    """

    def __init__(
        self,
        pool: TaskPool,
        config: EnvConfig | None = None,
        *,
        workers: Workers,
        n_buckets: int = 4,
        runs_per_bucket: int = 32,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            pool, config, n_buckets=n_buckets, runs_per_bucket=runs_per_bucket, seed=seed,
            device=device,
        )  # fmt: skip
        self._workers = workers
        shards = min(len(workers), n_buckets)
        #: Buckets of worker i: those from bound i to bound i + 1.
        self._bounds = [round(i * n_buckets / shards) for i in range(shards + 1)]
        self._made = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """`(n_buckets,)` the name of the task that each bucket trains now."""
        parts = self._ask(_tasks, [None] * (len(self._bounds) - 1))
        return tuple(task for part in parts for task in part)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw new episodes everywhere and run their first interval."""
        self._seed = self._seed if seed is None else seed
        return np.concatenate(self._ask(_reset, [seed] * (len(self._bounds) - 1))), {}

    def step(
        self, actions: IntArray
    ) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Carry out one decision per run and train one interval.

        Raises:
            ControlError: Not one action per run, or a choice that there is not.
            EnvWorkerError: A worker failed or is gone.
        """
        actions = checked(actions, self.action_space)
        found = self._ask(_step, [actions[rows] for rows in self._shares()])
        observation, reward, terminated, truncated = (
            np.concatenate([part[i] for part in found]) for i in range(4)
        )
        info: dict[str, Any] = {}
        for rows, (*_, part) in zip(self._shares(), found, strict=True):
            if part and not info:
                info = self._blank()
            for name, values in part.items():
                info[name][rows] = values
        return observation, reward, terminated, truncated, info

    def state(self) -> dict[str, Any]:
        """As `HyperparameterVectorEnv.state`, of all buckets in their order."""
        parts = self._ask(_state, [None] * (len(self._bounds) - 1))
        return {
            **parts[0],
            "counts": [count for part in parts for count in part["counts"]],
            "episodes": [episode for part in parts for episode in part["episodes"]],
            "observation": np.concatenate([part["observation"] for part in parts]),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, with whatever number of workers.

        Raises:
            ConfigurationError: The state is of other buckets.
        """
        self._check_state(state)
        self.pool, self._seed = self.pool.weighted(state["weights"]), state["seed"]
        parts = [
            {
                **state,
                "counts": state["counts"][first:last],
                "episodes": state["episodes"][first:last],
                "observation": state["observation"][rows],
            }
            for (first, last), rows in zip(pairwise(self._bounds), self._shares(), strict=True)
        ]
        self._ask(_load_state, parts)

    def _shares(self) -> list[slice]:
        """Rows of each worker."""
        n = self.runs_per_bucket
        return [slice(first * n, last * n) for first, last in pairwise(self._bounds)]

    def _ask(self, function: Any, arguments: list[Any]) -> list[Any]:
        if not self._made:  # at the first use: a warm start comes before, and needs the memory
            rows: list[_Row] = [(e.spec, e.frontier, e.cost) for e in self.pool.entries]
            told = (rows, self.pool.weights, self.config)
            sizes = [
                {
                    "n_buckets": last - first,
                    "first_bucket": first,
                    "runs_per_bucket": self.runs_per_bucket,
                    "seed": self._seed,
                    "device": self.device,
                }
                for first, last in pairwise(self._bounds)
            ]
            self._workers.ask(_make, [(*told, size) for size in sizes])
            self._made = True
        return self._workers.ask(function, arguments)


def _make(kept: Kept, told: tuple[list[_Row], FloatArray, EnvConfig, dict[str, Any]]) -> None:
    rows, weights, config, sizes = told
    entries = [Entry(spec, None, frontier, cost) for spec, frontier, cost in rows]
    pool = TaskPool(entries).weighted(weights)
    kept["env"] = HyperparameterVectorEnv(pool, config, **sizes)


def _env(kept: Kept) -> HyperparameterVectorEnv:
    env: HyperparameterVectorEnv = kept["env"]
    return env


def _reset(kept: Kept, seed: int | None) -> FloatArray:
    return _env(kept).reset(seed=seed)[0]


def _step(kept: Kept, actions: IntArray) -> tuple[Any, ...]:
    return _env(kept).step(actions)


def _tasks(kept: Kept, _: None) -> tuple[str, ...]:
    return _env(kept).tasks


def _state(kept: Kept, _: None) -> dict[str, Any]:
    return _env(kept).state()


def _load_state(kept: Kept, state: dict[str, Any]) -> None:
    _env(kept).load_state(state)
