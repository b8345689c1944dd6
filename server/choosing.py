"""Which policy steers a new session, and which of its controls."""

from __future__ import annotations

from ..core.controls import get_controls
from ..core.errors import ConfigurationError, LhoptError, UnknownNameError
from ..core.wire import WIRE_VERSION
from ..policy.artifact import Policy
from .catalog import Catalog
from .models import SessionRequest
from .problems import Problem


def choose(catalog: Catalog, request: SessionRequest) -> tuple[Policy, tuple[str, ...]]:
    """The policy, and the controls that both it and the job have, in registry order.

    Raises:
        Problem: 422: another wire version, an unknown policy or control, or none in common.
    """
    if request.wire_version != WIRE_VERSION:
        raise Problem(
            422,
            code="wire-version",
            detail=f"Wire version {request.wire_version} came; this server speaks "
            f"{WIRE_VERSION}. Install the matching lhopt on the job's side.",
            wire_version=WIRE_VERSION,
        )
    try:
        if request.policy is None:
            policy = catalog.for_optimizer(request.optimizer)
        else:
            policy = catalog.find(request.policy)
    except UnknownNameError as error:
        raise Problem(
            422,
            code="unknown-policy",
            detail=f"{error} Name one of the policies that GET /v1/policies lists.",
            nearest=error.nearest,
        ) from error
    except ConfigurationError as error:
        raise Problem(422, code="unsuited-policy", detail=str(error)) from error
    try:
        asked = get_controls(request.controls)
    except UnknownNameError as error:
        raise Problem(
            422, code="unknown-control", detail=str(error), nearest=error.nearest
        ) from error
    except LhoptError as error:
        raise Problem(422, code="invalid-controls", detail=str(error)) from error
    steered = {control.name for control in policy.controls}
    controls = tuple(control.name for control in asked if control.name in steered)
    if not controls:
        raise Problem(
            422,
            code="no-common-control",
            detail=f"The job lets us steer {', '.join(c.name for c in asked)}; policy "
            f"{policy.name!r} steers {', '.join(sorted(steered))}. Name another policy.",
            controls=sorted(steered),
        )
    return policy, controls
