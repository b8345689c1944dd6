"""What can go wrong between a job and a server.

    LhoptError
    +-- ServerError             base of the four below
        +-- ServerUnreachable   no answer: refused, cut, or not in time (`DeadlineExceeded`)
        +-- ApiError            an answer that says no, with the problem it names
        +-- AnswerError         an answer that is no answer of this API

`Tuner` catches all of them; `Client` and `AsyncClient` raise them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import LhoptError


class ServerError(LhoptError):
    """Something between us and the server failed."""


class ServerUnreachable(ServerError):
    """No answer came: nobody listens, or the connection was cut."""


class DeadlineExceeded(ServerUnreachable):
    """No whole answer came in time."""


class AnswerError(ServerError):
    """An answer came that this API does not give: another service, or another version."""


class ApiError(ServerError):
    """The server refused.

    Attributes:
        status: HTTP status.
        code: The problem's code, e.g. "decision-gap"; "http-STATUS" where the body names none.
        detail: What it says to people.
        retryable: Whether the server says that the same request may succeed later.
        expected_index: The decision it waits for, where it names one.
        problem: The whole problem object.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], where: str) -> None:
        self.status = status
        self.problem = dict(problem)
        code, detail = problem.get("code"), problem.get("detail")
        self.code = code if isinstance(code, str) else f"http-{status}"
        self.detail = detail if isinstance(detail, str) else ""
        self.retryable = problem.get("retryable") is True
        expected = problem.get("expected_index")
        whole = isinstance(expected, int) and not isinstance(expected, bool) and expected >= 0
        self.expected_index: int | None = expected if whole else None
        super().__init__(f"{where} answered {status} {self.code}. {self.detail}".rstrip())
