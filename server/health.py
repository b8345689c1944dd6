"""Routes for those who run the server: alive, ready, metrics."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from .deps import KEYED, ServicesDep, problems
from .problems import Problem
from .store import StoreError

router = APIRouter(tags=["health"])
#: Seconds that the store may take to commit the probe.
PROBE_SECONDS = 2.0
#: Seconds that a committed probe counts: nobody without a key can make us write more often.
FRESH_SECONDS = 0.5


@router.get("/livez")
async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses=problems())
async def ready(request: Request, services: ServicesDep) -> dict[str, str]:
    """The store takes a write, policies are loaded and the queue moves."""
    state = request.app.state
    if time.monotonic() - getattr(state, "ready_at", -1e9) < FRESH_SECONDS:
        return {"status": "ready"}
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await services.engine.write(services.store.probe)
        state.ready_at = time.monotonic()
    except TimeoutError as error:
        raise _not_ready(
            f"a write takes more than {PROBE_SECONDS:g} s; the oldest decision has waited "
            f"{services.engine.oldest:.1f} s"
        ) from error
    except StoreError as error:
        raise _not_ready(f"the database takes no write ({error})") from error
    return {"status": "ready"}


@router.get("/metrics", responses=problems(), dependencies=[KEYED])
async def metrics(services: ServicesDep) -> Response:
    """Prometheus exposition."""
    counts = await asyncio.to_thread(services.store.counts)
    return Response(services.metrics.text(counts), media_type=CONTENT_TYPE_LATEST)


def _not_ready(why: str) -> Problem:
    return Problem(
        503,
        code="not-ready",
        detail=f"Not ready: {why}. Look at the database's disk and permissions.",
        retryable=True,
        headers={"Retry-After": "1"},
    )
