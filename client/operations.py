"""Every call of the API as a value: what to send, and how to read the answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from ..core.actions import Decision
from ..core.controls import CONTROLS
from ..core.errors import LhoptError
from ..core.features import Situation
from ..core.schedules import Schedule
from ..core.statistics import Statistics
from ..core.wire import (
    WIRE_VERSION,
    decode_decision,
    encode_situation,
    encode_statistics,
)
from .errors import AnswerError
from .exchange import Call

T = TypeVar("T")


@dataclass(frozen=True)
class Operation(Generic[T]):
    """A call and the function that reads its answer."""

    call: Call
    read: Callable[[Any], T]

    def result(self, body: Any) -> T:
        """The answer's meaning.

        Raises:
            AnswerError: It has another shape.
            ProtocolError: It holds a decision that cannot be one.
        """
        try:
            return self.read(body)
        except LhoptError:
            raise
        except Exception as error:
            raise AnswerError(
                f"{self.call.method} {self.call.path} answered in another shape than wire version "
                f"{WIRE_VERSION}: {error!r}."
            ) from error


@dataclass(frozen=True)
class Opened:
    """A session that was opened.

    Attributes:
        id: The server's name for it.
        attempt: The attempt that decisions belong to.
        next_index: The first decision to ask for.
        policy: Name and digest of the policy that decides.
        controls: What it steers of what the job offers.
        decision: For the first interval.
        schedule: The policy's default shape, to follow while there is no answer; None where the
            job brings its own schedule.
        needs_slope: Whether decisions depend on the slope of a held-out loss, where there is one.
    """

    id: str
    attempt: int
    next_index: int
    policy: Mapping[str, str]
    controls: tuple[str, ...]
    decision: Decision
    schedule: Schedule | None = None
    needs_slope: bool = False


def read_schedule(value: Any) -> Schedule | None:
    """The schedule that `Schedule.to_json` wrote; None for nothing.

    Raises:
        ValueError: It is no schedule.
    """
    if value is None:
        return None
    try:
        return Schedule(**value)
    except TypeError as error:
        raise ValueError(f"schedule {value!r}") from error


@dataclass(frozen=True)
class Forked:
    """A new attempt of a session, and the first decision to ask it for."""

    attempt: int
    next_index: int


def open_session(
    *,
    policy: str | None,
    optimizer: str,
    controls: Sequence[str],
    share: float,
    scheduled: bool,
    name: str | None,
    metadata: Mapping[str, Any] | None,
    key: str | None = None,
) -> Operation[Opened]:
    """`POST /v1/sessions`; with the same `key` it opens one session, however often it is sent."""
    body = {
        "wire_version": WIRE_VERSION,
        "name": name,
        "policy": policy,
        "optimizer": optimizer,
        "controls": list(controls),
        "share": share,
        "scheduled": scheduled,
        "metadata": dict(metadata or {}),
    }

    def read(answer: Any) -> Opened:
        steered = tuple(answer["controls"])
        unknown = [c for c in steered if c not in CONTROLS or c not in controls]
        if unknown:
            raise ValueError(f"controls {unknown!r} were not offered")
        return Opened(
            id=_text(answer["id"]),
            attempt=_index(answer["attempt"]),
            next_index=_index(answer["next_index"]),
            policy={k: _text(answer["policy"][k]) for k in ("name", "digest")},
            controls=steered,
            decision=decode_decision(answer["decision"]),
            schedule=read_schedule(answer.get("schedule")),
            needs_slope=answer.get("needs_slope") is True,
        )

    return Operation(Call("POST", "/v1/sessions", body, key or new_key()), read)


def decide(
    session: str, attempt: int, index: int, statistics: Statistics, situation: Situation
) -> Operation[Decision]:
    """`PUT /v1/sessions/{id}/attempts/{a}/decisions/{k}`."""
    body = {
        "statistics": encode_statistics(statistics),
        "situation": encode_situation(situation),
    }

    def read(answer: Any) -> Decision:
        if answer["index"] != index or answer["attempt"] != attempt or answer["session"] != session:
            raise ValueError(
                f"decision {answer['index']} of attempt {answer['attempt']} of "
                f"{answer['session']!r} came; {index} of {attempt} of {session!r} was asked for"
            )
        return decode_decision(answer["decision"])

    path = f"/v1/sessions/{_quoted(session)}/attempts/{attempt}/decisions/{index}"
    return Operation(Call("PUT", path, body), read)


def fork(session: str, parent_attempt: int, next_index: int) -> Operation[Forked]:
    """`POST /v1/sessions/{id}/attempts`."""
    body = {"parent_attempt": parent_attempt, "next_index": next_index}
    return Operation(
        Call("POST", f"/v1/sessions/{_quoted(session)}/attempts", body, new_key()),
        lambda answer: Forked(_index(answer["attempt"]), _index(answer["next_index"])),
    )


def close_session(
    session: str, attempt: int, outcome: Mapping[str, Any] | None
) -> Operation[dict[str, Any]]:
    """`POST /v1/sessions/{id}/close`; refused if another attempt took over."""
    path = f"/v1/sessions/{_quoted(session)}/close"
    body = {"outcome": dict(outcome or {}), "attempt": attempt}
    return Operation(Call("POST", path, body, new_key()), _object)


def get_session(session: str) -> Operation[dict[str, Any]]:
    """`GET /v1/sessions/{id}`."""
    return Operation(Call("GET", f"/v1/sessions/{_quoted(session)}"), _object)


@dataclass(frozen=True)
class Page:
    """Part of a list, and where the next part begins; `None` after the last."""

    items: list[dict[str, Any]]
    next_from: int | None


def list_decisions(session: str, start: int = 0) -> Operation[Page]:
    """`GET /v1/sessions/{id}/decisions`."""
    path = f"/v1/sessions/{_quoted(session)}/decisions"

    def read(answer: Any) -> Page:
        following = answer.get("next_from") if isinstance(answer, dict) else None
        if following is not None and _index(following) <= start:
            raise ValueError(f"next_from {following} does not lead on from {start}")
        return Page(_items(answer, "decisions"), following)

    return Operation(Call("GET", path, params={"from": str(start)}), read)


def list_policies() -> Operation[list[dict[str, Any]]]:
    """`GET /v1/policies`."""
    return Operation(Call("GET", "/v1/policies"), lambda answer: _items(answer, "policies"))


def alive() -> Operation[dict[str, Any]]:
    """`GET /livez`."""
    return Operation(Call("GET", "/livez"), _object)


def new_key() -> str:
    """A key for a POST that may be sent more than once."""
    return str(uuid.uuid4())


def _quoted(session: str) -> str:
    return quote(session, safe="")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no index")
    return value


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise ValueError(f"a {type(answer).__name__} came, an object is wanted")
    return answer


def _items(answer: Any, name: str) -> list[dict[str, Any]]:
    """A list, bare or as the member "items" or `name` of an object."""
    if isinstance(answer, dict):
        answer = answer["items"] if "items" in answer else answer[name]
    if not isinstance(answer, list):
        raise ValueError(f"a {type(answer).__name__} came, a list is wanted")
    return [_object(item) for item in answer]
