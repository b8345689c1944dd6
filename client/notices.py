"""Warnings that are said once: a dead server must not fill a job's log."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("lhopt")


class Notices:
    """Logs each cause once, on the logger "lhopt"."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, cause: str, message: str, *args: object) -> None:
        """Log a warning, unless this cause was already warned about."""
        if cause not in self._said:
            self._said.add(cause)
            logger.warning(message, *args)

    def safely(self, what: str, work: Callable[[], None]) -> None:
        """Do something that must not stop the caller; an exception becomes one warning."""
        try:
            work()
        except Exception as error:
            self.warn(
                f"{what}:{type(error).__name__}",
                "lhopt: %s failed and was left out; training goes on: %s: %s",
                what,
                type(error).__name__,
                error,
            )
