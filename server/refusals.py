"""The refusals that a session's own state asks for, one function each."""

from __future__ import annotations

import numpy as np

from ..core.controls import CONTROL_NAMES
from ..core.errors import LhoptError
from ..core.features import Situation
from .problems import Problem
from .store import SessionRecord

#: Codes counted in `lhopt_conflicts_total`.
CONFLICTS = frozenset(
    {
        "decision-gap",
        "stale-attempt",
        "unknown-attempt",
        "statistics-mismatch",
        "session-closed",
        "session-busy",
        "idempotency-key-reused",
    }
)


def check_key(session: SessionRecord, attempt: int, index: int) -> None:
    """Refuse a decision key that is not the next one and was never answered.

    Raises:
        Problem: 410 closed, 409 another attempt, 409 a gap.
    """
    check_open(session)
    if attempt != session.attempt:
        raise other_attempt(session, attempt)
    if index > session.next_index:
        raise Problem(
            409,
            code="decision-gap",
            detail=f"Decision {index} came before {session.next_index}. Send "
            f"{session.next_index} first, or open a new attempt.",
            expected_index=session.next_index,
            attempt=session.attempt,
        )


def check_open(session: SessionRecord) -> None:
    """Refuse a closed session.

    Raises:
        Problem: 410.
    """
    if session.status == "closed":
        raise Problem(
            410,
            code="session-closed",
            detail="The session was closed and decides nothing more. Open a new one.",
        )


def other_attempt(session: SessionRecord, attempt: int) -> Problem:
    """409 for a decision of an attempt that is not the current one."""
    if attempt < session.attempt:
        return Problem(
            409,
            code="stale-attempt",
            detail=f"Attempt {attempt} was fenced off; the session is at attempt "
            f"{session.attempt}. Another process took the job over: stop, or open an attempt.",
            attempt=session.attempt,
            expected_index=session.next_index,
        )
    return Problem(
        409,
        code="unknown-attempt",
        detail=f"Attempt {attempt} was never opened; the session is at attempt {session.attempt}.",
        attempt=session.attempt,
        expected_index=session.next_index,
    )


def mismatch(session: SessionRecord, index: int) -> Problem:
    """422 for a decision that was made from other statistics."""
    return Problem(
        422,
        code="statistics-mismatch",
        detail=f"Decision {index} was made from other statistics; it stands. Send "
        f"{session.next_index} next, or open an attempt that forks at {index}.",
        expected_index=session.next_index,
        attempt=session.attempt,
    )


def foreign_control(session: SessionRecord, situation: Situation) -> Problem | None:
    """422 for a situation that names a control the session does not steer."""
    reported = [
        name
        for name, value in zip(CONTROL_NAMES, situation.relative[0], strict=True)
        if np.isfinite(value) and name not in session.controls
    ]
    if not reported:
        return None
    return Problem(
        422,
        code="unknown-control",
        detail=f"relative names {', '.join(reported)}; this session steers "
        f"{', '.join(session.controls)}. Leave the others out.",
        controls=list(session.controls),
    )


def no_session(session_id: str) -> Problem:
    """404, the same for a session that never was and for another key's."""
    return Problem(
        404,
        code="no-session",
        detail=f"This key has no session {session_id[:40]!r}. Open one with POST /v1/sessions.",
    )


def policy_gone(session: SessionRecord) -> Problem:
    """503: the policy that a session is pinned to is not loaded."""
    return Problem(
        503,
        code="policy-not-loaded",
        detail=f"The session is pinned to policy {session.policy_name!r} "
        f"({session.policy_digest}), which this server has not loaded. Put its files back into "
        "the policies folder and restart the server, or open a new session.",
        retryable=True,
        headers={"Retry-After": "30"},
        policy=session.policy_digest,
    )


def foreign_state(error: LhoptError) -> Problem:
    """409: the session's state was written by a version with other features."""
    return Problem(
        409,
        code="state-incompatible",
        detail=f"The session cannot go on in this version: {error} Open a new session.",
    )


def busy(session_id: str) -> Problem:
    """409: other processes moved the session on each time we tried."""
    return Problem(
        409,
        code="session-busy",
        detail=f"Session {session_id} is being moved on by another server. Send it again.",
        retryable=True,
        headers={"Retry-After": "1"},
    )
