"""A real `lhopt serve` process for the arms that decide over HTTP."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..policy.artifact import Policy, save
from .processes import DemoError, Processes

#: Seconds that a server may take to start.
START = 60.0


class Server:
    """A running `lhopt serve` on loopback.

    Attributes:
        url: Where it answers.
    """

    def __init__(self, child: subprocess.Popen[str], url: str) -> None:
        self._child = child
        self.url = url

    def kill(self) -> None:
        """SIGKILL: no answer, no goodbye."""
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()

    def cpu_seconds(self) -> float | None:
        """CPU time that the process has used; None where the system has no /proc, or it is dead."""
        try:
            text = Path(f"/proc/{self._child.pid}/stat").read_text()
        except OSError:
            return None
        # the name in brackets may hold blanks; user and system time are fields 14 and 15
        fields = text.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return float(ticks / os.sysconf("SC_CLK_TCK"))


@contextmanager
def serving(policy: Policy) -> Iterator[Server]:
    """A server of its own, with this policy beside the bundled ones; it ends with the block.

    Raises:
        DemoError: It did not start; the message has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="lhopt-bench-") as name:
        folder = Path(name)
        save(policy, folder / "policies")
        with Processes(folder) as processes:
            child = processes.start(
                "server",
                "lhopt.cli.main",
                [
                    "serve", "--host", "127.0.0.1", "--port", "0",
                    "--database", str(folder / "bench.sqlite3"),
                    "--policies", str(folder / "policies"),
                ],
                pipe=True,
            )  # fmt: skip
            yield Server(child, _url(processes, child))


def _url(processes: Processes, child: subprocess.Popen[str]) -> str:
    said: queue.Queue[str] = queue.Queue()
    assert child.stdout is not None
    stream = child.stdout

    def listen() -> None:
        with contextlib.suppress(ValueError):  # closed when the block ends
            for line in stream:
                said.put(line)

    threading.Thread(target=listen, daemon=True).start()
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and child.poll() is None:
        try:
            line = said.get(timeout=0.1)
        except queue.Empty:
            continue
        if "serving on http" in line:
            return line.split("serving on ")[1].split()[0]
    raise DemoError(f"The server did not start:\n{processes.complaint(child)}")
