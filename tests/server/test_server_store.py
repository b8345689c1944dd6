"""What every store must do; a new one is one more entry in `STORES`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lhopt.server.sqlite_store import SqliteStore
from lhopt.server.store import (
    AttemptRecord,
    DecisionRecord,
    IdempotencyRecord,
    KeyRecord,
    SessionRecord,
    Store,
    StoreError,
    lineage,
    maker,
)

STORES: dict[str, Callable[[Path], Store]] = {"sqlite": lambda folder: SqliteStore(folder / "db")}


@pytest.fixture(params=list(STORES))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens stores on the same data, as several processes would."""
    opened: list[Store] = []

    def make() -> Store:
        opened.append(STORES[request.param](tmp_path))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def session(name: str = "s", owner: str = "o", created: float = 1.0) -> SessionRecord:
    return SessionRecord(
        id=name, owner=owner, name=None, status="open", attempt=0, next_index=0,
        policy_name="p", policy_digest="d", optimizer="x", controls=("learning_rate",),
        share=0.1, scheduled=True, metadata={"a": "b"}, opening={"hold": True},
        created=created, updated=created,
    )  # fmt: skip


def decision(index: int, name: str = "s", attempt: int = 0, who: str = "") -> DecisionRecord:
    return DecisionRecord(
        session=name, attempt=attempt, index=index, fingerprint=f"f{index}{who}",
        policy_digest="d", statistics={"train_loss": "NaN"}, situation={"progress": 0.1},
        decision={"hold": False}, state_after=b"\x00\xff", answer=who.encode(), at=2.0,
    )  # fmt: skip


def test_what_was_added_is_read_back(open_store: Callable[[], Store]) -> None:
    store = open_store()
    store.add_session(session(), None)
    assert store.commit([decision(0)]) == [True]
    other = open_store()
    read = other.session("s")
    assert read is not None
    assert (read.next_index, read.updated, read.controls) == (1, 2.0, ("learning_rate",))
    assert other.decision("s", 0, 0) == decision(0)
    assert other.decision("s", 0, 1) is None
    assert other.session("none") is None


def test_a_commit_keeps_nothing_of_a_session_that_moved_on(
    open_store: Callable[[], Store],
) -> None:
    store = open_store()
    for name in ("a", "b", "c", "d"):
        store.add_session(session(name), None)
    store.commit([decision(0, "b", who="first")])
    store.close_session("c", {}, 3.0)
    store.fork(AttemptRecord("d", 1, 0, 0, 3.0), None)
    kept = store.commit([decision(0, name, who="second") for name in ("a", "b", "c", "d")])
    assert kept == [True, False, False, False]
    assert [row.answer for row in store.decisions("b", 0, 0, 9)] == [b"first"]
    assert store.decisions("c", 0, 0, 9) == store.decisions("d", 0, 0, 9) == []


def test_a_fork_or_a_close_that_comes_late_changes_nothing(
    open_store: Callable[[], Store],
) -> None:
    store = open_store()
    store.add_session(session(), None)
    assert store.fork(AttemptRecord("s", 1, 0, 0, 3.0), None)
    assert not store.fork(AttemptRecord("s", 1, 0, 0, 4.0), None)
    assert not store.close_session("s", {"loss": 0.0}, 4.0, 0)
    assert store.close_session("s", {"loss": 1.0}, 5.0, 1)
    assert not store.close_session("s", {"loss": 2.0}, 6.0)
    assert not store.fork(AttemptRecord("s", 2, 1, 0, 7.0), None)
    read = store.session("s")
    assert read is not None
    assert (read.attempt, read.outcome) == (1, {"loss": 1.0})
    assert [row.attempt for row in store.attempts("s")] == [0, 1]
    assert store.counts() == {"open": 0, "closed": 1}


def test_the_head_of_an_attempt_is_where_it_was_left(open_store: Callable[[], Store]) -> None:
    store = open_store()
    store.add_session(session(), None)
    for index in range(3):
        store.commit([decision(index)])
    store.fork(AttemptRecord("s", 1, 0, 2, 3.0), None)
    assert (store.head("s", 0), store.head("s", 1)) == (3, 2)


def test_an_answer_is_kept_with_its_session_or_not_at_all(
    open_store: Callable[[], Store],
) -> None:
    store = open_store()
    answer = IdempotencyRecord("o", "k", "f", 201, "/there", b"{}", 1.0)
    store.add_session(session(), answer)
    assert store.idempotent("o", "k") == answer
    assert store.idempotent("other", "k") is None
    with pytest.raises(StoreError):
        store.add_session(session("t"), answer)
    assert store.session("t") is None


def test_sessions_of_one_moment_are_paged_without_loss(open_store: Callable[[], Store]) -> None:
    store = open_store()
    for i in range(7):
        store.add_session(session(f"s{i}"), None)
    store.add_session(session("foreign", owner="other"), None)
    seen: list[str] = []
    after = None
    while rows := store.sessions("o", None, 3, after):
        seen += [row.id for row in rows]
        after = (rows[-1].created, rows[-1].id)
    assert seen == [f"s{i}" for i in reversed(range(7))]
    assert store.count_open("o") == 7


def test_a_key_is_revoked_once(open_store: Callable[[], Store]) -> None:
    store = open_store()
    store.add_key(KeyRecord("k", "name", "hash", 1.0))
    assert store.revoke_key("k", 2.0)
    assert not store.revoke_key("k", 3.0)
    assert not store.revoke_key("none", 3.0)
    assert store.list_keys() == [KeyRecord("k", "name", "hash", 1.0, 2.0)]


def test_two_processes_never_decide_one_index_twice(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    stores[0].add_session(session(), None)
    wins: dict[str, list[int]] = {"0": [], "1": []}
    start = threading.Barrier(2)

    def race(who: str, store: Store) -> None:
        for index in range(60):
            start.wait(10)
            if store.commit([decision(index, who=who)]) == [True]:
                wins[who].append(index)

    threads = [threading.Thread(target=race, args=(str(i), s)) for i, s in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(wins["0"] + wins["1"]) == list(range(60))
    for row in stores[0].decisions("s", 0, 0, 60):
        assert row.index in wins[row.answer.decode()]


def attempts(*rows: tuple[int, int | None, int]) -> list[AttemptRecord]:
    return [AttemptRecord("s", number, parent, start, 0.0) for number, parent, start in rows]


def test_a_lineage_leaves_out_what_later_forks_undid() -> None:
    rows = attempts((0, None, 0), (1, 0, 5), (2, 1, 3), (3, 1, 7), (4, 0, 0))
    assert lineage(rows, 0) == [(0, 0, None)]
    assert lineage(rows, 1) == [(0, 0, 5), (1, 5, None)]
    assert lineage(rows, 2) == [(0, 0, 3), (2, 3, None)]
    assert lineage(rows, 3) == [(0, 0, 5), (1, 5, 7), (3, 7, None)]
    assert lineage(rows, 4) == [(4, 0, None)]
    assert [maker(rows, 3, index) for index in (0, 4, 5, 6, 7)] == [0, 0, 1, 1, 3]
