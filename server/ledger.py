"""Decisions against the store: look up, decide in one batch, commit once. All on one thread.

A decision is committed before it is answered. Memory holds only what the store could give again;
if another process moved a session on, the commit fails, and the session is read again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.errors import IncompatiblePolicyError
from ..policy.runtime import State
from . import refusals
from .catalog import Catalog
from .deciding import Ask, Made, make
from .metrics import Metrics
from .problems import Problem
from .store import SessionRecord, Store, maker

_TRIES = 3


@dataclass(frozen=True)
class Answer:
    """Stored bytes; `replayed` where they were stored before this request came."""

    body: bytes
    replayed: bool


@dataclass(frozen=True)
class _Head:
    """A session, and its state after the last decision once that was needed."""

    session: SessionRecord
    state: State | None = None


class Ledger:
    """Answers asks. One thread at a time may be inside.

    Args:
        store: Where it is kept.
        catalog: The loaded policies.
        metrics: Counts decisions, replays and phases.
        cache_sessions: Sessions kept in memory.
    """

    def __init__(
        self, store: Store, catalog: Catalog, metrics: Metrics, cache_sessions: int
    ) -> None:
        self._store, self._catalog, self._metrics = store, catalog, metrics
        self._heads: OrderedDict[str, _Head] = OrderedDict()
        self._cache_sessions = cache_sessions

    def decide(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """Answer asks of distinct sessions, in their order; commits once.

        A refusal stands in its place of the list, so that one ask cannot fail another.

        Raises:
            StoreError: The commit failed; no decision was made.
        """
        out: dict[int, Answer | Exception] = {}
        waiting = list(range(len(asks)))
        for _ in range(_TRIES):
            waiting = self._round(asks, waiting, out)
            if not waiting:
                break
        for i in waiting:
            out[i] = refusals.busy(asks[i].session)
        return [out[i] for i in range(len(asks))]

    def forget(self, session_id: str) -> None:
        """Drop a session from memory; the store is asked next time."""
        self._heads.pop(session_id, None)

    def session(self, owner: str, session_id: str) -> SessionRecord:
        """An owner's session as memory or the store has it.

        Raises:
            Problem: 404, for another owner's session too.
        """
        return self._head(owner, session_id).session

    def _round(
        self, asks: Sequence[Ask], waiting: Sequence[int], out: dict[int, Answer | Exception]
    ) -> list[int]:
        """Try `waiting` once; returns those whose session moved on meanwhile."""
        started = time.perf_counter()
        heads: dict[int, _Head] = {}
        groups: dict[str, list[int]] = {}
        for i in waiting:
            try:
                head, answer = self._looked_up(asks[i])
                if answer is not None:
                    out[i] = answer
                    continue
                heads[i] = self._with_state(head)
                groups.setdefault(head.session.policy_digest, []).append(i)
            except Problem as problem:
                out[i] = problem
            except IncompatiblePolicyError as error:
                out[i] = refusals.foreign_state(error)
        loaded = time.perf_counter()
        made = [row for members in groups.values() for row in self._made(members, asks, heads, out)]
        decided = time.perf_counter()
        kept = self._store.commit([row.record for _, row in made]) if made else []
        committed = time.perf_counter()
        lost = []
        for (i, row), ok in zip(made, kept, strict=True):
            if not ok:
                self.forget(row.record.session)
                lost.append(i)
                continue
            session = replace(
                heads[i].session, next_index=row.record.index + 1, updated=row.record.at
            )
            self._remember(_Head(session, row.state))
            self._count(session, row)
            out[i] = Answer(row.record.answer, replayed=False)
        if made:
            phases = self._metrics.phases
            self._metrics.batch_size.observe(len(made))
            phases.labels("load").observe(loaded - started)
            phases.labels("decide").observe(decided - loaded)
            phases.labels("commit").observe(committed - decided)
        return lost

    def _looked_up(self, ask: Ask) -> tuple[_Head, Answer | None]:
        """The ask's session, and the stored answer if the ask came before.

        Raises:
            Problem: 404, 409, 410 or 422, as `refusals` has them.
        """
        remembered = ask.session in self._heads
        head = self._head(ask.owner, ask.session)
        if remembered:
            try:
                if _is_next(head.session, ask):
                    return head, None
            except Problem:
                pass
            # memory may be behind another process on the same database. The commit of a new
            # decision would find that out; what is refused or repeated goes by the store alone
            self.forget(ask.session)
            head = self._head(ask.owner, ask.session)
        return head, self._stored(head.session, ask)

    def _stored(self, session: SessionRecord, ask: Ask) -> Answer | None:
        if _is_next(session, ask):
            return None
        attempt = maker(self._store.attempts(session.id), session.attempt, ask.index)
        record = self._store.decision(session.id, attempt, ask.index)
        assert record is not None, "an index below next_index has a decision"
        if record.fingerprint != ask.fingerprint:
            raise refusals.mismatch(session, ask.index)
        self._metrics.replays.inc()
        return Answer(record.answer, replayed=True)

    def _made(
        self,
        members: Sequence[int],
        asks: Sequence[Ask],
        heads: dict[int, _Head],
        out: dict[int, Answer | Exception],
    ) -> list[tuple[int, Made]]:
        """Decisions of runs that one policy steers; one that fails does not fail the others."""
        policy = self._catalog.pinned(heads[members[0]].session.policy_digest)
        assert policy is not None, "heads with a state have a policy"
        try:
            rows = make(
                policy,
                [asks[i] for i in members],
                [state for i in members if (state := heads[i].state) is not None],
                [heads[i].session.scheduled for i in members],
                time.time(),
            )
            return list(zip(members, rows, strict=True))
        except Exception as error:
            if len(members) == 1:
                out[members[0]] = error
                return []
        return [row for i in members for row in self._made([i], asks, heads, out)]

    def _head(self, owner: str, session_id: str) -> _Head:
        head = self._heads.get(session_id)
        if head is None:
            session = self._store.session(session_id)
            if session is not None:
                head = _Head(session)
                self._remember(head)
        if head is None or head.session.owner != owner:
            raise refusals.no_session(session_id)
        return head

    def _with_state(self, head: _Head) -> _Head:
        """The head with the state after its last decision.

        Raises:
            Problem: 503, the session's policy is not loaded.
            IncompatiblePolicyError: The state was saved by another version.
        """
        session = head.session
        policy = self._catalog.pinned(session.policy_digest)
        if policy is None:
            raise refusals.policy_gone(session)
        if head.state is not None:
            return head
        state = State.initial(policy)
        if session.next_index > 0:
            index = session.next_index - 1
            attempt = maker(self._store.attempts(session.id), session.attempt, index)
            record = self._store.decision(session.id, attempt, index)
            assert record is not None, "an index below next_index has a decision"
            state = State.from_bytes(record.state_after, policy)
        return replace(head, state=state)

    def _remember(self, head: _Head) -> None:
        self._heads[head.session.id] = head
        self._heads.move_to_end(head.session.id)
        while len(self._heads) > self._cache_sessions:
            self._heads.popitem(last=False)

    def _count(self, session: SessionRecord, made: Made) -> None:
        decision = made.decision
        outcome = "hold" if decision.is_hold() else "move"
        if "non-finite-statistics" in decision.reasons[0]:
            outcome = "brake"
        policy = f"{session.policy_name}@{session.policy_digest[:12]}"
        self._metrics.decisions.labels(policy, outcome).inc()


def _is_next(session: SessionRecord, ask: Ask) -> bool:
    """Whether an ask is for the decision that a session makes next, not for one that it made.

    Raises:
        Problem: It is for neither, or names a control that the session does not steer.
    """
    refusals.check_key(session, ask.attempt, ask.index)
    foreign = refusals.foreign_control(session, ask.situation)
    if foreign is not None:
        raise foreign
    return ask.index == session.next_index
