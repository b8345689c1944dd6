"""Who decides: the policy in this process. `client/remote.py` has the one behind a URL."""

from __future__ import annotations

import base64
import time
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS, Decision
from ..core.errors import LhoptError, ResumeError
from ..core.features import Situation
from ..core.schedules import Schedule
from ..core.statistics import Statistics
from ..policy import runtime
from ..policy.artifact import Policy


class Hold(LhoptError):
    """No decision now: change nothing.

    Args:
        cause: A short word for logs and `Tuner.history`, e.g. "server-unreachable".
        message: For people.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True)
class Deadline:
    """A point in time that every wait inside one call shares."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at - time.monotonic()


@dataclass(frozen=True)
class Terms:
    """What a job says when it begins.

    Attributes:
        optimizer: Its name, e.g. "torch.optim.AdamW".
        controls: What it lets us steer.
        share: Fraction of the run that one interval takes.
        scheduled: Whether the policy's default schedule applies; False if the job has its own.
        name: The job's name, for people.
    """

    optimizer: str
    controls: tuple[str, ...]
    share: float
    scheduled: bool
    name: str | None


@dataclass(frozen=True)
class Opening:
    """The answer: the decision for the first interval, and what will be steered."""

    decision: Decision
    controls: tuple[str, ...]


class Backend(Protocol):
    """Decides for one run. Any exception means "hold": the Tuner changes nothing and goes on."""

    def open(self, deadline: Deadline) -> Opening:
        """Begin a run."""

    def decide(
        self, index: int, statistics: Statistics, situation: Situation, deadline: Deadline
    ) -> Decision:
        """Decide the interval that begins; `index` counts the run's decisions from 1."""

    def steered(self) -> tuple[str, ...]:
        """The controls that decisions may move."""

    def needs_slope(self) -> bool:
        """Whether decisions are known to depend on the slope of a held-out loss."""

    def schedule(self) -> Schedule | None:
        """The default shape that a run without an answer follows; None if there is none."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain values."""

    def resume(self, state: dict[str, Any], deadline: Deadline) -> None:
        """Go on where `state_dict` stood."""

    def close(self, outcome: dict[str, Any] | None, deadline: Deadline) -> None:
        """End the run; without an outcome only this process ends, and the run may be resumed."""


class Embedded:
    """The policy in this process: numpy alone, tens of microseconds per decision."""

    def __init__(self, policy: Policy, terms: Terms) -> None:
        self.policy = policy
        self._terms = terms
        self._state = runtime.State.initial(policy)
        self._scheduled = np.array([terms.scheduled])
        self._seed = zlib.crc32((terms.name or "").encode())

    def steered(self) -> tuple[str, ...]:
        """The controls of the policy that the job offers."""
        return tuple(c.name for c in self.policy.controls if c.name in self._terms.controls)

    def open(self, deadline: Deadline) -> Opening:
        """The default schedule's first value."""
        steered = np.zeros((1, N_CONTROLS), bool)
        steered[0, [COLUMN[name] for name in self.steered()]] = True
        share = np.array([self._terms.share])
        decision = runtime.opening(self.policy.schedule, share, steered, self._scheduled)
        return Opening(decision, self.steered())

    def decide(
        self, index: int, statistics: Statistics, situation: Situation, deadline: Deadline
    ) -> Decision:
        """One step of the policy."""
        self._state, decision = runtime.decide(
            self.policy,
            self._state,
            statistics,
            situation,
            scheduled=self._scheduled,
            seeds=[(self._seed, index)],
        )
        return decision

    def needs_slope(self) -> bool:
        """Whether the policy does."""
        return self.policy.needs_slope(self.steered())

    def schedule(self) -> Schedule | None:
        """The policy's, unless the job brings its own."""
        return self.policy.schedule if self._terms.scheduled else None

    def state_dict(self) -> dict[str, Any]:
        """The policy's digest and memory."""
        state = base64.b64encode(self._state.to_bytes()).decode()
        return {"kind": "embedded", "digest": self.policy.digest, "state": state}

    def resume(self, state: dict[str, Any], deadline: Deadline) -> None:
        """Take up the memory.

        Raises:
            ResumeError: It is the memory of another policy.
        """
        if state.get("kind") != "embedded" or state["digest"] != self.policy.digest:
            raise ResumeError(
                f"The checkpoint was decided by {state.get('digest', 'a server')}; this Tuner has "
                f"policy {self.policy.name!r}, {self.policy.digest}. Pass the same policy=."
            )
        self._state = runtime.State.from_bytes(base64.b64decode(state["state"]), self.policy)

    def close(self, outcome: dict[str, Any] | None, deadline: Deadline) -> None:
        """Nothing to do."""
