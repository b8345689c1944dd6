"""Random histories of one server against a model made of dicts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
from hypothesis import HealthCheck
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

if TYPE_CHECKING:
    from lhopt.server.settings import Settings
    from tests.server.conftest import Api


def report(number: int) -> dict[str, Any]:
    return {
        "statistics": {"train_loss": 1.0 + number, "log_grad_norm": float(-number)},
        "situation": {
            "progress": 0.5, "share": 0.1, "schedule": 0.0,
            "relative": {"learning_rate": 0.1 * number},
        },
    }  # fmt: skip


class Machine(RuleBasedStateMachine):
    """The model: per session the lineage of (report, answer) of each attempt, and which one is on.

    A decision depends on the reports of its lineage alone (policy "alpha" draws nothing), which
    is what `by_lineage` holds: whatever happened in between, equal lineages get equal decisions.
    """

    make: Any
    base: Settings
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        database = Path(self.folder.name) / "lhopt.sqlite3"
        self.mine = replace(self.base, database=database, cache_sessions=2)
        self.api: Api = self.make(self.mine)
        self.lines: dict[str, list[list[tuple[int, bytes]]]] = {}
        self.closed: set[str] = set()
        self.by_lineage: dict[tuple[int, ...], Any] = {}

    def teardown(self) -> None:
        self.api.close()
        self.folder.cleanup()

    @rule(target=sessions)
    def open(self) -> str:
        session: str = self.api.open(policy="alpha")["id"]
        self.lines[session] = [[]]
        return session

    @rule(
        session=sessions,
        back=st.integers(0, 1),
        offset=st.integers(-3, 1),
        number=st.integers(0, 2),
    )
    def decide(self, session: str, back: int, offset: int, number: int) -> None:
        lines = self.lines[session]
        attempt = max(len(lines) - 1 - back, 0)
        line = lines[attempt]
        index = max(len(line) + offset, 0)
        answer = self.api.decide(session, attempt, index, report(number))
        code = answer.json().get("code")
        if session in self.closed:
            assert (answer.status_code, code) == (410, "session-closed")
        elif attempt < len(lines) - 1:
            assert (answer.status_code, code) == (409, "stale-attempt")
            assert answer.json()["attempt"] == len(lines) - 1
        elif index > len(line):
            assert (answer.status_code, code) == (409, "decision-gap")
            assert answer.json()["expected_index"] == len(line)
        elif index < len(line) and line[index][0] != number:
            assert (answer.status_code, code) == (422, "statistics-mismatch")
            assert answer.json()["expected_index"] == len(line)
        elif index < len(line):
            assert answer.status_code == 200
            assert answer.headers["idempotent-replayed"] == "true"
            assert answer.content == line[index][1]
        else:
            assert answer.status_code == 200
            assert "idempotent-replayed" not in answer.headers
            line.append((number, answer.content))
            key = tuple(n for n, _ in line)
            decision = answer.json()["decision"]
            assert self.by_lineage.setdefault(key, decision) == decision

    @rule(session=sessions, back=st.integers(0, 2), depth=st.integers(0, 4))
    def fork(self, session: str, back: int, depth: int) -> None:
        lines = self.lines[session]
        parent = max(len(lines) - 1 - back, 0)
        body = {"parent_attempt": parent, "next_index": depth}
        answer = self.api("POST", f"/v1/sessions/{session}/attempts", json=body)
        if session in self.closed:
            assert answer.status_code == 410
        elif depth > len(lines[parent]):
            assert answer.json()["expected_index"] == len(lines[parent])
        else:
            assert answer.json()["attempt"] == len(lines)
            lines.append(lines[parent][:depth])

    @rule(session=sessions)
    def close(self, session: str) -> None:
        answer = self.api("POST", f"/v1/sessions/{session}/close", json={})
        assert answer.status_code == 200
        self.closed.add(session)

    @rule()
    def restart(self) -> None:
        self.api.close()
        self.api = self.make(self.mine)

    @invariant()
    def the_store_holds_what_was_answered(self) -> None:
        for session, lines in self.lines.items():
            shown = self.api("GET", f"/v1/sessions/{session}").json()
            assert (shown["attempt"], shown["next_index"]) == (len(lines) - 1, len(lines[-1]))
            assert (shown["status"] == "closed") == (session in self.closed)
            rows = self.api("GET", f"/v1/sessions/{session}/decisions").json()["items"]
            assert [row["statistics"]["train_loss"] for row in rows] == [
                1.0 + number for number, _ in lines[-1]
            ]


def test_random_histories_agree_with_the_model(api: Api, settings: Settings) -> None:
    class Bound(Machine):
        make = type(api)
        base = settings

    run_state_machine_as_test(
        Bound,
        settings=hypothesis.settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
