"""The async client: the same calls as `client/blocking.py`, for asyncio."""

from __future__ import annotations

import asyncio
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


class AsyncClient:
    """Talks to an lhopt server from asyncio.

        async with AsyncClient("http://localhost:8000") as client:
            session = await client.open_session(optimizer="torch.optim.AdamW",
                                                controls=["learning_rate"], share=1 / 32)
            decision = await session.decide(session.opened.next_index, statistics, situation)

    Args:
        base_url: The server; `LHOPT_URL` if not given.
        api_key: Bearer token; `LHOPT_API_KEY` if not given.
        timeout: Seconds that one call may take, retries included.
        transport: Instead of the network, e.g. `httpx.ASGITransport(app)` in tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 2.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = Connection.create(base_url, api_key, timeout)
        self._http = httpx.AsyncClient(transport=transport, **self._connection.options())

    def __repr__(self) -> str:
        return self._connection.describe(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; sessions on the server stay open."""
        await self._http.aclose()

    async def open_session(
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
    ) -> AsyncSession:
        """See `Client.open_session`."""
        operation = operations.open_session(
            policy=policy,
            optimizer=optimizer,
            controls=controls,
            share=share,
            scheduled=scheduled,
            name=name,
            metadata=metadata,
        )
        return AsyncSession(self, await self.run(operation, timeout))

    async def session(self, session_id: str) -> dict[str, Any]:
        """What the server knows of a session."""
        return await self.run(operations.get_session(session_id))

    async def decisions(self, session_id: str) -> list[dict[str, Any]]:
        """Every decision of a session, page by page."""
        items: list[dict[str, Any]] = []
        start: int | None = 0
        while start is not None:
            page = await self.run(operations.list_decisions(session_id, start))
            items, start = items + page.items, page.next_from
        return items

    async def policies(self) -> list[dict[str, Any]]:
        """The server's policies."""
        return await self.run(operations.list_policies())

    async def alive(self) -> bool:
        """Whether an lhopt server answers there."""
        try:
            await self.run(operations.alive())
        except ServerError:
            return False
        return True

    async def run(self, operation: Operation[T], timeout: float | None = None) -> T:
        """See `Client.run`."""
        limit = self._connection.timeout if timeout is None else timeout
        steps = exchange(operation.call, Deadline.after(limit))
        reply: Answer | ServerUnreachable | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return operation.result(end.value)
            if isinstance(step, Send):
                reply = await self._send(operation.call, step.timeout)
            else:
                await asyncio.sleep(step.seconds)
                reply = None

    async def _send(self, call: Call, timeout: float) -> Answer | ServerUnreachable:
        where = f"{call.method} {call.path} at {self._connection.address}"
        request = call.build(self._http, timeout)
        try:
            async with asyncio.timeout(timeout):
                response = await self._http.send(request, stream=True)
                try:
                    content = b""
                    async for chunk in response.aiter_bytes():
                        content += chunk
                        if len(content) > MAX_ANSWER_BYTES:
                            return ServerUnreachable(f"{where}: the answer is too long.")
                    return Answer(response.status_code, response.headers, content)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            return DeadlineExceeded(f"{where}: no whole answer within {timeout:.3g} s.")
        except httpx.HTTPError as error:
            return ServerUnreachable(f"{where}: {type(error).__name__}: {error}")


class AsyncSession:
    """One run on the server; see `Session`."""

    def __init__(self, client: AsyncClient, opened: Opened) -> None:
        self._client = client
        self.opened = opened
        self.attempt = opened.attempt

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self.opened.id

    async def decide(
        self,
        index: int,
        statistics: Statistics,
        situation: Situation,
        *,
        timeout: float | None = None,
    ) -> Decision:
        """See `Session.decide`."""
        operation = operations.decide(self.id, self.attempt, index, statistics, situation)
        return await self._client.run(operation, timeout)

    async def fork(
        self, next_index: int, *, parent_attempt: int | None = None, timeout: float | None = None
    ) -> int:
        """See `Session.fork`."""
        parent = self.attempt if parent_attempt is None else parent_attempt
        forked = await self._client.run(operations.fork(self.id, parent, next_index), timeout)
        self.attempt = forked.attempt
        self.opened = replace(self.opened, attempt=forked.attempt, next_index=forked.next_index)
        return forked.next_index

    async def decisions(self) -> list[dict[str, Any]]:
        """Every decision so far."""
        return await self._client.decisions(self.id)

    async def close(
        self, outcome: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> None:
        """End the run, with what came of it."""
        await self._client.run(operations.close_session(self.id, self.attempt, outcome), timeout)
