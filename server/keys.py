"""API keys: `lho_<short>_<secret>`. The secret is shown once; its SHA-256 is kept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time

from ..core.errors import ConfigurationError
from .store import KeyRecord, Store

_KEY = re.compile(r"lho_([a-z2-7]{8})_([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"").hexdigest()


def create_key(store: Store, name: str) -> tuple[KeyRecord, str]:
    """Make a key and keep it; returns its record, and the key itself for the only time.

    Raises:
        ConfigurationError: The name is empty, too long or not printable.
    """
    if not 0 < len(name) <= 128 or not name.isprintable():
        raise ConfigurationError(
            f"A key's name has {len(name)} characters; it needs 1 to 128 printable ones."
        )
    short = base64.b32encode(secrets.token_bytes(5)).decode().lower()
    # 256 random bits: a fast hash is enough, there is nothing to guess
    secret = secrets.token_urlsafe(32)
    record = KeyRecord(short, name, _sha256(secret), time.time())
    store.add_key(record)
    return record, f"lho_{short}_{secret}"


def matches(keys: dict[str, KeyRecord], token: str) -> KeyRecord | None:
    """The living key that a token is, if any; takes the same time for every wrong secret."""
    parts = _KEY.fullmatch(token)
    if parts is None:
        return None
    record = keys.get(parts[1])
    same = hmac.compare_digest(record.secret_sha256 if record else _NOBODY, _sha256(parts[2]))
    return record if record is not None and same and record.revoked is None else None


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
