"""One call, its retries and its parsing, without any input or output.

`Exchange` is a generator that asks its driver to send or to sleep; the blocking and the async
client are two drivers of a few lines, so that the rules of retrying are written once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from .backends import Deadline
from .errors import AnswerError, ApiError, DeadlineExceeded, ServerError, ServerUnreachable

RETRIES = 2
FIRST_WAIT = 0.1
RETRY_STATUS = frozenset({408, 429, 502, 503, 504})
#: No answer of this API is larger.
MAX_ANSWER_BYTES = 4 * 2**20

# our own generator: the job's global one must give the same numbers with and without us
_jitter = random.Random()


@dataclass(frozen=True)
class Call:
    """One request of the API.

    Attributes:
        method: HTTP method.
        path: Below the base URL, e.g. "/v1/policies".
        body: JSON body, or `None`.
        key: Idempotency key of a POST; the same in every retry.
        params: Query parameters.
    """

    method: str
    path: str
    body: Any = None
    key: str | None = None
    params: Mapping[str, str] | None = None

    def build(self, client: httpx.Client | httpx.AsyncClient, timeout: float) -> httpx.Request:
        """The request, as httpx sends it.

        Raises:
            ValueError: The body holds a number that is not finite.
        """
        # not compressed: answers are small, and a small body cannot then unpack to a huge one
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        content = None
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(self.body, allow_nan=False, separators=(",", ":")).encode()
        if self.key is not None:
            headers["Idempotency-Key"] = self.key
        return client.build_request(
            self.method,
            self.path,
            content=content,
            headers=headers,
            params=None if self.params is None else dict(self.params),
            timeout=timeout,
        )


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(frozen=True)
class Send:
    """Send the request once; the driver gives back an `Answer` or a `ServerUnreachable`."""

    timeout: float


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    seconds: float


Exchange = Generator[Send | Sleep, Answer | ServerUnreachable | None, Any]


def exchange(call: Call, deadline: Deadline) -> Exchange:
    """Send a call until it succeeds, cannot succeed, or time is up; returns the parsed JSON.

    Raises:
        ServerError: Of the last try.
    """
    where = f"{call.method} {call.path}"
    error: ServerError = DeadlineExceeded(f"{where}: no time was left to ask.")
    for attempt in range(RETRIES + 1):
        if deadline.left <= 0:
            raise error
        answer = yield Send(deadline.left)
        wait = FIRST_WAIT * 2**attempt * (1.0 + 0.5 * _jitter.random())
        if isinstance(answer, Answer):
            if 200 <= answer.status < 300:
                return parse(answer, where)
            error = refusal(answer, where)
            if not (error.status in RETRY_STATUS or (error.status == 409 and error.retryable)):
                raise error
            wait = max(wait, retry_after(answer.headers))
        else:
            assert answer is not None
            error = answer
        if attempt == RETRIES or wait >= deadline.left:
            raise error
        yield Sleep(wait)
    raise error


def parse(answer: Answer, where: str) -> Any:
    """The JSON of an answer.

    Raises:
        AnswerError: It is not JSON (bare NaN is not).
    """

    def refuse(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    try:
        return json.loads(answer.content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise AnswerError(
            f"{where} answered {answer.status} with a body that is not JSON ({error}). Does the "
            "URL lead to an lhopt server?"
        ) from error


def refusal(answer: Answer, where: str) -> ApiError:
    """The error that an answer names."""
    try:
        problem = parse(answer, where)
    except AnswerError:
        problem = {}
    return ApiError(answer.status, problem if isinstance(problem, dict) else {}, where)


def retry_after(headers: httpx.Headers) -> float:
    """Seconds that the server asks us to wait; 0 if it does not say (or names a date)."""
    try:
        return max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
