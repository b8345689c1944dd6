"""Who asks. Every path but the two health checks needs a key, once there is one.

Without any key (revoked ones count) only peers on this machine are served. Such a server is
protected from the browser on the same machine too: a web page may not speak to it through a name
of its own, and what a proxy on this machine hands on is no local peer, if a header says that there
is one. A proxy that adds none cannot be told from a local client: make a key before one is set up.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from .keys import matches
from .problems import Problem
from .settings import is_loopback
from .store import KeyRecord, Store

if TYPE_CHECKING:
    from starlette.types import Scope

OPEN_PATHS = frozenset({"/livez", "/readyz"})
#: Owner of what is opened while there is no key.
LOCAL = "local"
#: Headers that proxies add.
_PROXIES = (
    "forwarded", "via", "x-real-ip", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
)  # fmt: skip


class KeyRing:
    """The keys, read again from the store every `refresh` seconds; a revoked key stops then.

    Args:
        store: Where the keys are.
        refresh: Seconds.
    """

    def __init__(self, store: Store, refresh: float) -> None:
        self._store, self._refresh = store, refresh
        self._keys: dict[str, KeyRecord] = {}
        self._read_at = -1e9
        self._reading = asyncio.Lock()

    async def owner(self, scope: Scope) -> str:
        """Short id of the key that a request carries, or `LOCAL`.

        Raises:
            Problem: 401.
            StoreError: The keys cannot be read.
        """
        if time.monotonic() - self._read_at > self._refresh:
            async with self._reading:
                if time.monotonic() - self._read_at > self._refresh:
                    rows = await asyncio.to_thread(self._store.list_keys)
                    self._keys = {row.short: row for row in rows}
                    self._read_at = time.monotonic()
        headers = Headers(scope=scope)
        if not self._keys:
            return _local(scope, headers)
        kind, _, token = headers.get("authorization", "").partition(" ")
        key = matches(self._keys, token.strip()) if kind.lower() == "bearer" else None
        if key is None:
            came = "An unknown or revoked key came" if kind else "No key came"
            active = any(row.revoked is None for row in self._keys.values())
            made = "" if active else " Every key is revoked: 'lhopt keys create' makes another."
            raise _refused(f"{came}; send the header 'Authorization: Bearer lho_...'.{made}")
        return key.short


def _local(scope: Scope, headers: Headers) -> str:
    peer = scope.get("client")
    if not is_loopback(peer[0] if peer else None) or any(name in headers for name in _PROXIES):
        raise _refused(
            "This server has no key yet and serves only its own machine. Make one there with "
            "'lhopt keys create --name NAME'."
        )
    host = headers.get("host", "").rsplit("@", 1)[-1]
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    # a name with a dot may be a web page's own that resolves to us (DNS rebinding)
    if not is_loopback(name) and any(mark in name for mark in ".:"):
        raise _refused(
            f"The request names the host {name[:100]!r}; without a key only localhost and "
            "loopback addresses are served."
        )
    return LOCAL


def _refused(detail: str) -> Problem:
    return Problem(
        401,
        code="unauthorized",
        detail=detail,
        headers={"WWW-Authenticate": 'Bearer realm="lhopt"'},
    )
