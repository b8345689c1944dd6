"""When workers meet: counters, the schedule, and an interval that was set by hand."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

from ...core.errors import ConfigurationError
from .checks import whole
from .protocol import Schedule, StatefulSchedule, SyncState

#: What a checkpoint holds, apart from the schedule's memory.
_KEPT = ("steps", "rounds", "pending", "planned", "fixed", "drift", "cosine")


class Clock:
    """Counts steps and rounds, and asks the schedule before the first step of each round.

    Not at the synchronisation itself: a scheduler sets the rate of the coming step in between.

    Args:
        schedule: Says how many local steps lie between synchronisations.
        n_workers: Over all processes.

    Raises:
        ConfigurationError: `schedule` is none.

    Attributes:
        steps: Local steps since the start.
        rounds: Synchronisations done.
        pending: Local steps since the last one.
        planned: The schedule's answer for this round; `None` before its first step.
        fixed: The interval that was set by hand, and overrides the schedule; `None` without.
        drift: As in `SyncState`.
        cosine: As in `SyncState`.
    """

    def __init__(self, schedule: Schedule, n_workers: int) -> None:
        if not callable(getattr(schedule, "next_interval", None)):
            raise ConfigurationError(
                f"schedule is {schedule!r}; an object with a method next_interval(state) is "
                "wanted, such as ConstantInterval(8)."
            )
        self.schedule = schedule
        self._n_workers = n_workers
        self.steps = self.rounds = self.pending = 0
        self.planned: int | None = None
        self.fixed: int | None = None
        self.drift = self.cosine = math.nan

    def state(self, learning_rate: float) -> SyncState:
        """The run as the schedule sees it."""
        return SyncState(
            self.steps, self.rounds, learning_rate, self.drift, self.cosine, self._n_workers
        )

    def plan(self, learning_rate: float) -> None:
        """Ask the schedule, if a round is about to begin."""
        if self.planned is None:
            self.planned = self._ask(self.schedule, learning_rate)

    def interval(self, learning_rate: float) -> int:
        """Local steps between synchronisations, if a step began now."""
        if self.fixed is not None:
            return self.fixed
        if self.planned is not None:
            return self.planned
        # whoever only looks must not make a schedule with a memory move on
        return self._ask(copy.deepcopy(self.schedule), learning_rate)

    def tick(self, learning_rate: float) -> bool:
        """Count a step; whether it is time to meet."""
        self.steps += 1
        self.pending += 1
        return self.pending >= self.interval(learning_rate)

    def met(self, drift: float, cosine: float) -> None:
        """Count a round."""
        self.drift, self.cosine = drift, cosine
        self.rounds += 1
        self.pending = 0
        self.planned = None

    def _ask(self, schedule: Schedule, learning_rate: float) -> int:
        answer = schedule.next_interval(self.state(learning_rate))
        return whole(f"The interval of {type(schedule).__name__}", answer)

    def state_dict(self) -> dict[str, Any]:
        """Counters, and the schedule's memory if it has one."""
        remembers = isinstance(self.schedule, StatefulSchedule)
        memory = cast(StatefulSchedule, self.schedule).state_dict() if remembers else None
        kept = {key: getattr(self, key) for key in _KEPT}
        return {**kept, "schedule": memory, "kind": type(self.schedule).__name__}

    def check(self, state: dict[str, Any]) -> None:
        """See that `load_state_dict` can take a state.

        Raises:
            ConfigurationError: It is of another schedule, or its memory is none of this one's.
        """
        memory, here = state["schedule"], type(self.schedule).__name__
        if (memory is not None) != isinstance(self.schedule, StatefulSchedule):
            raise ConfigurationError(
                f"The saved state is of a schedule {'without' if memory is None else 'with'} a "
                f"memory; {here} is not. Make LocalSGD with the schedule that it was saved with."
            )
        saved = state.get("kind", here)  # not in checkpoints of before
        if saved != here:
            raise ConfigurationError(
                f"The saved state is of the schedule {saved}, this one is {here}. Make LocalSGD "
                "with the schedule that it was saved with."
            )
        if memory is None:
            return
        try:
            cast(StatefulSchedule, copy.deepcopy(self.schedule)).load_state_dict(memory)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"The saved schedule holds {', '.join(map(str, memory))}, which {here} cannot load "
                f"({type(error).__name__}: {error}). Make LocalSGD with the schedule that it was "
                "saved with."
            ) from error

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()` that was checked."""
        memory = state["schedule"]
        if memory is not None:
            cast(StatefulSchedule, self.schedule).load_state_dict(memory)
        for key in _KEPT:
            setattr(self, key, state[key])
