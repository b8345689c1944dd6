"""Routes of policies: what is loaded, and what each one is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from ..core.errors import UnknownNameError
from ..policy.artifact import Policy
from .deps import KEYED, ServicesDep, problems
from .models import PolicyPage
from .problems import Problem

router = APIRouter(prefix="/v1/policies", tags=["policies"], dependencies=[KEYED])


@router.get("", responses=problems())
async def list_policies(services: ServicesDep) -> PolicyPage:
    """Every loaded policy, without its training report."""
    rows = [_manifest(policy) for policy in services.catalog.all()]
    for row in rows:
        del row["training"]
    return PolicyPage(items=rows)


@router.get("/{name}", responses=problems(404))
async def show_policy(
    name: Annotated[str, Path(max_length=128, description="Name or digest")],
    services: ServicesDep,
) -> dict[str, Any]:
    """One policy's manifest."""
    try:
        return _manifest(services.catalog.find(name))
    except UnknownNameError as error:
        raise Problem(
            404, code="unknown-policy", detail=str(error), nearest=error.nearest
        ) from error


def _manifest(policy: Policy) -> dict[str, Any]:
    return {**policy.manifest(), "digest": policy.digest}
