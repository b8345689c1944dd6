"""Request bodies: read whole within a size and a time, and parsed without JSON's loopholes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from .problems import Problem

M = TypeVar("M", bound=BaseModel)


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> Receive:
    """Read the whole body; returns a `receive` that hands it to the application.

    Raises:
        Problem: 413 above `limit` bytes, announced or not; 408 after `seconds`; 400 where the peer
            hung up before its end, for what came is not what was meant.
    """
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(
                        400,
                        code="body-incomplete",
                        detail=f"The connection was cut {size} bytes into the body. Send it again.",
                        retryable=True,
                    )
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError as error:
        raise Problem(
            408,
            code="body-timeout",
            detail=f"The body did not arrive within {seconds:g} s. Send it again.",
            retryable=True,
            headers={"Connection": "close"},
        ) from error
    pending: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]
    )

    async def replay() -> Message:
        return next(pending, None) or await receive()

    return replay


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        code="body-too-large",
        detail=f"The body has more than {limit} bytes. A report of every statistic needs 2,000.",
        limit_bytes=limit,
        headers={"Connection": "close"},
    )


async def parse(request: Request, model: type[M], *, empty: bool = False) -> M:
    """The request's JSON body, checked.

    Args:
        request: What came.
        model: Its shape.
        empty: Whether no body at all, of whatever content type, is one without fields.

    Raises:
        Problem: 415 for another content type; 400 for what is no JSON, bare NaN and overflowing
            numbers included.
        ValidationError: It is JSON of another shape (answered 422).
    """
    if empty and not await request.body():
        return model()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Problem(
            415,
            code="unsupported-media-type",
            detail=f"The content type is {kind[:100]!r}; send 'Content-Type: application/json'.",
        )
    body = await request.body()
    try:
        value = from_json(body, allow_inf_nan=False)
        _refuse_overflow(value)
    except (ValueError, RecursionError) as error:
        raise Problem(
            400,
            code="invalid-json",
            detail=f"The body is no JSON: {str(error)[:200]}. Numbers that are not finite travel "
            'as the strings "NaN", "Infinity" and "-Infinity".',
        ) from error
    return model.model_validate(value)


def _refuse_overflow(value: Any) -> None:
    """1e999 is JSON, but the number it reads as is infinite: nobody meant that."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large for a float64")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_overflow(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_overflow(item)
