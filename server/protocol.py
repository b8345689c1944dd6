"""The edge below the application: a request's head is bounded in bytes and in time.

uvicorn's parser keeps a head however long it grows, and a connection however long it says nothing;
both happen before any key is looked at.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .settings import Settings

#: Bytes of a request's head: its line and its headers.
MAX_HEAD_BYTES = 64 * 1024
#: A body in chunks of one byte takes six bytes for each.
_CHUNKED = 8
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Make a subclass with the bounds of a server's settings by `bounded`.

    Attributes:
        head_timeout: Seconds from a connection's beginning, or a head's first byte, to the head's
            end; the connection is closed then.
        max_bytes: Bytes of a whole request, as they come; a body beyond its own limit is refused
            by the application before that.
    """

    head_timeout: float
    max_bytes: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer connects."""
        super().connection_made(transport)
        self._in_head, self._received = True, 0
        self._timer: asyncio.TimerHandle | None = None
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection ends."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes come, 256 KiB at a time at most."""
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        # what begins no request (an empty line, a body that nobody waits for) ends uvicorn's timer
        # of idle connections all the same
        if self._in_head or self.cycle is None or self.cycle.response_complete:
            self._start()
        if self._received > (MAX_HEAD_BYTES if self._in_head else self.max_bytes):
            # not into the middle of the answer to a request before it
            if self._in_head and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._in_head, self._received = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._in_head = False
        self._stop()
        super().on_headers_complete()

    def _start(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def bounded(settings: Settings) -> type[BoundedProtocol]:
    """The protocol with a server's bounds, for `uvicorn.Config(http=...)`."""
    bounds = {
        "head_timeout": settings.head_timeout,
        "max_bytes": MAX_HEAD_BYTES + _CHUNKED * settings.max_body_bytes,
    }
    return type("BoundedProtocol", (BoundedProtocol,), bounds)
