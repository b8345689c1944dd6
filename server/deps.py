"""What routes ask for: the services, the owner, an Idempotency-Key."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from .models import ProblemReply
from .problems import Problem
from .services import Services

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


# async, though they await nothing: FastAPI sends plain functions to a thread, 0.1 ms each
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


def idempotency_key(request: Request) -> str | None:
    """The request's Idempotency-Key, if it has one.

    Raises:
        Problem: 400, it is not 1 to 255 visible ASCII characters.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise Problem(
            400,
            code="idempotency-key",
            detail=f"The Idempotency-Key has {len(key)} characters; allowed: 1 to 255 visible "
            "ASCII characters. A UUID will do.",
        )
    return key


ServicesDep = Annotated[Services, Depends(_services)]
OwnerDep = Annotated[str, Depends(_owner)]
#: Tells OpenAPI of the key; `auth.KeyRing` is who checks it, before any route.
KEYED = Security(
    HTTPBearer(
        scheme_name="key",
        description="`Bearer lho_...`, as `lhopt keys create` prints it; none on a server without "
        "keys.",
        auto_error=False,
    )
)
SessionId = Annotated[str, Path(max_length=64, description='"ses_" and 26 characters')]
Number = Annotated[int, Path(ge=0, le=2**31 - 1)]


#: OpenAPI entry of the header that `idempotency_key` reads, which makes a POST safe to repeat.
TAKES_KEY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "1 to 255 visible ASCII characters, a UUID, say: the same request with "
            "the same key is done once, and answered again with the same bytes.",
            "schema": {"type": "string", "pattern": f"^{_KEY.pattern}$"},
        }
    ]
}
#: What any request may be answered, whatever its route says.
_ALWAYS = (401, 408, 413, 500, 503)


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for a route's refusals, those of any request included."""
    media = {"application/problem+json": {"schema": _schema(ProblemReply)}}
    return {code: {"description": "Refused", "content": media} for code in (*_ALWAYS, *codes)}


def body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """OpenAPI entry of a body that `body.parse` reads."""
    content = {"application/json": {"schema": _schema(model)}}
    return {"requestBody": {"required": required, "content": content}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with its parts in place: "#/$defs" is nothing in a larger document."""
    schema = model.model_json_schema()
    parts: dict[str, Any] = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        rest = {key: inlined(item) for key, item in value.items() if key != "$ref"}
        if "$ref" not in value:
            return rest
        return inlined(parts[str(value["$ref"]).removeprefix("#/$defs/")]) | rest

    out: dict[str, Any] = inlined(schema)
    return out
