"""The vector environment over several processes: each trains some of the buckets."""

from __future__ import annotations

import signal
import time
import traceback
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from ..core.errors import ConfigurationError, WorkerError
from ..core.types import BoolArray, FloatArray, IntArray
from ..inner_tasks.registry import get_task
from .config import EnvConfig
from .frontier import Frontier
from .pool import Entry, TaskPool, TaskSpec
from .vector import HyperparameterVectorEnv, spaces_of

#: What a worker is told about a task; it builds the task itself, data are not sent.
_Told = tuple[TaskSpec, Frontier, float]


class ShardedVectorEnv(VectorEnv[FloatArray, IntArray, Any]):
    """`HyperparameterVectorEnv` with its buckets shared out over worker processes.

    Same episodes, observations and rewards as without workers, to the bit: what a bucket draws
    depends on its number alone, and a bucket lives in one process. `state` and `load_state` are
    those of the environment without workers, so a run may go on with another number of them.
    A step takes as long as its slowest worker.

    Args:
        pool: Tasks to draw from; workers build them by name, so each must be one that
            `inner_tasks.registry.get_task` knows.
        config: Which optimizer, schedule and controls.
        processes: Workers, at least 1 and at most one per bucket; each has one thread.
        n_buckets: As in `HyperparameterVectorEnv`, like the next.
        runs_per_bucket: Runs in each.
        seed: Of everything that is drawn.
        device: Where the runs live.

    Attributes:
        worker_seconds: CPU seconds of all workers so far.

    Raises:
        ConfigurationError: A number of processes that is out of range.
        WorkerError: A worker failed or is gone; its traceback is in the message.
    """

    metadata = HyperparameterVectorEnv.metadata

    def __init__(
        self,
        pool: TaskPool,
        config: EnvConfig | None = None,
        *,
        processes: int,
        n_buckets: int = 4,
        runs_per_bucket: int = 32,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if not 1 <= processes <= n_buckets:
            raise ConfigurationError(
                f"processes is {processes}; with {n_buckets} buckets, 1 to {n_buckets} can be used."
            )
        self.pool, self.config = pool, config or EnvConfig()
        self.n_buckets, self.runs_per_bucket = n_buckets, runs_per_bucket
        self.group_size = self.config.group_size or runs_per_bucket
        self.num_envs = n_buckets * runs_per_bucket
        self.single_observation_space, self.single_action_space = spaces_of(pool, self.config)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.worker_seconds = 0.0
        self._seconds = [0.0] * processes
        #: Buckets of worker i: those from bound i to bound i + 1.
        self._bounds = [round(i * n_buckets / processes) for i in range(processes + 1)]
        self._workers: list[tuple[Any, Connection]] = []
        told: list[_Told] = [(e.spec, e.frontier, e.cost) for e in pool.entries]
        context = get_context("spawn")
        for first, last in pairwise(self._bounds):
            mine, theirs = context.Pipe()
            kwargs = {
                "n_buckets": last - first,
                "first_bucket": first,
                "runs_per_bucket": runs_per_bucket,
                "seed": seed,
                "device": device,
            }
            process = context.Process(
                target=_work, args=(theirs, told, pool.weights, self.config, kwargs), daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append((process, mine))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw new episodes everywhere and run their first interval."""
        super().reset(seed=seed)
        return np.concatenate(self._ask("reset", [seed] * len(self._workers))), {}

    def step(
        self, actions: IntArray
    ) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Carry out one decision per run and train one interval."""
        actions = np.asarray(actions)
        edges = [b * self.runs_per_bucket for b in self._bounds]
        parts = [actions[a:b] for a, b in pairwise(edges)]
        found = self._ask("step", parts)
        observation, reward, terminated, truncated = (
            np.concatenate([part[i] for part in found]) for i in range(4)
        )
        return observation, reward, terminated, truncated, self._joined([p[4] for p in found])

    def state(self) -> dict[str, Any]:
        """As `HyperparameterVectorEnv.state`, of all buckets in their order."""
        parts = self._ask("state", [None] * len(self._workers))
        return {
            **parts[0],
            "counts": [count for part in parts for count in part["counts"]],
            "episodes": [episode for part in parts for episode in part["episodes"]],
            "observation": np.concatenate([part["observation"] for part in parts]),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, with whatever number of workers."""
        parts = []
        for first, last in pairwise(self._bounds):
            rows = slice(first * self.runs_per_bucket, last * self.runs_per_bucket)
            parts.append(
                {
                    **state,
                    "counts": state["counts"][first:last],
                    "episodes": state["episodes"][first:last],
                    "observation": state["observation"][rows],
                }
            )
        self._ask("load_state", parts)

    def close(self, **kwargs: Any) -> None:
        """End the workers."""
        for process, connection in self._workers:
            connection.close()  # at the end of its input, a worker ends
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        self._workers = []

    def _joined(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        """One dict of arrays; workers none of whose buckets ended have said nothing."""
        out: dict[str, Any] = {}
        edges = [b * self.runs_per_bucket for b in self._bounds]
        for info, first, last in zip(infos, edges, edges[1:], strict=False):
            for name, values in info.items():
                if name not in out:
                    blank = {"speed": np.nan, "final_loss": np.nan, "task": ""}.get(name, 0)
                    shape = (self.num_envs, *values.shape[1:])
                    out[name] = np.full(shape, blank, values.dtype)
                out[name][first:last] = values
        return out

    def _ask(self, verb: str, arguments: list[Any]) -> list[Any]:
        """Let every worker do the same at the same time; their answers in order."""
        answers = []
        try:
            for (_, connection), argument in zip(self._workers, arguments, strict=True):
                connection.send((verb, argument))
            for i, (_, connection) in enumerate(self._workers):
                failed, answer, self._seconds[i] = connection.recv()
                if failed:
                    raise WorkerError(f"A worker of the environment failed:\n{answer}")
                answers.append(answer)
        except (EOFError, OSError) as error:
            codes = [process.exitcode for process, _ in self._workers]
            raise WorkerError(
                f"A worker of the environment is gone (exit codes {codes}; None is one that "
                "lives). If the machine ran out of memory, give fewer processes."
            ) from error
        self.worker_seconds = sum(self._seconds)
        return answers


def _work(
    connection: Connection,
    told: list[_Told],
    weights: FloatArray,
    config: EnvConfig,
    kwargs: dict[str, Any],
) -> None:
    """Serve one shard until the other end closes."""
    # Ctrl-C reaches the whole process group; the parent decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    env: HyperparameterVectorEnv | None = None
    while True:
        try:
            verb, argument = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if env is None:
                entries = [Entry(s, get_task(s.task), frontier, cost) for s, frontier, cost in told]
                env = HyperparameterVectorEnv(TaskPool(entries).weighted(weights), config, **kwargs)
            answer: Any = None
            if verb == "reset":
                answer = env.reset(seed=argument)[0]
            elif verb == "step":
                answer = env.step(argument)
            elif verb == "state":
                answer = env.state()
            else:
                env.load_state(argument)
            reply = (False, answer, time.process_time())
        except Exception:
            reply = (True, traceback.format_exc(), time.process_time())
        try:
            connection.send(reply)
        except OSError:
            return
