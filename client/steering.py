"""From an interval's statistics to written hyperparameters: ask, agree, apply, record, or hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Chosen:
    """A decision that was taken, as a record of it needs it."""

    index: int
    step: int
    progress: float
    statistics: Mapping[str, float]
    decision: Decision
    source: str

    def to_plain(self) -> dict[str, Any]:
        """For other processes and checkpoints."""
        return {
            "index": self.index,
            "step": self.step,
            "progress": self.progress,
            "statistics": dict(self.statistics),
            "delta": self.decision.delta.tolist(),
            "action": self.decision.action_delta.tolist(),
            "schedule": self.decision.schedule.tolist(),
            "reasons": list(self.decision.reasons[0]),
            "source": self.source,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Chosen:
        """What `to_plain` gave."""
        decision = Decision(
            np.asarray(plain["delta"]),
            np.asarray(plain["action"]),
            np.asarray(plain["schedule"]),
            (tuple(plain["reasons"]),),
        )
        return cls(
            int(plain["index"]),
            int(plain["step"]),
            float(plain["progress"]),
            dict(plain["statistics"]),
            decision,
            str(plain["source"]),
        )


class Steering:
    """One run's hyperparameters and who decides about them.

    Attributes:
        hyperparameters: What is steered.
        index: Decisions carried out; the opening one is number 0.
        history: One record per decision.
        pending: A decision that waits for `meet`, in the first of several processes.
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
        self.pending: Chosen | None = None
        self._backend = backend
        self._notices = notices
        self._share = share
        self._timeout = timeout
        self._schedule = 0.0
        #: Whether a schedule was ever applied: a run that was never answered keeps its own rate.
        self._schedule_begun = False
        #: Values of the opening decision, while it is taken back.
        self._taken_back: dict[str, Any] | None = None

    def open(self) -> None:
        """Begin the run and carry out its opening decision, in every process."""
        if ranks.decides():
            deadline = Deadline.after(self._timeout)
            self._choose(0, 0, 0.0, {}, lambda: self._backend.open(deadline).decision)
        self.meet()

    def decide(self, step: int, progress: float, measure: Callable[[], Statistics]) -> None:
        """Take the next decision; hold if anything fails. Carried out now, or if others wait.

        Args:
            step: Optimizer steps done.
            progress: Fraction of the run done.
            measure: Finishes the interval's statistics.
        """
        measured: dict[str, float] = {}
        index = self.index + 1

        def ask() -> Decision:
            self.watch(None, tensors=True)
            statistics = measure()
            measured.update(statistics.to_mapping())
            situation = Situation(
                progress=np.array([progress]),
                share=np.array([self._share]),
                relative=self.hyperparameters.relative(self._backend.steered()),
                schedule=np.array([self._schedule]),
            )
            deadline = Deadline.after(self._timeout)
            return self._backend.decide(index, statistics, situation, deadline)

        self._choose(index, step, progress, measured, ask)
        if ranks.alone():
            self.meet()

    def meet(self) -> int | None:
        """Carry out what the first process has decided, in every process; all must call it.

        Returns:
            The step after which it has; None if it has not yet.
        """
        chosen = self.pending
        if not ranks.alone():
            plain = ranks.agree(None if chosen is None else chosen.to_plain())
            chosen = None if plain is None else Chosen.from_plain(plain)
        self.pending = None
        if chosen is None:
            return None
        self.index = chosen.index
        try:
            if not ranks.decides():
                self.watch(None, tensors=True)  # the first has, when it decided
            self._carry_out(chosen)
        except Exception as error:
            if ranks.alone() or not chosen.index:
                raise
            # the others count the decision as taken: who did not would wait for them for ever
            self._notices.warn(
                f"carrying out:{type(error).__name__}",
                "lhopt: a decision could not be carried out and was left out; training goes on: "
                "%s: %s",
                type(error).__name__,
                error,
            )
        return chosen.step

    def take_back(self) -> bool:
        """Write the values of before the opening decision, until `give_again`; whether it did.

        Not where several processes train: each would at a time of its own. A declared scheduler's
        rate has no opening factor.
        """
        held = self.hyperparameters
        if self.index or held.scheduler is not None or not ranks.alone():
            return False
        self.watch(None, tensors=True)
        self._taken_back = held.state_dict()
        start = {**self._taken_back, "value": self._taken_back["start"]}
        held.load_state_dict(start, self._backend.steered())
        return True

    def give_again(self) -> None:
        """Write the opening decision's values again, if they were taken back."""
        if self._taken_back is None:
            return
        self.watch(None, tensors=True)
        again = {**self._taken_back, "lost": sorted(self.hyperparameters.lost)}
        self._taken_back = None
        self.hyperparameters.load_state_dict(again, self._backend.steered())

    def needs_slope(self) -> bool:
        """Whether decisions depend on the slope of a held-out loss."""
        return self._backend.needs_slope()

    def watch(self, names: Sequence[str] | None, *, tensors: bool) -> None:
        """Let go of controls that somebody else writes; of what is steered, say so."""
        for name in self.hyperparameters.foreign(names, tensors=tensors):
            self.hyperparameters.lost.add(name)
            if name not in self._backend.steered():
                continue
            said = self._let_go_of_rate() if name == RATE else ""
            self._notices.warn(
                f"foreign:{name}",
                "lhopt: %s was changed by somebody else; the Tuner leaves it alone from now on%s. "
                "If a scheduler does it, construct that first and pass scheduler=... to Tuner, or "
                "frozen={%r}.",
                name,
                said,
                name,
            )

    def _let_go_of_rate(self) -> str:
        factor = self.hyperparameters.factor(RATE)
        # before the first interval's end our factor is the warm-up's, and no base for a scheduler;
        # later it is what the policy has found, and without it the rate would jump
        back = self.index == 0 and self.hyperparameters.give_back()
        return f" (its factor on it was {factor:.3g}{', and is taken out' if back else ''})"

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
            "hyperparameters": self._taken_back or self.hyperparameters.state_dict(),
            "backend": self._backend.state_dict(),
            "pending": None if self.pending is None else self.pending.to_plain(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, and write the saved values."""
        if ranks.decides():
            self._backend.resume(dict(state["backend"]), Deadline.after(self._timeout))
        self.hyperparameters.load_state_dict(state["hyperparameters"], self._backend.steered())
        self.index, self._schedule = int(state["index"]), float(state["schedule"])
        self._schedule_begun = bool(state.get("schedule_begun", True))
        pending = state.get("pending")  # missing in a checkpoint of before it was kept
        self.pending = None if pending is None else Chosen.from_plain(pending)
        self._taken_back = None
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

    def _choose(
        self,
        index: int,
        step: int,
        progress: float,
        measured: Mapping[str, float],
        ask: Callable[[], Decision],
    ) -> None:
        decision, source = Decision.hold(schedule=np.array([self._schedule])), "policy"
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
        self.pending = Chosen(index, step, progress, measured, decision, source)

    def _carry_out(self, chosen: Chosen) -> None:
        decision = chosen.decision
        self._schedule_begun |= chosen.source == "policy"
        self.hyperparameters.apply(decision)
        self._schedule = float(decision.schedule[0])
        self.history.append(
            Record(
                index=chosen.index,
                step=chosen.step,
                progress=chosen.progress,
                statistics=dict(chosen.statistics),
                moves=decision.moves(),
                reasons=decision.reasons[0],
                values=self.hyperparameters.values(),
                source=chosen.source,
            )
        )
