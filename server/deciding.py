"""From asks to decision records, for runs that one policy steers. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core.actions import Decision
from ..core.features import Situation
from ..core.statistics import Statistics
from ..core.wire import encode_decision, encode_situation, encode_statistics
from ..policy import runtime
from ..policy.artifact import Policy
from ..policy.runtime import State
from .store import DecisionRecord


@dataclass(frozen=True)
class Ask:
    """One request for a decision, decoded; `statistics` and `situation` are of one run."""

    owner: str
    session: str
    attempt: int
    index: int
    statistics: Statistics
    situation: Situation

    @cached_property
    def encoded(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Statistics and situation in canonical form: the same, however they were written."""
        return encode_statistics(self.statistics), encode_situation(self.situation)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form, hex."""
        text = json.dumps(self.encoded, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Made:
    """A decision that is not committed yet; `state` is the run's after it."""

    record: DecisionRecord
    state: State
    decision: Decision


def make(
    policy: Policy,
    asks: Sequence[Ask],
    states: Sequence[State],
    scheduled: Sequence[bool],
    at: float,
) -> list[Made]:
    """Decide all asks in one batch.

    Args:
        policy: Steers all of them.
        asks: One per run.
        states: Of each run, after its previous decision.
        scheduled: Of each run, False where the job brings its own schedule.
        at: Unix seconds, for the records.
    """
    with np.errstate(all="ignore"):  # statistics may be anything; features expect that
        state, decision = runtime.decide(
            policy,
            State.stack(states),
            Statistics.stack([ask.statistics for ask in asks]),
            stack_situations([ask.situation for ask in asks]),
            scheduled=np.array(scheduled, np.bool_),
            seeds=[seed(ask) for ask in asks],
        )
    made = []
    for row, ask in enumerate(asks):
        encoded = encode_decision(decision, row)
        answer = {
            "session": ask.session,
            "attempt": ask.attempt,
            "index": ask.index,
            "decision": encoded,
            "policy": policy.digest,
        }
        after = state.row(row)
        record = DecisionRecord(
            session=ask.session,
            attempt=ask.attempt,
            index=ask.index,
            fingerprint=ask.fingerprint,
            policy_digest=policy.digest,
            statistics=ask.encoded[0],
            situation=ask.encoded[1],
            decision=encoded,
            state_after=after.to_bytes(),
            answer=json.dumps(answer, allow_nan=False, separators=(",", ":")).encode(),
            at=at,
        )
        made.append(Made(record, after, decision.row(row)))
    return made


def stack_situations(rows: Sequence[Situation]) -> Situation:
    """Several runs' situations as one batch, in order."""
    return Situation(
        progress=np.concatenate([row.progress for row in rows]),
        share=np.concatenate([row.share for row in rows]),
        relative=np.concatenate([row.relative for row in rows]),
        schedule=np.concatenate([row.schedule for row in rows]),
    )


def seed(ask: Ask) -> tuple[int, ...]:
    """What a sampling policy draws from: the decision's key, so that a repeat draws the same."""
    digest = hashlib.sha256(ask.session.encode()).digest()
    return (int.from_bytes(digest[:8], "big"), ask.attempt, ask.index)
