"""From an interval's statistics to written hyperparameters: ask, agree, apply, record, or hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS, Decision
from ..core.features import Situation
from ..core.statistics import Statistics
from . import ranks
from .backends import Backend, Deadline, Hold
from .history import Record
from .hyperparameters import RATE, Hyperparameters
from .notices import Notices


class Steering:
    """One run's hyperparameters and who decides about them.

    Attributes:
        hyperparameters: What is steered.
        index: Decisions taken; the opening one is number 0.
        history: One record per decision.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        backend: Backend,
        notices: Notices,
        *,
        share: float,
        timeout: float,
    ) -> None:
        self.hyperparameters = hyperparameters
        self.index = 0
        self.history: list[Record] = []
        self._backend = backend
        self._notices = notices
        self._share = share
        self._timeout = timeout
        self._schedule = 0.0
        #: Whether a schedule was ever applied: a run that was never answered keeps its own rate.
        self._schedule_begun = False

    def open(self) -> None:
        """Begin the run and carry out its opening decision."""
        deadline = Deadline.after(self._timeout)
        self._carry_out(0, 0.0, lambda: self._backend.open(deadline).decision, {})

    def decide(self, step: int, progress: float, measure: Callable[[], Statistics]) -> None:
        """Take the next decision and carry it out; hold if anything fails.

        Args:
            step: Optimizer steps done.
            progress: Fraction of the run done.
            measure: Finishes the interval's statistics; called where decisions are made.
        """
        self.index += 1
        self.watch(None, tensors=True)
        measured: dict[str, float] = {}

        def ask() -> Decision:
            statistics = measure()
            measured.update(statistics.to_mapping())
            situation = Situation(
                progress=np.array([progress]),
                share=np.array([self._share]),
                relative=self.hyperparameters.relative(self._backend.steered()),
                schedule=np.array([self._schedule]),
            )
            deadline = Deadline.after(self._timeout)
            return self._backend.decide(self.index, statistics, situation, deadline)

        self._carry_out(step, progress, ask, measured)

    def needs_slope(self) -> bool:
        """Whether decisions depend on the slope of a held-out loss."""
        return self._backend.needs_slope()

    def watch(self, names: Sequence[str] | None, *, tensors: bool) -> None:
        """Let go of controls that somebody else writes; of what is steered, say so."""
        for name in self.hyperparameters.foreign(names, tensors=tensors):
            self.hyperparameters.lost.add(name)
            if name not in self._backend.steered():
                continue
            self._notices.warn(
                f"foreign:{name}",
                "lhopt: %s was changed by somebody else; the Tuner leaves it alone from now on. "
                "If a scheduler does it, pass scheduler=... to Tuner, or frozen={%r}.",
                name,
                name,
            )

    def close(self, outcome: dict[str, Any] | None) -> None:
        """End the run, or without an outcome only this process's part in it."""
        if ranks.decides():
            self._backend.close(outcome, Deadline.after(self._timeout))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain values."""
        return {
            "index": self.index,
            "schedule": self._schedule,
            "schedule_begun": self._schedule_begun,
            "hyperparameters": self.hyperparameters.state_dict(),
            "backend": self._backend.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, and write the saved values."""
        if ranks.decides():
            self._backend.resume(dict(state["backend"]), Deadline.after(self._timeout))
        self.hyperparameters.load_state_dict(state["hyperparameters"], self._backend.steered())
        self.index, self._schedule = int(state["index"]), float(state["schedule"])
        self._schedule_begun = bool(state.get("schedule_begun", True))
        self.history.clear()

    def _held(self, progress: float) -> Decision:
        """What a policy that holds would say: the default schedule goes on, if we know it.

        Standing still instead would strand a job whose server died early at the warm-up's rate.
        """
        schedule = self._backend.schedule()
        if schedule is None or not self._schedule_begun or RATE not in self._backend.steered():
            return Decision.hold(schedule=np.array([self._schedule]))
        begins, share = np.array([progress]), np.array([self._share])
        following = schedule.log_multiplier(begins, share)
        delta = np.zeros((1, N_CONTROLS))
        delta[0, COLUMN[RATE]] = following[0] - self._schedule
        return Decision(delta, np.zeros_like(delta), following, ((),))

    def _carry_out(
        self,
        step: int,
        progress: float,
        ask: Callable[[], Decision],
        measured: Mapping[str, float],
    ) -> None:
        decision, source = Decision.hold(schedule=np.array([self._schedule])), "policy"
        if ranks.decides():
            try:
                decision = self._held(progress)
                decision = ask()
            except Exception as error:
                cause = error.cause if isinstance(error, Hold) else type(error).__name__
                source = f"hold:{cause}"
                scheduled = self._schedule_begun and self._backend.schedule() is not None
                self._notices.warn(
                    source,
                    "lhopt: no decision (%s); holding the present values%s: %s",
                    cause,
                    ", only the default schedule goes on" if scheduled else "",
                    error,
                )
        decision, source = ranks.agree(decision, source)
        self._schedule_begun |= source == "policy"
        self.hyperparameters.apply(decision)
        self._schedule = float(decision.schedule[0])
        self.history.append(
            Record(
                index=self.index,
                step=step,
                progress=progress,
                statistics=dict(measured),
                moves=decision.moves(),
                reasons=decision.reasons[0],
                values=self.hyperparameters.values(),
                source=source,
            )
        )
