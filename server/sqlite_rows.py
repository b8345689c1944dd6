"""Rows of the SQLite tables to records and back."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from .store import DecisionRecord, IdempotencyRecord, SessionRecord

SESSION = (
    "id, owner, name, status, attempt, next_index, policy_name, policy_digest, optimizer, "
    "controls, share, scheduled, metadata, opening, created, updated, outcome"
)
DECISION = (
    "session, attempt, idx, fingerprint, policy_digest, statistics, situation, decision, "
    "state_after, answer, at"
)


def to_session(row: Any) -> SessionRecord:
    """A row of `SESSION` columns."""
    (
        id_, owner, name, status, attempt, next_index, policy_name, policy_digest, optimizer,
        controls, share, scheduled, metadata, opening, created, updated, outcome,
    ) = row  # fmt: skip
    return SessionRecord(
        id=id_,
        owner=owner,
        name=name,
        status=status,
        attempt=attempt,
        next_index=next_index,
        policy_name=policy_name,
        policy_digest=policy_digest,
        optimizer=optimizer,
        controls=tuple(json.loads(controls)),
        share=share,
        scheduled=bool(scheduled),
        metadata=json.loads(metadata),
        opening=json.loads(opening),
        created=created,
        updated=updated,
        outcome=json.loads(outcome) if outcome else None,
    )


def to_decision(row: Any) -> DecisionRecord:
    """A row of `DECISION` columns."""
    session, attempt, index, fingerprint, digest, *texts, state_after, answer, at = row
    statistics, situation, decision = map(json.loads, texts)
    return DecisionRecord(
        session=session,
        attempt=attempt,
        index=index,
        fingerprint=fingerprint,
        policy_digest=digest,
        statistics=statistics,
        situation=situation,
        decision=decision,
        state_after=state_after,
        answer=answer,
        at=at,
    )


def keep(db: sqlite3.Connection, answer: IdempotencyRecord | None) -> None:
    """Insert an answer to a POST that carried a key."""
    if answer is not None:
        a = answer
        row = (a.owner, a.key, a.fingerprint, a.status, a.location, a.answer, a.at)
        db.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def dump(value: Any) -> str:
    """Compact JSON; not finite is an error."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def marks(row: tuple[Any, ...]) -> str:
    """Placeholders for a row."""
    return ", ".join("?" * len(row))
