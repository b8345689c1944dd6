"""Child processes that never outlive their parent's work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ..core.errors import LhoptError

#: Seconds that a process may take to end once it is told to.
STOP = 5.0


class DemoError(LhoptError):
    """A part of the demo did not start, or failed."""


class Processes:
    """Children that end when the block does: on success, an error, Ctrl-C or SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[tuple[subprocess.Popen[str], Path]] = []
        self._before: Any = None

    def __enter__(self) -> Processes:
        def stop(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, stop)
        return self

    def __exit__(self, *error: object) -> None:
        for child, _ in self._children:
            if child.poll() is None:
                child.terminate()
        for child, _ in self._children:
            try:
                child.wait(STOP)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout:
                child.stdout.close()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def start(
        self, name: str, module: str, arguments: Sequence[str], *, pipe: bool = False
    ) -> subprocess.Popen[str]:
        """Start `python -m module`; what it says on stderr is kept for `complaint`."""
        log = self._folder / f"{name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment.pop("LHOPT_URL", None)
        with log.open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe else errors,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._children.append((child, log))
        return child

    def complaint(self, child: subprocess.Popen[str]) -> str:
        """The last lines that a child said on stderr."""
        log = next(path for held, path in self._children if held is child)
        return "\n".join(log.read_text(errors="replace").splitlines()[-8:])

    def check(self) -> None:
        """Raise if a child has failed.

        Raises:
            DemoError: One has.
        """
        for child, log in self._children:
            if child.poll() not in (None, 0):
                raise DemoError(
                    f"{log.stem} ended with status {child.returncode}:\n{self.complaint(child)}"
                )
