"""Routes for those who run the server: alive, ready, metrics."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from .deps import KEYED, ServicesDep, problems
from .problems import Problem, from_exception
from .services import Services
from .store import StoreError

router = APIRouter(tags=["health"])
#: Seconds that the store may take to commit the probe.
PROBE_SECONDS = 2.0
#: Seconds that a probe's outcome counts. With one probe at a time, nobody without a key can make
#: us write more often.
FRESH_SECONDS = 0.5


@router.get("/livez")
async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", responses=problems())
async def ready(request: Request, services: ServicesDep) -> dict[str, str]:
    """The store takes a write, policies are loaded and the queue moves."""
    state = request.app.state
    probe: asyncio.Task[_Probed] | None = getattr(state, "probe", None)
    if probe is None or (probe.done() and not probe.result().fresh):
        state.probe = probe = asyncio.create_task(_probe(services))
    # a probe that is late goes on alone, and who asks meanwhile waits for the same one
    await asyncio.wait((probe,), timeout=PROBE_SECONDS)
    if not probe.done():
        raise _not_ready(
            f"a write takes more than {PROBE_SECONDS:g} s; the oldest decision has waited "
            f"{services.engine.oldest:.1f} s"
        )
    problem = probe.result().problem
    if problem is not None:
        raise problem
    return {"status": "ready"}


@dataclass(frozen=True)
class _Probed:
    """What a probe came to."""

    problem: Problem | None
    at: float

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self.at <= FRESH_SECONDS


async def _probe(services: Services) -> _Probed:
    """Commit something, and say what stands against it."""
    problem: Problem | None = None
    try:
        await services.engine.write(services.store.probe)
    except StoreError as error:
        problem = _not_ready(f"the database takes no write ({error})")
    except Exception as error:
        problem = from_exception(error)
    return _Probed(problem, time.monotonic())


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=problems(),
    dependencies=[KEYED],
)
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
