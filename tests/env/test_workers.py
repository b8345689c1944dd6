from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from lhopt.core.errors import ConfigurationError, EnvWorkerError
from lhopt.env.workers import Workers, each
from lhopt.inner_tasks.engine import checked_device


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_what_a_worker_cannot_import_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("only_here")
    exec("def twice(x): return 2 * x", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with Workers(1) as workers:
        with pytest.raises(EnvWorkerError, match=r"(?s)A worker failed.*named 'only_here'"):
            list(workers.map(module.twice, [1]))
        assert list(workers.map(math.factorial, [3])) == [6]  # and it lives on


def test_what_workers_keep_and_share_and_how_they_fail() -> None:
    with Workers(2) as workers:
        assert len(workers) == 2
        # `ask` calls a function of what a worker keeps, a dict
        assert workers.ask(dict.get, ["value", "value"]) == [None, None]
        workers.ask(dict.update, [{"value": 1}, {"value": 2}])
        assert workers.ask(dict.get, ["value", "value"]) == [1, 2]
        assert list(workers.map(math.factorial, range(7))) == [1, 1, 2, 6, 24, 120, 720]
        assert workers.seconds > 0.0
        # a failure is told once, and the next answers are to the next questions
        with pytest.raises(EnvWorkerError, match="KeyError: 'none'"):
            workers.ask(dict.pop, ["none", "value"])
        assert workers.ask(dict.get, ["value", "value"]) == [1, None]
        with pytest.raises(EnvWorkerError, match=r"ValueError: .*negative"):
            list(workers.map(math.factorial, [1, -1, 2, 3]))
        with pytest.raises(ConfigurationError, match="device is 'nowhere'"):
            list(workers.map(checked_device, ["nowhere"]))
        assert list(workers.map(math.factorial, [3, 4])) == [6, 24]
        some = workers.map(math.factorial, range(2, 9))
        assert next(some) == 2
        some.close()  # a caller that has seen enough leaves no answer behind
        assert list(workers.map(math.factorial, [3, 4])) == [6, 24]
        # signals that reach a whole process group are the parent's to answer
        ids = [process.pid for process, _ in workers._workers if process.pid]
        for pid in ids:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        assert workers.ask(dict.get, ["value", "value"]) == [1, None]
        os.kill(ids[1], signal.SIGKILL)
        with pytest.raises(EnvWorkerError, match="is gone"):
            workers.ask(dict.get, ["value", "value"])
        with pytest.raises(EnvWorkerError, match="have been closed"):
            workers.ask(dict.get, ["value", "value"])
    assert not any(alive(pid) for pid in ids)


SCRIPT = """
import math, time
from lhopt.env.workers import Workers, each

if __name__ == "__main__":
    workers = Workers(1)
    list(workers.map(math.sqrt, [4.0]))
    print(workers._workers[0][0].pid, flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20.0
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_no_worker_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="processes is 0"):
        Workers(0)


def test_a_caller_that_stops_does_not_wait_for_who_is_busy() -> None:
    began = time.monotonic()
    results = each(time.sleep, [0.0, 300.0, 300.0], 2)
    next(results)
    results.close()
    assert time.monotonic() - began < 200.0


def test_a_second_ctrl_c_while_workers_end_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(2)
    processes = [process for process, _ in workers._workers]
    ids = [process.pid for process in processes if process.pid]
    workers._send(0, (False, time.sleep, 300.0))
    join = processes[0].join
    pressed: list[object] = []

    def interrupted(timeout: float | None = None) -> None:
        if not pressed:
            pressed.append(timeout)
            raise KeyboardInterrupt
        join(timeout)

    monkeypatch.setattr(processes[0], "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.close()
    assert pressed
    assert len(ids) == 2
    assert not any(map(alive, ids))
