"""Every refusal as RFC 9457 problem details; nothing else leaves this server as an error.

Members: type, title, status, detail, instance, code, request_id, retryable, and extras that a
program can act on (`expected_index`, `attempt`, `nearest`, `errors`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from .store import StoreError

log = logging.getLogger("lhopt.server")

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 16
_CODES = {404: "not-found", 405: "method-not-allowed", 406: "not-acceptable"}


class Problem(Exception):
    """A refusal, with what a program needs to act on it.

    Args:
        status: HTTP status.
        code: Stable word for programs, e.g. "decision-gap".
        detail: For people: what came, what is allowed, what to do.
        retryable: Whether the same request may succeed later.
        headers: Sent beside the body.
        extras: Further members.
    """

    def __init__(
        self,
        status: int,
        *,
        code: str,
        detail: str,
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
        **extras: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.retryable, self.headers, self.extras = retryable, dict(headers or {}), extras


def store_unavailable(error: StoreError) -> Problem:
    """The database could not be read or written; nothing was decided."""
    return Problem(
        503,
        code="store-unavailable",
        detail=f"The database did not take it ({error}). Nothing was decided; send it again.",
        retryable=True,
        headers={"Retry-After": "1"},
    )


def render(problem: Problem, path: str, request_id: str) -> Response:
    """The answer that carries a problem."""
    body = {
        **problem.extras,
        "type": f"urn:lhopt:problem:{problem.code}",
        "title": problem.code.replace("-", " ").capitalize(),
        "status": problem.status,
        "detail": problem.detail,
        "instance": path[:512],
        "code": problem.code,
        "request_id": request_id,
        "retryable": problem.retryable,
    }
    return Response(
        # ASCII: whatever a client sent and we quote (half of a surrogate pair, say) can be written
        json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii"),
        problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


def came(value: Any) -> str:
    """A value as a message may quote it: short, and never an error by itself."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def invalid(errors: list[Any]) -> Problem:
    """422 for a request of the wrong shape; `errors` are pydantic's."""
    rows = [
        {
            "where": ".".join(str(part)[:64] for part in error["loc"]) or "body",
            "problem": str(error["msg"])[:200],
            "came": "nothing" if error["type"] == "missing" else came(error.get("input")),
        }
        for error in errors[:MAX_ERRORS]
    ]
    first = rows[0]
    more = f" ({len(errors) - 1} more in `errors`.)" if len(errors) > 1 else ""
    return Problem(
        422,
        code="invalid-request",
        detail=f"{first['where']}: {first['problem']}; {first['came']} came.{more}",
        errors=rows,
    )


def from_exception(error: Exception) -> Problem:
    """The problem that an exception becomes."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreError):
        return store_unavailable(error)
    if isinstance(error, RequestValidationError):
        return invalid(list(error.errors()))
    if isinstance(error, ValidationError):
        return invalid(list(error.errors(include_url=False)))
    if isinstance(error, HTTPException):
        allowed = (error.headers or {}).get("Allow", "another method")
        code = _CODES.get(error.status_code, f"http-{error.status_code}")
        detail = {
            404: "There is nothing here. The API lives under /v1; GET /openapi.json lists it.",
            405: f"This path does not take the method. Allowed: {allowed}.",
        }.get(error.status_code, str(error.detail))
        return Problem(error.status_code, code=code, detail=detail, headers=error.headers)
    return Problem(
        500,
        code="internal-error",
        detail="The server failed on this request. Its log names the request_id.",
        retryable=True,
    )


def install(app: FastAPI) -> None:
    """Answer what routes and routing raise with problem details."""

    def allowed(request: Request) -> str:
        # of several routes on one path the router names only the first one's method
        scope = request.scope
        return ", ".join(
            method
            for method in ("GET", "POST", "PUT")
            if any(
                route.matches({**scope, "method": method})[0] is Match.FULL
                for route in app.router.routes
            )
        )

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            error.headers = {"Allow": allowed(request)}
        problem = from_exception(error)
        request.state.problem = problem.code
        return render(problem, request.url.path, request.state.request_id)

    for kind in (Problem, StoreError, RequestValidationError, ValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
