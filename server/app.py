"""The application: `create_app(settings)`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

try:
    from fastapi import FastAPI
except ModuleNotFoundError as error:  # pragma: no cover
    from ..core.errors import MissingExtraError

    raise MissingExtraError("fastapi", "server") from error

from . import decisions, health, policies, problems, sessions
from .gate import Gate
from .services import Services, open_services
from .settings import Settings


def create_app(settings: Settings, services: Services | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: How it runs.
        services: Already opened ones, e.g. by a caller that wants their errors before it listens.
            They are opened when the application starts if not given, and closed when it stops.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = services if services is not None else open_services(settings)
        app.state.services = opened
        try:
            yield
        finally:
            await opened.close()

    app = FastAPI(
        title="lhopt",
        summary="Decisions for the hyperparameters of running training jobs.",
        version="1",
        lifespan=lifespan,
        # both pages load scripts from other hosts
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for module in (sessions, decisions, policies, health):
        app.include_router(module.router)
    problems.install(app)

    def current() -> Services:
        running: Services = app.state.services
        return running

    app.add_middleware(Gate, services=current)
    return app
