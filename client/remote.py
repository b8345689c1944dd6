"""The policy behind a URL, as a Tuner uses it: resynchronise, pause, give up, never wait long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS, Decision
from ..core.controls import CONTROLS
from ..core.errors import LhoptError, ProtocolError
from ..core.features import Situation
from ..core.schedules import Schedule
from ..core.statistics import Statistics
from ..core.wire import MIN_SCHEDULE
from . import operations
from .backends import Deadline, Hold, Opening, Terms
from .blocking import Client, Session
from .errors import ApiError, ServerUnreachable
from .notices import logger
from .operations import Opened

#: After so many failures in a row only every so many-th decision is asked for.
FAILURES, EVERY = 3, 4
#: The session's policy has left the server, with an upgrade, say: another has to decide.
POLICY_GONE = "policy-not-loaded"
#: The session was closed, or is not there. The server's own words: a 404 of a proxy in between is
#: one that passes.
GONE = frozenset({"session-closed", "no-session"})
#: The server will not serve this run again.
FINAL = GONE | {"stale-attempt", "unknown-attempt", "state-incompatible"}


class Remote:
    """Decisions of a server.

    Args:
        client: How to reach it.
        policy: Name of one of its policies, or `None` for its choice.
        terms: What the job says.
        owns_client: Close the client at the end.
    """

    def __init__(
        self, client: Client, policy: str | None, terms: Terms, *, owns_client: bool
    ) -> None:
        self._client = client
        self._policy = policy
        self._terms = terms
        self._owns_client = owns_client
        self._session: Session | None = None
        self._next = 0  # the server's index of the next decision
        self._parent: tuple[int, int] | None = None  # an attempt to fork, and at which decision
        self._failures = 0
        self._skipped = 0
        self._over: str | None = None
        self._key = operations.new_key()  # one session, also if an answer to opening it is lost

    def steered(self) -> tuple[str, ...]:
        """What the server steers; everything on offer while that is unknown."""
        return self._terms.controls if self._session is None else self._session.opened.controls

    def needs_slope(self) -> bool:
        """Whether the server's policy does; while that is unknown, nothing is measured for it."""
        return self._session is not None and self._session.opened.needs_slope

    def open(self, deadline: Deadline) -> Opening:
        """Open a session.

        Raises:
            Hold: The server cannot be reached or refuses; `decide` will try again.
        """
        try:
            opened = self._open(deadline)
            checked(opened.decision, np.zeros((1, N_CONTROLS)), np.zeros(1), opened.controls)
        except Exception as error:
            raise self._failed(error) from error
        self._failures = 0
        return Opening(opened.decision, opened.controls)

    def decide(
        self, index: int, statistics: Statistics, situation: Situation, deadline: Deadline
    ) -> Decision:
        """Ask the server; open or fork first if that is still to be done.

        Raises:
            Hold: There is no decision; the cause says why.
        """
        if self._over is not None:
            raise Hold(self._over, "the server will not serve this run again")
        if self._failures >= FAILURES:
            self._skipped += 1
            if self._skipped % EVERY:
                raise Hold("pausing", f"{self._failures} failures in a row; asking again later")
        try:
            if self._session is None:
                self._open(deadline)
            elif self._parent is not None:
                self._fork(self._session, deadline)
            try:
                decision = self._ask(statistics, situation, deadline)
            except ApiError as error:
                if error.code != POLICY_GONE:
                    raise
                self._reopen(deadline)
                decision = self._ask(statistics, situation, deadline)
            situation = self._steered_only(situation)
            checked(decision, situation.relative, situation.schedule, self.steered())
        except Exception as error:
            raise self._failed(error) from error
        self._failures = self._skipped = 0
        return decision

    def schedule(self) -> Schedule | None:
        """The default shape of the server's policy; None while no session was opened."""
        return None if self._session is None else self._session.opened.schedule

    def state_dict(self) -> dict[str, Any]:
        """The session, and where in it this run stands."""
        if self._session is None:
            return {"kind": "remote", "session": None}
        opened = self._session.opened
        attempt, next_index = self._parent or (self._session.attempt, self._next)
        return {
            "kind": "remote",
            "session": opened.id,
            "attempt": attempt,
            "next_index": next_index,
            "controls": list(opened.controls),
            "policy": dict(opened.policy),
            "schedule": None if opened.schedule is None else opened.schedule.to_json(),
            "needs_slope": opened.needs_slope,
        }

    def resume(self, state: dict[str, Any], deadline: Deadline) -> None:
        """Fork the saved session where it stood; if the server is away, at the next decision."""
        if state.get("kind") != "remote" or state["session"] is None:
            return
        if self._session is not None and self._session.id != state["session"]:
            # the one that our construction opened; nobody will use it
            try:
                self._session.close({"superseded_by": state["session"]}, timeout=deadline.left / 2)
            except Exception:
                self._failures += 1
        opened = Opened(
            id=str(state["session"]),
            attempt=int(state["attempt"]),
            next_index=int(state["next_index"]),
            policy=dict(state["policy"]),
            controls=tuple(state["controls"]),
            decision=Decision.hold(),
            schedule=operations.read_schedule(state.get("schedule")),
            needs_slope=state.get("needs_slope") is True,
        )
        self._session = Session(self._client, opened)
        self._next, self._parent = opened.next_index, (opened.attempt, opened.next_index)
        self._over = None
        try:
            self._fork(self._session, deadline)
        except Exception as error:
            self._failed(error)

    def close(self, outcome: dict[str, Any] | None, deadline: Deadline) -> None:
        """Tell the server how it went, unless it has been silent for a while."""
        ended = outcome is not None and self._session is not None and self._over is None
        try:
            if ended and self._failures < FAILURES:
                assert self._session is not None
                self._session.close(outcome, timeout=deadline.left)
        finally:
            if self._owns_client:
                self._client.close()

    def _open(self, deadline: Deadline) -> Opened:
        terms = self._terms
        operation = operations.open_session(
            policy=self._policy,
            optimizer=terms.optimizer,
            controls=terms.controls,
            share=terms.share,
            scheduled=terms.scheduled,
            name=(terms.name or None) and str(terms.name)[:128],
            metadata={},
            key=self._key,
        )
        self._session = Session(self._client, self._client.run(operation, deadline.left))
        self._key = operations.new_key()
        self._next = self._session.opened.next_index
        return self._session.opened

    def _fork(self, session: Session, deadline: Deadline) -> None:
        assert self._parent is not None
        attempt, index = self._parent
        try:
            self._next = session.fork(index, parent_attempt=attempt, timeout=deadline.left)
        except ApiError as error:
            if error.code in GONE:
                # closed or gone: the policy's memory of the run is lost, the rest is with us
                logger.warning(
                    "lhopt: the server has closed or lost this run's session: its policy goes on "
                    "without a memory of the run, and decides otherwise than it would have. Where "
                    "a job may be resumed, close() only what is over; `with Tuner(...)` does so."
                )
                self._open(deadline)
            elif error.code == POLICY_GONE:
                self._reopen(deadline)
            elif error.code == "decision-gap" and error.expected_index is not None:
                # the server lost its last decisions (a power cut): go on from those it has
                index = error.expected_index
                self._next = session.fork(index, parent_attempt=attempt, timeout=deadline.left)
            else:
                raise
        self._parent = None

    def _reopen(self, deadline: Deadline) -> None:
        """Open another session in place of one whose policy the server does not have any more.

        Asking again would be in vain until somebody puts the policy back; with an upgrade nobody
        does. What the old policy remembered of the run is lost, the rest is with us.
        """
        old = self._session
        assert old is not None
        opened = self._open(deadline)
        logger.warning(
            "lhopt: the server no longer has policy %s (%s) of this run's session: %s (%s) goes on "
            "without a memory of the run.",
            old.opened.policy["name"],
            old.opened.policy["digest"][:12],
            opened.policy["name"],
            opened.policy["digest"][:12],
        )
        try:
            old.close({"superseded_by": opened.id}, timeout=deadline.left / 2)
        except Exception as error:
            # nothing depends on it: a session that stays open is one that idles
            logger.info("lhopt: session %s could not be closed: %s", old.id, error)

    def _ask(self, statistics: Statistics, situation: Situation, deadline: Deadline) -> Decision:
        assert self._session is not None
        situation = self._steered_only(situation)
        for again in (True, False):
            try:
                decision = self._session.decide(
                    self._next, statistics, situation, timeout=deadline.left
                )
            except ApiError as error:
                # an answer that never reached us was committed, or a commit of theirs was lost
                if not again or error.code not in ("decision-gap", "statistics-mismatch"):
                    raise
                expected = error.expected_index
                self._next = self._next + 1 if expected is None else expected
                continue
            self._next += 1
            return decision
        raise AssertionError("unreachable")

    def _steered_only(self, situation: Situation) -> Situation:
        """A session opened just now may steer less than was on offer; the server refuses more."""
        ours = np.zeros(N_CONTROLS, bool)
        ours[[COLUMN[name] for name in self.steered()]] = True
        return replace(situation, relative=np.where(ours, situation.relative, np.nan))

    def _failed(self, error: Exception) -> Hold:
        """Count a failure and say it in our words."""
        if isinstance(error, Hold):
            return error
        self._failures += 1
        cause = "bad-answer"
        if isinstance(error, ServerUnreachable):
            cause = "server-unreachable"
        elif isinstance(error, ApiError):
            cause = error.code
            if self._session is not None and error.code in FINAL:
                self._over = error.code
        elif not isinstance(error, LhoptError):
            cause = type(error).__name__
        return Hold(cause, str(error))


def checked(decision: Decision, relative: Any, schedule: Any, steered: tuple[str, ...]) -> None:
    """Refuse a decision that no lhopt server makes: nothing of it is applied.

    Raises:
        ProtocolError: It moves what we do not steer, leaves a run's bounds, or its parts do not
            add up.
    """
    step = np.zeros((1, N_CONTROLS))
    step[0, COLUMN["learning_rate"]] = decision.schedule[0] - schedule[0]
    adds_up = np.abs(decision.delta - decision.action_delta - step).max() < 1e-6
    ours = np.zeros(N_CONTROLS, bool)
    ours[[COLUMN[name] for name in steered]] = True
    ours &= np.isfinite(relative[0])
    so_far = np.nan_to_num(relative[0])
    so_far[COLUMN["learning_rate"]] -= schedule[0]
    total = np.array([control.max_total for control in CONTROLS.values()])
    after = np.abs(so_far + decision.action_delta[0])
    within = (after <= np.maximum(total, np.abs(so_far)) + 1e-6).all()
    if (
        not adds_up
        or not within
        or decision.delta[0, ~ours].any()
        or decision.schedule[0] < MIN_SCHEDULE
    ):
        raise ProtocolError(
            f"The answer is no decision for this run: moves {decision.moves()}, steered "
            f"{', '.join(steered)}, schedule {float(decision.schedule[0])}. Nothing of it is "
            "applied."
        )
