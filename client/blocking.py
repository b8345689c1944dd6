"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import httpx

from ..core.actions import Decision
from ..core.features import Situation
from ..core.statistics import Statistics
from . import operations
from .backends import Deadline
from .connection import Connection
from .errors import DeadlineExceeded, ServerError, ServerUnreachable
from .exchange import MAX_ANSWER_BYTES, Answer, Call, Send, exchange
from .operations import Opened, Operation

T = TypeVar("T")
#: Requests given up by their deadline that may still hang in a thread; beyond, calls fail at once.
MAX_ABANDONED = 4


class Client:
    """Talks to an lhopt server.

        with Client("http://localhost:8000", api_key="...") as client:
            session = client.open_session(optimizer="torch.optim.AdamW",
                                          controls=["learning_rate"], share=1 / 32)
            apply(session.opened.decision)
            decision = session.decide(session.opened.next_index, statistics, situation)
            session.close({"train_loss": 0.1})

    `timeout` is the total of one call: name look-up, connecting, a server that answers byte by
    byte, and retries. Threads may share a client.

    Args:
        base_url: The server; `LHOPT_URL` if not given.
        api_key: Bearer token; `LHOPT_API_KEY` if not given.
        timeout: Seconds that one call may take.
        transport: Instead of the network, for tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 2.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection.create(base_url, api_key, timeout)
        self._http = httpx.Client(transport=transport, **self._connection.options())
        self._abandoned: list[threading.Thread] = []

    def __repr__(self) -> str:
        return self._connection.describe(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; sessions on the server stay open."""
        self._http.close()

    def open_session(
        self,
        *,
        optimizer: str,
        controls: Sequence[str],
        share: float,
        policy: str | None = None,
        scheduled: bool = True,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Begin a run; the session holds the decision for its first interval.

        Raises:
            ServerError: The server cannot be reached, or refuses.
        """
        operation = operations.open_session(
            policy=policy,
            optimizer=optimizer,
            controls=controls,
            share=share,
            scheduled=scheduled,
            name=name,
            metadata=metadata,
        )
        return Session(self, self.run(operation, timeout))

    def session(self, session_id: str) -> dict[str, Any]:
        """What the server knows of a session."""
        return self.run(operations.get_session(session_id))

    def decisions(self, session_id: str) -> list[dict[str, Any]]:
        """Every decision of a session, page by page."""
        items: list[dict[str, Any]] = []
        start: int | None = 0
        while start is not None:
            page = self.run(operations.list_decisions(session_id, start))
            items, start = items + page.items, page.next_from
        return items

    def policies(self) -> list[dict[str, Any]]:
        """The server's policies."""
        return self.run(operations.list_policies())

    def alive(self) -> bool:
        """Whether an lhopt server answers there."""
        try:
            self.run(operations.alive())
        except ServerError:
            return False
        return True

    def run(self, operation: Operation[T], timeout: float | None = None) -> T:
        """Carry out one operation within `timeout` seconds.

        Raises:
            ServerError: No answer, a refusal, or an answer of another API.
            ProtocolError: A decision that cannot be one.
        """
        limit = self._connection.timeout if timeout is None else timeout
        steps = exchange(operation.call, Deadline.after(limit))
        reply: Answer | ServerUnreachable | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return operation.result(end.value)
            if isinstance(step, Send):
                reply = self._send(operation.call, step.timeout)
            else:
                time.sleep(step.seconds)
                reply = None

    def _send(self, call: Call, timeout: float) -> Answer | ServerUnreachable:
        """Send once, in a thread: httpx limits each read, but not their sum, nor name look-up."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        where = f"{call.method} {call.path} at {self._connection.address}"
        if len(self._abandoned) >= MAX_ABANDONED:
            return DeadlineExceeded(f"{where}: earlier requests still hang.")
        request = call.build(self._http, timeout)
        box: list[Answer | ServerUnreachable] = []
        deadline = Deadline.after(timeout)

        def work() -> None:
            try:
                box.append(_fetch(self._http, request, deadline, where))
            except Exception as error:
                box.append(ServerUnreachable(f"{where}: {type(error).__name__}: {error}"))

        thread = threading.Thread(target=work, name="lhopt-request", daemon=True)
        thread.start()
        thread.join(timeout)
        if box:
            return box[0]
        self._abandoned.append(thread)
        return DeadlineExceeded(f"{where}: no whole answer within {timeout:.3g} s.")


def _fetch(
    http: httpx.Client, request: httpx.Request, deadline: Deadline, where: str
) -> Answer | ServerUnreachable:
    response = http.send(request, stream=True)
    try:
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_ANSWER_BYTES or deadline.left < 0:
                return DeadlineExceeded(f"{where}: the answer is too long, or comes too slowly.")
        return Answer(response.status_code, response.headers, content)
    finally:
        response.close()


class Session:
    """One run on the server, and the attempt that this process makes.

    Attributes:
        opened: What the server answered when the session was opened.
        attempt: The present attempt.
    """

    def __init__(self, client: Client, opened: Opened) -> None:
        self._client = client
        self.opened = opened
        self.attempt = opened.attempt

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self.opened.id

    def decide(
        self,
        index: int,
        statistics: Statistics,
        situation: Situation,
        *,
        timeout: float | None = None,
    ) -> Decision:
        """Report one interval; the decision for the next. Asking again gives the same answer."""
        operation = operations.decide(self.id, self.attempt, index, statistics, situation)
        return self._client.run(operation, timeout)

    def fork(
        self, next_index: int, *, parent_attempt: int | None = None, timeout: float | None = None
    ) -> int:
        """Open a new attempt that goes on at a decision; the old one is fenced off.

        Returns:
            The first decision to ask for.
        """
        parent = self.attempt if parent_attempt is None else parent_attempt
        forked = self._client.run(operations.fork(self.id, parent, next_index), timeout)
        self.attempt = forked.attempt
        self.opened = replace(self.opened, attempt=forked.attempt, next_index=forked.next_index)
        return forked.next_index

    def decisions(self) -> list[dict[str, Any]]:
        """Every decision so far."""
        return self._client.decisions(self.id)

    def close(
        self, outcome: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> None:
        """End the run, with what came of it."""
        self._client.run(operations.close_session(self.id, self.attempt, outcome), timeout)
