"""The decision engine: takes what is queued, decides it in one batch, answers after the commit.

No timer: a decision that comes alone is decided alone, at once; while one batch is decided the
next one gathers. One worker thread decides and writes, so that numpy and SQLite never block the
event loop and writes have one order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from .deciding import Ask
from .ledger import Answer, Ledger
from .metrics import Metrics
from .problems import Problem
from .store import StoreError

log = logging.getLogger("lhopt.server")

T = TypeVar("T")


@dataclass(frozen=True)
class _Waiting:
    ask: Ask
    future: asyncio.Future[Answer]
    since: float


class Engine:
    """Queue, worker and deadline around a `Ledger`; lives on one event loop.

    Args:
        ledger: Decides.
        metrics: Counts batches and waits.
        max_batch: Decisions at once.
        max_queue: Decisions that may wait; as many rarer writes.
        deadline: Seconds until a waiting request is told to come again.
    """

    def __init__(
        self, ledger: Ledger, metrics: Metrics, *, max_batch: int, max_queue: int, deadline: float
    ) -> None:
        self._ledger, self._metrics = ledger, metrics
        self._max_batch, self._max_queue, self._deadline = max_batch, max_queue, deadline
        self._queue: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lhopt-decide")
        self._worker: asyncio.Task[None] | None = None
        self._closing = False
        self._writes = 0

    async def decide(self, ask: Ask) -> Answer:
        """The committed answer to an ask.

        Raises:
            Problem: Refused; 503 when the queue is full, the deadline passed or we are closing.
            StoreError: It could not be committed; nothing was decided.
        """
        self._check_open(len(self._queue))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(ask, future, time.monotonic()))
        if self._worker is None:
            self._worker = asyncio.create_task(self._drain())
        return await self._in_time(future)

    async def write(self, call: Callable[[], T], *, repeatable: bool = True) -> T:
        """Run a rarer write on the worker's thread, between two batches.

        Args:
            call: The write.
            repeatable: Whether the same request, sent again, finds what this one did.

        Raises:
            Problem: As `decide`.
        """
        self._check_open(self._writes)
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
        self._writes += 1
        future.add_done_callback(self._written)
        return await self._in_time(future, repeatable)

    @property
    def oldest(self) -> float:
        """Seconds that the longest-waiting ask has waited."""
        return time.monotonic() - self._queue[0].since if self._queue else 0.0

    async def close(self) -> None:
        """Refuse what comes, answer what is queued, stop the thread."""
        self._closing = True
        while self._worker is not None:
            await self._worker
        await asyncio.to_thread(self._thread.shutdown)

    def _written(self, _: object) -> None:
        self._writes -= 1

    def _check_open(self, n_waiting: int) -> None:
        if n_waiting >= self._max_queue:
            raise Problem(
                503,
                code="overloaded",
                detail=f"{self._max_queue} requests are waiting already. Send it again later.",
                retryable=True,
                headers={"Retry-After": "1"},
            )
        if self._closing:
            raise Problem(
                503,
                code="shutting-down",
                detail="The server is shutting down. Send it again.",
                retryable=True,
                headers={"Retry-After": "2"},
            )

    async def _in_time(self, future: asyncio.Future[T], repeatable: bool = True) -> T:
        try:
            # shielded: once queued it may be committed, and then a repeat must find it
            return await asyncio.wait_for(asyncio.shield(future), self._deadline)
        except TimeoutError as error:
            future.add_done_callback(_look_at)
            what_next = (
                "Send the same again: what was done meanwhile is answered from the store."
                if repeatable
                else "It may be done all the same: look before you send it again, and send an "
                "Idempotency-Key the next time, with which a repeat is answered from the store."
            )
            raise Problem(
                503,
                code="deadline",
                detail=f"Not done within {self._deadline:g} s. {what_next}",
                retryable=repeatable,
                headers={"Retry-After": "1"} if repeatable else None,
            ) from error
        except asyncio.CancelledError:
            future.add_done_callback(_look_at)
            raise

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                batch = self._take()
                now = time.monotonic()
                for waiting in batch:
                    self._metrics.phases.labels("queue").observe(now - waiting.since)
                asks = [waiting.ask for waiting in batch]
                try:
                    answers = await loop.run_in_executor(self._thread, self._ledger.decide, asks)
                except Exception as error:
                    if not isinstance(error, StoreError):
                        log.exception("a batch of %d decisions failed", len(batch))
                    answers = [error] * len(batch)
                for waiting, answer in zip(batch, answers, strict=True):
                    if waiting.future.done():
                        continue
                    if isinstance(answer, Exception):
                        waiting.future.set_exception(answer)
                    else:
                        waiting.future.set_result(answer)
        finally:
            self._worker = None

    def _take(self) -> list[_Waiting]:
        """The oldest asks, one per session: the second of a session waits for the first."""
        batch: list[_Waiting] = []
        later: list[_Waiting] = []
        sessions: set[str] = set()
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if waiting.ask.session in sessions:
                later.append(waiting)
            else:
                sessions.add(waiting.ask.session)
                batch.append(waiting)
        self._queue.extendleft(reversed(later))
        return batch


def _look_at(future: asyncio.Future[T]) -> None:
    """Nobody waits any more; asyncio must not complain that an error was never looked at."""
    if not future.cancelled():
        future.exception()
