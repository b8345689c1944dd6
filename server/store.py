"""What the server keeps, and what a store must do. Append-only: forks and closes add rows.

Any store gives the same answers: `commit` is a compare-and-swap per session on (attempt,
next_index), so two processes on one database cannot decide one index twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..core.errors import LhoptError

Status = Literal["open", "closed"]


class StoreError(LhoptError):
    """The store could not read or write: locked, full, read-only or gone. Nothing was changed."""


@dataclass(frozen=True)
class SessionRecord:
    """A training job.

    Attributes:
        id: "ses_" and 26 characters of base32.
        owner: Short id of the key that opened it; "local" where no key exists.
        attempt: The current attempt; older ones are fenced off.
        next_index: Index of the decision that comes next.
        share: Fraction of the run that one interval takes, as the job said at opening.
        opening: The encoded decision for the first interval.
        created: Unix seconds.
        updated: Unix seconds of the latest decision, fork or close.
        outcome: What the job said when it closed.
    """

    id: str
    owner: str
    name: str | None
    status: Status
    attempt: int
    next_index: int
    policy_name: str
    policy_digest: str
    optimizer: str
    controls: tuple[str, ...]
    share: float
    scheduled: bool
    metadata: dict[str, str]
    opening: dict[str, Any]
    created: float
    updated: float
    outcome: dict[str, Any] | None = None


@dataclass(frozen=True)
class AttemptRecord:
    """One uninterrupted stretch of a session.

    Attributes:
        parent: The attempt it was forked from; None for the first.
        start: Index of its first own decision; lower ones are its parent's.
        created: Unix seconds.
    """

    session: str
    attempt: int
    parent: int | None
    start: int
    created: float


@dataclass(frozen=True)
class DecisionRecord:
    """One committed decision.

    Attributes:
        fingerprint: SHA-256 of the canonical request, hex.
        statistics: As encoded by `core.wire`.
        situation: As encoded by `core.wire`.
        decision: As encoded by `core.wire`: "action" is the policy's bounded part, "moves" what
            the job is told to do.
        state_after: `runtime.State.to_bytes` after the decision.
        answer: The bytes that were answered.
        at: Unix seconds.
    """

    session: str
    attempt: int
    index: int
    fingerprint: str
    policy_digest: str
    statistics: dict[str, Any]
    situation: dict[str, Any]
    decision: dict[str, Any]
    state_after: bytes
    answer: bytes
    at: float


@dataclass(frozen=True)
class IdempotencyRecord:
    """The stored answer to a POST that carried an Idempotency-Key."""

    owner: str
    key: str
    fingerprint: str
    status: int
    location: str
    answer: bytes
    at: float


@dataclass(frozen=True)
class KeyRecord:
    """An API key; its secret is not here, only the secret's SHA-256 (hex)."""

    short: str
    name: str
    secret_sha256: str
    created: float
    revoked: float | None = None


class Store(Protocol):
    """Every method raises `StoreError` when the store is unavailable, and then changed nothing.

    Writes come from one thread. Reads that serve lists may come from another.
    """

    def add_session(self, session: SessionRecord, answer: IdempotencyRecord | None) -> None:
        """Keep a new session, its attempt 0 and the answer that opened it, in one transaction."""

    def session(self, session_id: str) -> SessionRecord | None:
        """One session."""

    def sessions(
        self, owner: str, status: Status | None, limit: int, after: tuple[float, str] | None
    ) -> list[SessionRecord]:
        """An owner's sessions, newest first, those behind (created, id) `after`."""

    def count_open(self, owner: str, since: float = 0.0) -> int:
        """Open sessions of an owner, of those that moved after `since` (Unix seconds)."""

    def counts(self) -> dict[Status, int]:
        """Sessions by status."""

    def attempts(self, session_id: str) -> list[AttemptRecord]:
        """Every attempt of a session, in order."""

    def head(self, session_id: str, attempt: int) -> int:
        """Index that came next in an attempt, when it was left or now."""

    def decision(self, session_id: str, attempt: int, index: int) -> DecisionRecord | None:
        """A decision that this very attempt made."""

    def decisions(
        self, session_id: str, attempt: int, start: int, stop: int
    ) -> list[DecisionRecord]:
        """Decisions of this very attempt with start <= index < stop, in order."""

    def commit(self, decisions: Sequence[DecisionRecord]) -> list[bool]:
        """Keep decisions of distinct sessions in one transaction.

        False where the session has moved on (attempt, next index or status): nothing is kept.
        """

    def fork(
        self,
        attempt: AttemptRecord,
        answer: IdempotencyRecord | None,
    ) -> bool:
        """Make `attempt` the current one; False if the session is not open at attempt - 1."""

    def close_session(
        self, session_id: str, outcome: dict[str, Any], at: float, attempt: int | None = None
    ) -> bool:
        """Close an open session; False if it is not, or not at `attempt` where one is named."""

    def idempotent(self, owner: str, key: str) -> IdempotencyRecord | None:
        """The answer stored under an owner's Idempotency-Key."""

    def add_key(self, key: KeyRecord) -> None:
        """Keep a new key."""

    def list_keys(self) -> list[KeyRecord]:
        """Every key, the revoked ones too, oldest first."""

    def revoke_key(self, short: str, at: float) -> bool:
        """Revoke a key; False if there is none of this short id, or it was revoked before."""

    def probe(self) -> None:
        """Write something and commit it."""

    def close(self) -> None:
        """Finish and let go of the database."""


def lineage(attempts: Sequence[AttemptRecord], attempt: int) -> list[tuple[int, int, int | None]]:
    """Which attempt made which decisions on the way to `attempt`: (attempt, start, stop), in order.

    The last stop is None: that attempt goes on. A fork below its parent's own start leaves the
    parent no decisions; such empty stretches are left out.
    """
    by_number = {row.attempt: row for row in attempts}
    out: list[tuple[int, int, int | None]] = []
    stop: int | None = None
    number: int | None = attempt
    while number is not None:
        row = by_number[number]
        if stop is None or row.start < stop:
            out.append((number, row.start, stop))
        stop = row.start if stop is None else min(stop, row.start)
        number = row.parent
    return out[::-1]


def maker(attempts: Sequence[AttemptRecord], attempt: int, index: int) -> int:
    """The attempt that made decision `index` in the lineage of `attempt`."""
    for number, start, stop in lineage(attempts, attempt):
        if start <= index and (stop is None or index < stop):
            return number
    raise AssertionError(f"no attempt made decision {index}")
