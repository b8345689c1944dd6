"""Routes of decisions: report an interval and get the next decision; read the history."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ..core.errors import LhoptError, UnknownNameError
from ..core.wire import decode_situation, decode_statistics
from .body import parse
from .deciding import Ask
from .deps import KEYED, Number, OwnerDep, ServicesDep, SessionId, body_of, problems
from .models import (
    DecisionReply,
    HistoryItem,
    HistoryPage,
    KeyedReportRequest,
    ReportRequest,
)
from .problems import Problem
from .refusals import other_attempt
from .services import Services
from .sessions import owned
from .store import lineage

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["decisions"], dependencies=[KEYED])
_REFUSALS = problems(400, 404, 409, 410, 415, 422)


@router.put(
    "/attempts/{attempt}/decisions/{index}",
    responses={200: {"model": DecisionReply}, **_REFUSALS},
    openapi_extra=body_of(ReportRequest),
)
async def decide(
    request: Request,
    session_id: SessionId,
    attempt: Number,
    index: Number,
    services: ServicesDep,
    owner: OwnerDep,
) -> Response:
    """Take the statistics of the last interval; answer with the decision for the next one."""
    report = await parse(request, ReportRequest)
    return await _answer(services, owner, session_id, attempt, index, report)


@router.post(
    "/decisions",
    responses={200: {"model": DecisionReply}, **_REFUSALS},
    openapi_extra=body_of(KeyedReportRequest),
)
async def decide_by_body(
    request: Request, session_id: SessionId, services: ServicesDep, owner: OwnerDep
) -> Response:
    """The same with attempt and index in the body."""
    report = await parse(request, KeyedReportRequest)
    return await _answer(services, owner, session_id, report.attempt, report.index, report)


@router.get("/decisions", responses=problems(404, 409, 422))
async def history(
    session_id: SessionId,
    services: ServicesDep,
    owner: OwnerDep,
    attempt: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    start: Annotated[int, Query(alias="from", ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> HistoryPage:
    """What was decided and why, in order; an attempt's history begins with its ancestors'."""
    return await asyncio.to_thread(_page, services, owner, session_id, attempt, start, limit)


async def _answer(
    services: Services,
    owner: str,
    session_id: str,
    attempt: int,
    index: int,
    report: ReportRequest,
) -> Response:
    situation = report.situation
    try:
        ask = Ask(
            owner=owner,
            session=session_id,
            attempt=attempt,
            index=index,
            statistics=decode_statistics(report.statistics),
            situation=decode_situation(
                progress=situation.progress,
                share=situation.share,
                schedule=situation.schedule,
                relative=situation.relative,
            ),
        )
    except UnknownNameError as error:
        raise Problem(
            422, code="invalid-report", detail=str(error), nearest=error.nearest
        ) from error
    except LhoptError as error:
        raise Problem(422, code="invalid-report", detail=str(error)) from error
    answer = await services.engine.decide(ask)
    headers = {"Idempotent-Replayed": "true"} if answer.replayed else None
    return Response(answer.body, headers=headers, media_type="application/json")


def _page(
    services: Services, owner: str, session_id: str, attempt: int | None, start: int, limit: int
) -> HistoryPage:
    session = owned(services, owner, session_id)
    number = session.attempt if attempt is None else attempt
    if number > session.attempt:
        raise other_attempt(session, number)
    items: list[HistoryItem] = []
    for maker, first, stop in lineage(services.store.attempts(session.id), number):
        low = max(first, start)
        # one more than asked for tells whether there is a next page
        high = min(stop if stop is not None else 2**31, start + limit + 1)
        if low < high:
            items += [
                HistoryItem(
                    attempt=row.attempt,
                    index=row.index,
                    statistics=row.statistics,
                    situation=row.situation,
                    decision=row.decision,
                    at=row.at,
                )
                for row in services.store.decisions(session.id, maker, low, high)
            ]
    return HistoryPage(
        session=session.id,
        attempt=number,
        items=items[:limit],
        next_from=start + limit if len(items) > limit else None,
    )
