"""What every request passes: an id, a timer, the key check, the body limit, and problems only."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import OPEN_PATHS
from .body import read_body
from .problems import from_exception, render
from .refusals import CONFLICTS
from .services import Services

log = logging.getLogger("lhopt.server")

#: Methods that metrics tell apart; a client may invent others.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Gate:
    """ASGI middleware around the whole application; default-deny.

    Args:
        app: What is behind it.
        services: Gives the services, once the application has started.
    """

    def __init__(self, app: ASGIApp, services: Callable[[], Services]) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websocket is served
        services = self._services()
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                state["owner"] = await services.keys.owner(scope)
            limits = services.settings
            receive = await read_body(scope, receive, limits.max_body_bytes, limits.body_timeout)
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            problem = from_exception(error)
            state["problem"] = problem.code
            if problem.status == 500:
                log.exception("request %s failed", request_id)
            if status == 0:
                answer = render(problem, scope["path"], request_id)
                await answer(scope, receive, send_with_id)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "unmatched")
            services.metrics.requests.labels(method, route, str(status)).observe(
                time.perf_counter() - started
            )
            code = state.get("problem")
            if code in CONFLICTS:
                services.metrics.conflicts.labels(code).inc()
            elif code == "store-unavailable":
                services.metrics.store_errors.inc()
                log.warning("request %s: the database did not take it", request_id)
