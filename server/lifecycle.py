"""Opening, forking and closing sessions: the rare writes, on the same thread as the decisions."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import BaseModel

from ..core.actions import COLUMN, N_CONTROLS
from ..core.wire import WIRE_VERSION, encode_decision
from ..policy.runtime import opening
from . import refusals
from .catalog import Catalog
from .choosing import choose
from .ledger import Ledger
from .models import ForkRequest, SessionRequest
from .problems import Problem
from .store import AttemptRecord, IdempotencyRecord, SessionRecord, Store, maker

#: From a body and a location to the answer as it is kept under its Idempotency-Key.
_Answer = Callable[[dict[str, Any], str], IdempotencyRecord]


@dataclass(frozen=True)
class Created:
    """A 201: what it says, where it is, whether it was made before."""

    body: bytes
    location: str
    replayed: bool


@dataclass(frozen=True)
class Lifecycle:
    """Sessions from opening to close. One thread at a time may be inside.

    Attributes:
        store: Where they are kept.
        catalog: The loaded policies.
        ledger: Its memory of a session is dropped when we change it.
        max_sessions: Open sessions per owner.
        idle_days: Days without a decision after which an open session does not count.
    """

    store: Store
    catalog: Catalog
    ledger: Ledger
    max_sessions: int
    idle_days: float

    def open(self, owner: str, request: SessionRequest, key: str | None) -> Created:
        """Open a session, pinned to a policy.

        Raises:
            Problem: 422 wire version, policy or controls; 429 too many open sessions.
        """

        def make(answer: _Answer) -> IdempotencyRecord:
            policy, controls = choose(self.catalog, request)
            # a job that died leaves its session open, so that it can be resumed
            since = time.time() - 86400.0 * self.idle_days
            if self.store.count_open(owner, since) >= self.max_sessions:
                raise Problem(
                    429,
                    code="too-many-sessions",
                    detail=f"This key has {self.max_sessions} open sessions that moved within "
                    f"{self.idle_days:g} days, as many as it may. Close some (GET "
                    "/v1/sessions?status=open lists them), or serve with a larger --max-sessions.",
                    retryable=True,
                    headers={"Retry-After": "60"},
                )
            steered = np.zeros((1, N_CONTROLS), np.bool_)
            steered[0, [COLUMN[name] for name in controls]] = True
            first = opening(
                policy.schedule,
                np.array([request.share]),
                steered,
                np.array([request.scheduled]),
            )
            now = time.time()
            session = SessionRecord(
                id="ses_" + base64.b32encode(secrets.token_bytes(20)).decode().lower()[:26],
                owner=owner,
                name=request.name,
                status="open",
                attempt=0,
                next_index=0,
                policy_name=policy.name,
                policy_digest=policy.digest,
                optimizer=request.optimizer,
                controls=controls,
                share=request.share,
                scheduled=request.scheduled,
                metadata=request.metadata,
                opening=encode_decision(first),
                created=now,
                updated=now,
            )
            body = _reply(session, session.opening)
            if session.scheduled:
                # an outage must not strand the job at its warm-up rate: it goes on by itself
                body["schedule"] = policy.schedule.to_json()
            # what costs a job three evaluations more is measured only where it is of use
            body["needs_slope"] = policy.needs_slope(controls)
            record = answer(body, f"/v1/sessions/{session.id}")
            self.store.add_session(session, record if key else None)
            return record

        return self._once(owner, key, "open", request, make)

    def fork(self, owner: str, session_id: str, request: ForkRequest, key: str | None) -> Created:
        """Open a new attempt after decision `next_index` - 1 of a parent's lineage.

        Raises:
            Problem: 404; 410 closed; 409 the parent does not exist or has not come that far; 503
                nothing would decide it.
        """

        def make(answer: _Answer) -> IdempotencyRecord:
            session = self._fresh(owner, session_id)
            refusals.check_open(session)
            if self.catalog.pinned(session.policy_digest) is None:
                raise refusals.policy_gone(session)
            if request.parent_attempt > session.attempt:
                raise refusals.other_attempt(session, request.parent_attempt)
            head = self.store.head(session.id, request.parent_attempt)
            if request.next_index > head:
                raise Problem(
                    409,
                    code="decision-gap",
                    detail=f"Attempt {request.parent_attempt} has the decisions before {head}; "
                    f"a fork at {request.next_index} needs more. Fork at {head} or below.",
                    expected_index=head,
                    attempt=session.attempt,
                )
            decision = session.opening
            if request.next_index > 0:
                attempts = self.store.attempts(session.id)
                index = request.next_index - 1
                number = maker(attempts, request.parent_attempt, index)
                record = self.store.decision(session.id, number, index)
                assert record is not None, "an index below the head has a decision"
                decision = record.decision
            new = AttemptRecord(
                session.id,
                session.attempt + 1,
                request.parent_attempt,
                request.next_index,
                time.time(),
            )
            forked = replace(session, attempt=new.attempt, next_index=new.start)
            kept = answer(_reply(forked, decision), f"/v1/sessions/{session.id}")
            if not self.store.fork(new, kept if key else None):
                raise refusals.busy(session.id)
            self.ledger.forget(session.id)
            return kept

        return self._once(owner, key, f"fork {session_id}", request, make)

    def close(
        self,
        owner: str,
        session_id: str,
        outcome: dict[str, Any],
        *,
        attempt: int | None = None,
    ) -> SessionRecord:
        """Close a session; closing it again with the same outcome changes nothing.

        Raises:
            Problem: 404; 409 another attempt than `attempt` is the current one; 410 it was closed
                with another outcome.
        """
        session = self._fresh(owner, session_id)
        if session.status == "open" and attempt in (None, session.attempt):
            self.store.close_session(session.id, outcome, time.time(), attempt)
            session = self._fresh(owner, session_id)
        if attempt is not None and attempt != session.attempt:
            raise refusals.other_attempt(session, attempt)
        if session.outcome != outcome:
            refusals.check_open(session)
        return session

    def _fresh(self, owner: str, session_id: str) -> SessionRecord:
        self.ledger.forget(session_id)
        return self.ledger.session(owner, session_id)

    def _once(
        self,
        owner: str,
        key: str | None,
        route: str,
        request: BaseModel,
        make: Callable[[_Answer], IdempotencyRecord],
    ) -> Created:
        """Run `make`, or answer as it did when the same Idempotency-Key came before."""
        text = json.dumps([route, request.model_dump(mode="json")], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        known = self.store.idempotent(owner, key) if key else None
        if known is not None:
            if known.fingerprint != fingerprint:
                raise Problem(
                    422,
                    code="idempotency-key-reused",
                    detail="This Idempotency-Key came before with another request. Use a new "
                    "key for a new request.",
                )
            return Created(known.answer, known.location, replayed=True)

        def answer(body: dict[str, Any], location: str) -> IdempotencyRecord:
            data = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
            return IdempotencyRecord(
                owner, key or "", fingerprint, 201, location, data, time.time()
            )

        record = make(answer)
        return Created(record.answer, record.location, replayed=False)


def _reply(session: SessionRecord, decision: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": session.id,
        "attempt": session.attempt,
        "next_index": session.next_index,
        "policy": {"name": session.policy_name, "digest": session.policy_digest},
        "controls": list(session.controls),
        "decision": decision,
        "wire_version": WIRE_VERSION,
    }
