"""Workers that are processes, connected by torch.distributed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ...core.errors import ConfigurationError, WorkerLostError

#: Round, step, size, settings.
Message = tuple[int, int, int, int]
#: Sent by whoever a collective failed for: round -1 is no round.
_ROLL_CALL = (-1, -1, -1, -1)
#: Of a message that nobody sends; collectives number theirs from 0 in a space of their own.
_HANG_UP_TAG = 1


class ProcessGroup:
    """One worker per process of a torch.distributed group, with bounded waits.

    Values travel by one all_reduce over the group's own back end (gloo for CPUs, nccl for GPUs).
    Before each, workers compare round, step, size and settings over gloo, whose waits end in time
    on any device; a worker that is gone, or silent for `timeout` seconds, gives a
    `WorkerLostError` on all others that names it.

    Every process of the group must make it, at the same place in the program, after
    `torch.distributed.init_process_group`: it opens groups of its own. If the group is a part of
    all processes, those in it must have made equally many groups before (torch names them so).

    Args:
        group: The processes; `None` for all of them.
        timeout: Seconds to wait at a synchronisation; a slower worker counts as lost, so give it
            the longest time that one may lag behind. After it, up to as long again is spent on
            asking who is missing.

    Raises:
        ConfigurationError: torch.distributed is not initialised, this process is not in the
            group, or `timeout` is not a positive number.
        WorkerLostError: Not all processes made it in time.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float = 300.0) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ConfigurationError(f"timeout is {timeout!r}; a number of seconds > 0 is wanted.")
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigurationError(
                "torch.distributed is not initialised. Call init_process_group first, or use "
                "InProcess for workers in one process."
            )
        if dist.get_rank(group) < 0:
            raise ConfigurationError(
                f"Rank {dist.get_rank()} is not in the group. Make the transport only in "
                f"processes of the group."
            )
        self._ranks = dist.get_process_group_ranks(group)
        self.n_workers = len(self._ranks)
        self.first_worker = dist.get_rank(group)
        self._rank = dist.get_rank()
        self._timeout = timedelta(seconds=timeout)
        self._at = (0, 0)
        self._lost: WorkerLostError | None = None
        #: Messages on their way, which must outlive the call that sent them.
        self._farewell: list[tuple[Tensor, dist.Work | None]] = []
        self._own_data = dist.get_backend(group) == "gloo"
        try:
            # small messages from each to each: a connection that breaks is one worker's
            self._control = self._open()
            self._data = self._open() if self._own_data else group
        except RuntimeError as error:
            raise WorkerLostError(
                f"Rank {self._rank}: not all of the ranks {self._ranks} made their ProcessGroup "
                f"within {timeout:g} s. Make it in every process of the group, at the same place, "
                "or allow more time.",
                rank=self._rank,
                round=0,
                missing=(),
            ) from error

    def __getstate__(self) -> NoReturn:
        raise ConfigurationError(
            "A ProcessGroup, and a LocalSGD with one, cannot be copied or pickled: its connections "
            "belong to one process. Make a new LocalSGD on the copied model, in every process at "
            "the same place, and load the state_dict() into it."
        )

    def _open(self) -> dist.ProcessGroup:
        # without all processes, torch names a group by the number of groups made so far
        part = len(self._ranks) < dist.get_world_size()
        group = dist.new_group(
            self._ranks, timeout=self._timeout, backend="gloo", use_local_synchronization=part
        )
        return cast(dist.ProcessGroup, group)

    def local(self, tensor: Tensor) -> Tensor:
        """A view (1, ...)."""
        return tensor.unsqueeze(0)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean over the group, (1, n) to (n,).

        Raises:
            WorkerLostError: A worker is gone or silent.
        """
        total = rows[0].clone()
        self._wait(lambda: dist.all_reduce(total, group=self._data, async_op=True))
        return total / self.n_workers

    def first(self, rows: Tensor) -> Tensor:
        """What the group's first process holds, (1, n) to (n,).

        Raises:
            WorkerLostError: A worker is gone or silent.
        """
        values, source = rows[0].clone(), self._ranks[0]
        self._wait(lambda: dist.broadcast(values, source, group=self._data, async_op=True))
        return values

    def agree(self, round: int, step: int, size: int, settings: int) -> None:
        """See that every worker comes with the same round, step, size and settings.

        Raises:
            ConfigurationError: They differ; nothing was averaged.
            WorkerLostError: A worker is gone or silent.
        """
        if self._lost is not None:
            raise self._lost
        self._at = (round, step)
        answers, missing = self._exchange((round, step, size, settings))
        if missing or any(answer == _ROLL_CALL for answer in answers.values()):
            self._give_up(missing)
        # a collective of unequal sizes would not fail but end the process
        for rank, (other_round, other_step, other_size, other_settings) in answers.items():
            if (round, step, size) != (other_round, other_step, other_size):
                raise ConfigurationError(
                    f"Rank {self._rank} came to synchronisation {round} after step {step} with "
                    f"{size} bytes, rank {rank} to synchronisation {other_round} after step "
                    f"{other_step} with {other_size}. All workers must take the same number of "
                    "steps (skip none, as a GradScaler may), with the same intervals, parameters "
                    "and dtypes."
                )
            if settings != other_settings:
                raise ConfigurationError(
                    f"Ranks {self._rank} and {rank} came to synchronisation {round} with different "
                    "settings. Give all workers the same state_rule, measure_cosine, and outer "
                    "optimizer with the same values (outer_learning_rate, outer_momentum)."
                )

    def _wait(self, start: Callable[[], dist.Work | None]) -> None:
        """Run a collective; whoever it fails for asks all others whether they are there."""
        if self._lost is not None:
            raise self._lost
        try:
            work = start()
            assert work is not None  # it is for processes outside the group
            work.wait(self._timeout)
        except RuntimeError as error:
            self._hang_up()
            self._lost = self._error(self._exchange(_ROLL_CALL)[1])
            raise self._lost from error

    def _give_up(self, missing: tuple[int, ...]) -> NoReturn:
        """End before the sum that others may have begun: they had all messages, this one not."""
        self._hang_up()
        self._lost = self._error(missing)
        for rank in self._ranks:
            if rank != self._rank:
                # its roll call, if it has one, must not wait for this process
                sent = torch.tensor(_ROLL_CALL, device="cpu")
                received = torch.empty_like(sent)
                with suppress(RuntimeError):
                    self._farewell.append((sent, dist.isend(sent, rank, self._control)))
                    self._farewell.append((received, dist.irecv(received, rank, self._control)))
        raise self._lost

    def _hang_up(self) -> None:
        """Close this process's data connections; gloo's, others end by their own timeouts.

        A ring sums in turns: with one worker gone, only its neighbour may notice, and whoever
        waits for that neighbour would wait for the whole timeout.
        """
        if not self._own_data:
            return
        for rank in self._ranks:
            if rank != self._rank:
                # gloo closes a group's connections, all of them, once a wait in it runs out of time
                with suppress(RuntimeError):
                    work = dist.irecv(torch.empty(1, device="cpu"), rank, self._data, _HANG_UP_TAG)
                    assert work is not None
                    work.wait(timedelta(milliseconds=1))

    def _exchange(self, message: Message) -> tuple[dict[int, Message], tuple[int, ...]]:
        """Send a message to every other worker and take theirs: answers, and ranks without one."""
        until = time.monotonic() + self._timeout.total_seconds()
        answers: dict[int, Message] = {}
        sent = torch.tensor(message, device="cpu")  # whatever the default device is
        pending: list[tuple[int, Tensor, list[dist.Work | None]]] = []
        others = [rank for rank in self._ranks if rank != self._rank]
        for rank in others:
            received = torch.empty_like(sent)
            # RuntimeError: the connection is closed already
            with suppress(RuntimeError):
                works = [
                    dist.isend(sent, rank, group=self._control),
                    dist.irecv(received, rank, group=self._control),
                ]
                pending.append((rank, received, works))
        for rank, received, works in pending:
            with suppress(RuntimeError):
                for work in works:
                    assert work is not None
                    work.wait(timedelta(seconds=max(until - time.monotonic(), 0.01)))
                round, step, size, settings = received.tolist()
                answers[rank] = round, step, size, settings
        return answers, tuple(rank for rank in others if rank not in answers)

    def _error(self, missing: tuple[int, ...]) -> WorkerLostError:
        round, step = self._at
        names = ", ".join(str(rank) for rank in missing)
        who = f"lost rank {names}" if missing else "another worker lost one, or a connection broke"
        return WorkerLostError(
            f"Rank {self._rank}: {who}; at synchronisation {round}, after step {step}. It is gone, "
            f"or was silent for {self._timeout.total_seconds():g} s. Nothing was averaged: the "
            "parameters here are those of the last local step. Start the workers anew from the "
            "last checkpoint, as many as there are; if none died, one lagged behind by more than "
            "ProcessGroup's timeout allows.",
            rank=self._rank,
            round=round,
            missing=missing,
        )
