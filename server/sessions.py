"""Routes of sessions: open, list, look, fork, close."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from .body import parse
from .deps import (
    KEYED,
    TAKES_KEY,
    OwnerDep,
    ServicesDep,
    SessionId,
    body_of,
    idempotency_key,
    problems,
)
from .lifecycle import Created
from .models import (
    CloseRequest,
    ForkRequest,
    PolicyReply,
    SessionDetail,
    SessionPage,
    SessionReply,
    SessionRequest,
    SessionView,
)
from .problems import Problem
from .refusals import no_session
from .services import Services
from .store import SessionRecord, Status, maker

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], dependencies=[KEYED])


@router.post(
    "",
    status_code=201,
    responses={201: {"model": SessionReply}, **problems(400, 415, 422, 429)},
    openapi_extra=body_of(SessionRequest) | TAKES_KEY,
)
async def open_session(request: Request, services: ServicesDep, owner: OwnerDep) -> Response:
    """Open a session; the answer carries the decision for the first interval."""
    body, key = await parse(request, SessionRequest), idempotency_key(request)
    lifecycle = services.lifecycle
    created = await services.engine.write(
        lambda: lifecycle.open(owner, body, key), repeatable=key is not None
    )
    return _created(created)


@router.get("", responses=problems(422))
async def list_sessions(
    services: ServicesDep,
    owner: OwnerDep,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> SessionPage:
    """This key's sessions, newest first."""
    after = _after(cursor) if cursor else None
    rows = await asyncio.to_thread(services.store.sessions, owner, status, limit + 1, after)
    more, rows = len(rows) > limit, rows[:limit]
    return SessionPage(
        items=[SessionView(**_view(row)) for row in rows],
        next_cursor=_cursor(rows[-1]) if more else None,
    )


@router.get("/{session_id}", responses=problems(404))
async def show_session(
    session_id: SessionId, services: ServicesDep, owner: OwnerDep
) -> SessionDetail:
    """Where a session stands."""
    return await asyncio.to_thread(_detail, services, owner, session_id)


@router.post(
    "/{session_id}/attempts",
    status_code=201,
    responses={201: {"model": SessionReply}, **problems(400, 404, 409, 410, 415, 422)},
    openapi_extra=body_of(ForkRequest) | TAKES_KEY,
)
async def fork_session(
    request: Request, session_id: SessionId, services: ServicesDep, owner: OwnerDep
) -> Response:
    """Go on from a checkpoint: a new attempt, and the decision that was in force there."""
    body, key = await parse(request, ForkRequest), idempotency_key(request)
    lifecycle = services.lifecycle
    created = await services.engine.write(
        lambda: lifecycle.fork(owner, session_id, body, key), repeatable=key is not None
    )
    return _created(created)


@router.post(
    "/{session_id}/close",
    responses=problems(400, 404, 409, 410, 415, 422),
    openapi_extra=body_of(CloseRequest, required=False),
)
async def close_session(
    request: Request, session_id: SessionId, services: ServicesDep, owner: OwnerDep
) -> SessionView:
    """The job is done: nothing more is decided, everything stays readable."""
    body = await parse(request, CloseRequest, empty=True)
    lifecycle = services.lifecycle
    session = await services.engine.write(
        lambda: lifecycle.close(owner, session_id, body.outcome, attempt=body.attempt)
    )
    return SessionView(**_view(session))


def owned(services: Services, owner: str, session_id: str) -> SessionRecord:
    """An owner's session, from the store.

    Raises:
        Problem: 404, for another owner's too.
    """
    session = services.store.session(session_id)
    if session is None or session.owner != owner:
        raise no_session(session_id)
    return session


def _created(created: Created) -> Response:
    headers = {"Location": created.location}
    if created.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(created.body, 201, headers=headers, media_type="application/json")


def _view(session: SessionRecord) -> dict[str, Any]:
    return {
        "id": session.id,
        "name": session.name,
        "status": session.status,
        "attempt": session.attempt,
        "next_index": session.next_index,
        "policy": PolicyReply(name=session.policy_name, digest=session.policy_digest),
        "optimizer": session.optimizer,
        "controls": list(session.controls),
        "share": session.share,
        "scheduled": session.scheduled,
        "metadata": session.metadata,
        "created": session.created,
        "updated": session.updated,
        "outcome": session.outcome,
    }


def _detail(services: Services, owner: str, session_id: str) -> SessionDetail:
    session = owned(services, owner, session_id)
    decision: dict[str, Any] = session.opening
    relative: dict[str, float] = dict.fromkeys(session.controls, 0.0)
    if session.next_index > 0:
        index = session.next_index - 1
        attempt = maker(services.store.attempts(session.id), session.attempt, index)
        record = services.store.decision(session.id, attempt, index)
        assert record is not None, "an index below next_index has a decision"
        decision, relative = record.decision, record.situation["relative"]
    moves = decision["moves"]
    after = {name: value + moves[name]["delta"] for name, value in relative.items()}
    return SessionDetail(**_view(session), relative=after)


def _cursor(session: SessionRecord) -> str:
    text = json.dumps([session.created, session.id])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _after(cursor: str) -> tuple[float, str]:
    try:
        created, last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if type(created) is not float or type(last) is not str or not math.isfinite(created):
            raise ValueError(cursor)
        last.encode()  # half of a surrogate pair is JSON, and nothing that SQLite takes
    except (ValueError, TypeError, RecursionError) as error:
        raise Problem(
            422,
            code="invalid-cursor",
            detail="The cursor is none that this server gave. Take next_cursor as it came, or "
            "leave it out to begin again.",
        ) from error
    return created, last
