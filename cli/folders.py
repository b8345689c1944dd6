"""Whether an output can be written, asked before the work that it is to hold."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import ConfigurationError


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made, or not be written into; nothing is made.

    Raises:
        ConfigurationError: Something else stands there or on the way, or writing is not allowed.
    """
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigurationError(
            f"{folder} cannot be a folder: {there} is there and is none. Name another one."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{folder} cannot be written: {there} does not allow it. Name another folder, or give "
            "yourself the right to write there."
        )
