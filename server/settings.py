"""What an operator may set, checked once and frozen."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..core.errors import ConfigurationError

Durability = Literal["process", "power"]
DEFAULT_DATABASE = Path("lhopt.sqlite3")


@dataclass(frozen=True)
class Settings:
    """How one server runs.

    Attributes:
        database: SQLite file; made if it is not there.
        host: Address to listen on. Anything but a loopback address needs a key in the database.
        port: TCP port; 0 takes a free one.
        policies_folder: Folder of NAME.json and NAME.safetensors served beside the bundled ones.
        durability: "process": an answered decision survives the death of the process. "power": it
            survives the loss of power too, for one disk flush per group of decisions.
        max_body_bytes: Largest request body.
        max_sessions: Open sessions that one key may hold.
        idle_days: Days without a decision after which an open session, which stays open, does not
            count among these: a job that died leaves one behind.
        max_queue: Decisions that may wait; more are refused with 503.
        max_batch: Decisions made at once.
        cache_sessions: Sessions whose state is kept in memory.
        deadline: Seconds after which a waiting request is answered 503. What it asked for may
            still be committed; a repeat gets it.
        body_timeout: Seconds that a client may take to send its body.
        head_timeout: Seconds that a connection may take to send a request's head.
        key_refresh: Seconds after which a new or revoked key is noticed.
        store_timeout: Seconds to wait for another process's lock on the database.
    """

    database: Path = DEFAULT_DATABASE
    host: str = "127.0.0.1"
    port: int = 8000
    policies_folder: Path | None = None
    durability: Durability = "process"
    max_body_bytes: int = 64 * 1024
    max_sessions: int = 1000
    idle_days: float = 7.0
    max_queue: int = 4096
    max_batch: int = 64
    cache_sessions: int = 4096
    deadline: float = 10.0
    body_timeout: float = 10.0
    head_timeout: float = 10.0
    key_refresh: float = 1.0
    store_timeout: float = 5.0

    def __post_init__(self) -> None:
        if self.durability not in get_args(Durability):
            raise ConfigurationError(
                f"durability is {self.durability!r}; allowed: {', '.join(get_args(Durability))}."
            )
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port is {self.port}; allowed: 0 to 65535, 0 picks one.")
        for name in (
            "max_body_bytes", "max_sessions", "idle_days", "max_queue", "max_batch",
            "cache_sessions", "deadline", "body_timeout", "head_timeout", "store_timeout",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}; it must be greater than 0."
                )
        if self.policies_folder is not None and not self.policies_folder.is_dir():
            raise ConfigurationError(
                f"The policies folder {self.policies_folder} does not exist or is no folder."
            )


def is_loopback(host: str | None) -> bool:
    """Whether an address can only be this machine's own; names other than localhost cannot."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
