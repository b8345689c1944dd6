"""A real server process, killed in the middle of its work."""

from __future__ import annotations

import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from lhopt.server.settings import Settings
    from tests.server.conftest import Api

SERVE = """
import argparse, sys
from lhopt.cli import serve
parser = argparse.ArgumentParser()
serve.add_parser(parser.add_subparsers(required=True))
args = parser.parse_args(sys.argv[1:])
sys.exit(args.func(args))
"""
#: A store that says "committed" and keeps nothing of every tenth decision's group.
LYING = """
from lhopt.server.sqlite_store import SqliteStore
commit, calls = SqliteStore.commit, []
def lie(self, decisions):
    calls.append(1)
    return [True] * len(decisions) if len(calls) % 10 == 0 else commit(self, decisions)
SqliteStore.commit = lie
"""
WORKERS, KILLS, DECISIONS = 6, 6, 150


SESSION = {
    "wire_version": 1,
    "policy": "alpha",
    "optimizer": "torch.optim.AdamW",
    "controls": ["learning_rate"],
    "share": 0.005,
}


class Server:
    """`lhopt serve` as its own process, on one port over all its lives."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.settings, self.port = settings, port
        self.prelude = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", self.prelude + SERVE, "serve",
                "--database", str(self.settings.database),
                "--policies", str(self.settings.policies_folder),
                "--port", str(self.port),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("lhopt serving on http://127.0.0.1:"), line
        return line

    def stop(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(settings, port)
    server.start()
    yield server
    if server.process is not None:
        server.stop(signal.SIGKILL)


def report(worker: int, index: int) -> dict[str, Any]:
    return {
        "statistics": {"train_loss": 1.0 + worker + 0.01 * index, "log_grad_norm": -index / 7},
        "situation": {
            "progress": (index + 1) / 200, "share": 0.005, "schedule": 0.0,
            "relative": {"learning_rate": 0.01 * index - 0.1 * worker},
        },
    }  # fmt: skip


class Job(threading.Thread):
    """A training job that repeats each report until it is answered."""

    def __init__(self, url: str, worker: int, session: str) -> None:
        super().__init__(daemon=True)
        self.url, self.worker, self.session = url, worker, session
        self.answers: list[bytes] = []
        self.refused: list[str] = []
        self.repeats = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=5.0) as client:
            while len(self.answers) < DECISIONS and not self.refused:
                index = len(self.answers)
                path = f"/v1/sessions/{self.session}/attempts/0/decisions/{index}"
                try:
                    answer = client.put(path, json=report(self.worker, index))
                except httpx.TransportError:
                    self.repeats += 1
                    time.sleep(0.02)
                    continue
                if answer.status_code == 200:
                    self.answers.append(answer.content)
                elif answer.status_code != 503:
                    self.refused.append(answer.text)


def test_a_server_that_answers_without_committing_is_found_out(server: Server) -> None:
    server.stop(signal.SIGTERM)
    server.prelude = LYING
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    session = httpx.post(f"{url}/v1/sessions", json=SESSION).json()["id"]
    job = Job(url, 0, session)
    job.start()
    deadline = time.monotonic() + 30
    while not job.refused and time.monotonic() < deadline:
        time.sleep(0.01)
    job.join(10)
    assert "decision-gap" in job.refused[0]


def test_no_answered_decision_is_lost_or_doubled_when_the_server_is_killed(
    server: Server, settings: Settings, start: Any
) -> None:
    url = f"http://127.0.0.1:{server.port}"
    sessions = [httpx.post(f"{url}/v1/sessions", json=SESSION).json()["id"] for _ in range(WORKERS)]
    jobs = [Job(url, worker, session) for worker, session in enumerate(sessions)]
    for job in jobs:
        job.start()
    for life in range(KILLS):
        # each life until the jobs got a further share of their decisions
        goal = DECISIONS * (life + 1) // (KILLS + 1)
        deadline = time.monotonic() + 30
        while max(len(job.answers) for job in jobs) < goal and time.monotonic() < deadline:
            time.sleep(0.001)
        if life % 2:
            assert server.stop(signal.SIGTERM) == 0  # in the middle of work, too
        else:
            server.stop(signal.SIGKILL)
        server.start()
    for job in jobs:
        job.join(60)
    assert [job.refused for job in jobs] == [[]] * WORKERS
    assert [len(job.answers) for job in jobs] == [DECISIONS] * WORKERS
    assert sum(job.repeats for job in jobs) > 0, "the kills must have hit somebody"
    with httpx.Client(base_url=url) as client:
        for job in jobs:
            for index in (0, DECISIONS // 2, DECISIONS - 1):
                path = f"/v1/sessions/{job.session}/attempts/0/decisions/{index}"
                again = client.put(path, json=report(job.worker, index))
                assert again.headers["idempotent-replayed"] == "true"
                assert again.content == job.answers[index]
    assert server.stop(signal.SIGTERM) == 0

    with sqlite3.connect(settings.database) as db:
        rows = db.execute("SELECT session, idx, answer FROM decision ORDER BY idx").fetchall()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    kept: dict[str, list[bytes]] = {session: [] for session in sessions}
    for session, index, answer in rows:
        assert index == len(kept[session])
        kept[session].append(answer)
    assert kept == {job.session: job.answers for job in jobs}

    # and they are the decisions of a server that nobody killed
    calm: Api = start(settings, database=settings.database.with_name("calm.sqlite3"))
    for job in jobs[:2]:
        session = calm.open(policy="alpha", controls=["learning_rate"], share=0.005)["id"]
        for index in range(DECISIONS):
            answer = calm.decide(session, 0, index, report(job.worker, index))
            assert (
                answer.content.replace(session.encode(), job.session.encode())
                == (job.answers[index])
            )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_ends_cleanly(server: Server, number: signal.Signals) -> None:
    url = f"http://127.0.0.1:{server.port}"
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    assert server.stop(number) == 0
    leftovers = [p.name for p in Path(server.settings.database).parent.glob("lhopt.sqlite3-*")]
    assert leftovers == [], "the write-ahead log is folded in"


def test_an_answer_to_a_real_client_is_a_problem_for_a_huge_chunked_body(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\n\r\n"
        )
        for _ in range(8):
            raw.sendall(b"2710\r\n" + b"a" * 10_000 + b"\r\n")
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_a_request_that_is_cut_in_its_body_does_nothing(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"
    session = httpx.post(f"{url}/v1/sessions", json=SESSION).json()["id"]
    path = f"/v1/sessions/{session}"
    httpx.post(f"{url}{path}/attempts", json={"parent_attempt": 0, "next_index": 0})
    for sent in (b"", b'{"attempt": 0, "outco'):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(
                f"POST {path}/close HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60\r\n"
                "Content-Type: application/json\r\n\r\n".encode()
                + sent
            )
    answer = httpx.put(f"{url}{path}/attempts/1/decisions/0", json=report(0, 0))
    assert answer.status_code == 200
    assert httpx.get(f"{url}{path}").json()["status"] == "open"
    assert "400" in httpx.get(f"{url}/metrics").text


def test_a_head_without_end_is_refused(server: Server) -> None:
    """One header line after another, and one line that never ends."""
    for piece in (b"x-more: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nx-first: ")
            answer = b""
            try:
                for _ in range(10_000):
                    raw.sendall(piece)
                answer = raw.recv(4096)
            except ConnectionError:
                pass
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert httpx.get(f"http://127.0.0.1:{server.port}/livez").status_code == 200


#: A server that gives a head three tenths of a second.
IMPATIENT = """
import lhopt.server.protocol as protocol
made = protocol.bounded
def impatient(settings):
    kind = made(settings)
    kind.head_timeout = 0.3
    return kind
protocol.bounded = impatient
"""


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: local", b"\r\n"])
def test_a_connection_that_says_nothing_whole_is_closed(server: Server, sent: bytes) -> None:
    server.stop(signal.SIGTERM)
    server.prelude = IMPATIENT
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        # a request before it, on the same connection, changes nothing
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" if sent else b"")
        answer = b""
        while sent and b"alive" not in answer:
            answer += raw.recv(4096)
        raw.sendall(sent)
        assert raw.recv(4096) == b""
