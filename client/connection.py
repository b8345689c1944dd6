"""What the blocking and the async client are given: address, key, time limit."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import httpx

from .. import __version__
from ..core.errors import ConfigurationError
from .settings import seconds


@dataclass(frozen=True)
class Connection:
    """Where the server is and who asks. Its repr shows no secret.

    Attributes:
        url: Base URL, without a path of the API.
        api_key: Bearer token, or `None`.
        timeout: Seconds that one call may take, retries included.
    """

    url: httpx.URL = field(repr=False)
    api_key: str | None = field(repr=False)
    timeout: float

    @classmethod
    def create(cls, base_url: str | None, api_key: str | None, timeout: float) -> Connection:
        """From arguments, or from `LHOPT_URL` and `LHOPT_API_KEY` where they are `None`.

        Raises:
            ConfigurationError: No URL, no URL of a server, or a key that no header can carry.
        """
        base_url = base_url or os.environ.get("LHOPT_URL")
        api_key = api_key or os.environ.get("LHOPT_API_KEY") or None
        if not base_url:
            raise ConfigurationError(
                "No server is named. Pass its URL (http://host:8000) or set LHOPT_URL."
            )
        try:
            url = httpx.URL(base_url.rstrip("/").removesuffix("/v1"))
        except (httpx.InvalidURL, TypeError) as error:
            raise ConfigurationError(f"The server's URL cannot be read: {error}.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(
                f"The server's URL has the scheme {url.scheme!r} and the host {url.host!r}; "
                "http://host:port or https://host:port is wanted."
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigurationError(
                "api_key holds characters that no header can carry (a line break at its end?)."
            )
        return cls(url, api_key, seconds("timeout", timeout))

    @property
    def address(self) -> str:
        """The URL without user and password."""
        return str(self.url.copy_with(username=None, password=None, query=None))

    def options(self) -> dict[str, Any]:
        """Arguments of an httpx client."""
        headers = {"User-Agent": f"lhopt/{__version__}"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return {"base_url": self.url, "headers": headers, "follow_redirects": False}

    def describe(self, owner: object) -> str:
        """A repr without secrets."""
        key = "None" if self.api_key is None else "'***'"
        return f"{type(owner).__name__}({self.address!r}, api_key={key}, timeout={self.timeout:g})"
