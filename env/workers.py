"""Processes that stand by: each keeps something between calls, and all of them can share a list.

One thread each, pickled bytes over a pipe. They ignore Ctrl-C and SIGTERM, which reach a whole
process group: the parent decides what those mean, saves, and ends them. They end by themselves
when the parent is gone, however it went.
"""

from __future__ import annotations

import pickle
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch

from ..core.errors import ConfigurationError, EnvWorkerError

#: What a worker keeps between calls, by name.
Kept = dict[str, Any]
#: Does a function of every job, in their order; the built-in `map` is one.
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds that workers have to end by themselves, all together.
_PATIENCE = 3.0


class Workers:
    """Worker processes; a context manager.

    They are spawned, so a script that makes some needs `if __name__ == "__main__":`.

    Args:
        processes: How many.

    Attributes:
        seconds: CPU seconds of all workers so far, their start included.

    Raises:
        ConfigurationError: Less than one process.
    """

    def __init__(self, processes: int) -> None:
        check_processes(processes)
        self._seconds = [0.0] * processes
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._end = Finalize(self, _end, args=(self._workers,), exitpriority=10)
        context = get_context("spawn")
        try:
            with _ignored():
                for _ in range(processes):
                    mine, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs,), daemon=True)
                    process.start()
                    theirs.close()
                    self._workers.append((process, mine))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._workers)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """CPU seconds of all workers so far, their start included."""
        return sum(self._seconds)

    def ask(self, function: Callable[[Kept, Any], Any], arguments: Sequence[Any]) -> list[Any]:
        """`function(kept, argument)` on the first workers, one argument each, at the same time.

        Args:
            function: At the top of a module; `kept` is the worker's own from call to call.
            arguments: As many as workers, or fewer.

        Raises:
            ConfigurationError: A worker raised one.
            EnvWorkerError: A worker failed otherwise, with its traceback, or is gone.
        """
        with self._whole():
            for i, argument in enumerate(arguments):
                self._send(i, (True, function, argument))
            # all of them, or the next call would read what is left of this one
            replies = [self._receive(i) for i in range(len(arguments))]
        return [_result(reply) for reply in replies]

    def map(
        self, function: Callable[[Any], Any], jobs: Iterable[Any]
    ) -> Generator[Any, None, None]:
        """`function(job)` of every job, in their order; whoever is free takes the next.

        Raises: As `ask`.
        """
        left = list(enumerate(jobs))[::-1]
        n, done, busy = len(left), dict[int, Any](), dict[int, int]()
        try:
            for turn in range(n):
                with self._whole():
                    while turn not in done:
                        for i in range(len(self)):
                            if i not in busy and left:
                                busy[i], job = left.pop()
                                self._send(i, (False, function, job))
                        ready = wait([self._workers[i][1] for i in busy])
                        for i in [i for i in busy if self._workers[i][1] in ready]:
                            done[busy.pop(i)] = self._receive(i)
                yield _result(done.pop(turn))
        finally:  # a job failed, or the caller has seen enough: nobody else may read these answers
            if busy and self._workers:
                with self._whole():
                    for i in busy:
                        self._receive(i)

    def close(self) -> None:
        """End them, at once if they are in the middle of something."""
        self._end()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Whatever interrupts a conversation ends the workers: half of it would be left."""
        if not self._workers:
            raise EnvWorkerError("The workers have been closed; make new ones.")
        try:
            yield
        except (EOFError, OSError) as error:
            codes = [process.exitcode for process, _ in self._workers]
            self.close()
            raise EnvWorkerError(
                f"A worker is gone (exit codes {codes}; None is one that lived). If the machine "
                "ran out of memory, give fewer processes."
            ) from error
        except BaseException:
            self.close()
            raise

    def _send(self, i: int, message: Any) -> None:
        # not `send`: torch would put every tensor into shared memory of its own
        self._workers[i][1].send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _receive(self, i: int) -> tuple[str, Any]:
        kind, value, self._seconds[i] = pickle.loads(self._workers[i][1].recv_bytes())
        return kind, value


def _result(reply: tuple[str, Any]) -> Any:
    kind, value = reply
    if kind == "configuration":
        raise ConfigurationError(value)
    if kind == "failed":
        raise EnvWorkerError(f"A worker failed:\n{value}")
    return value


def _serve(connection: Connection) -> None:
    """Answer until the other end closes."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    kept: Kept = {}
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            # here, too, lest what cannot be imported look like a worker that died
            keeps, function, argument = pickle.loads(message)
            value = function(kept, argument) if keeps else function(argument)
            reply = pickle.dumps(("ok", value, time.process_time()), pickle.HIGHEST_PROTOCOL)
        except ConfigurationError as error:
            reply = pickle.dumps(("configuration", str(error), time.process_time()))
        except Exception:
            reply = pickle.dumps(("failed", traceback.format_exc(), time.process_time()))
        try:
            connection.send_bytes(reply)
        except OSError:
            return


def _end(workers: list[tuple[BaseProcess, Connection]]) -> None:
    """Close all pipes, wait a little for all together, and kill who is still there."""
    try:
        for _, connection in workers:
            connection.close()
        deadline = time.monotonic() + _PATIENCE
        for process, _ in workers:
            process.join(max(deadline - time.monotonic(), 0.0))
    finally:  # a second Ctrl-C has no patience, and must not leave any behind
        with _ignored():
            for process, _ in workers:
                if process.is_alive():
                    process.kill()
                    process.join()
        workers.clear()


def check_processes(processes: int) -> None:
    """Refuse to work in no process.

    Raises:
        ConfigurationError: `processes` is below 1.
    """
    if processes < 1:
        raise ConfigurationError(f"processes is {processes}; at least 1 is wanted.")


def each(
    work: Callable[[Any], Any], jobs: Iterable[Any], processes: int
) -> Generator[Any, None, None]:
    """What a function makes of every job, in order, by workers that end with the last of them.

    Args:
        work: Picklable, if there is more than one process.
        jobs: Likewise.
        processes: 1 works in this process.

    Raises:
        ConfigurationError: Less than one process.
    """
    if processes == 1:
        yield from map(work, jobs)
        return
    with Workers(processes) as workers:
        # neither `yield from` nor without a name: where a caller stops, the workers are to end
        # before this is closed, or it would wait for who is busy
        results = workers.map(work, jobs)
        for result in results:  # noqa: UP028
            yield result


@contextmanager
def _ignored() -> Iterator[None]:
    """Processes that are started inside ignore both signals from their first instruction on."""
    before = {}
    try:
        try:
            for number in _SIGNALS:
                before[number] = signal.signal(number, signal.SIG_IGN)
        except ValueError:  # not the main thread: they ignore them once they serve
            pass
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
