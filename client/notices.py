"""Warnings that are said once: a dead server must not fill a job's log."""

from __future__ import annotations

import logging

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
