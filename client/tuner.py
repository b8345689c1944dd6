"""The two lines that a training loop adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.actions import Decision
from ..core.errors import ResumeError
from ..core.features import Situation
from ..core.sampling import MAX_ENTRIES, MEASURE_EVERY
from . import ranks, settings
from .adapters import adapter_for
from .backends import Deadline, Hold, Terms
from .history import Record
from .hyperparameters import RATE, Hyperparameters
from .notices import Notices
from .schedulers import check_scheduler, cycles_momentum

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from ..policy.artifact import Policy
    from .blocking import Client

STATE_VERSION = 1


class Tuner:
    """Steers an optimizer's hyperparameters while it trains.

        tuner = Tuner(optimizer, total_steps=10_000)
        for batch in loader:
            optimizer.zero_grad()
            loss = compute(batch)
            loss.backward()
            optimizer.step()
            tuner.report(loss)
        tuner.close()

    The Tuner listens through the optimizer's step hooks, so gradient accumulation, AMP and DDP need
    nothing more. Every `interval` optimizer steps, `report` decides and applies. Once constructed,
    it never raises into the loop: whatever fails, the hyperparameters stay as they are, one warning
    per cause goes to the logger "lhopt", and training goes on.

    Args:
        optimizer: Any torch optimizer; what of it can be steered stands in `client/adapters.py`.
        total_steps: Optimizer steps that this run will take.
        decisions: How many decisions to take; 24 to 40 is what policies are trained for.
        interval: Optimizer steps per decision, instead of `decisions`.
        policy: A bundled policy's name, a file, a `Policy`, or with `url` the name of one of the
            server's. The optimizer's own bundled one by default.
        controls: Steer only these, e.g. `["learning_rate"]`.
        frozen: Steer everything but these.
        scheduler: A learning-rate scheduler that keeps running: the Tuner multiplies its values,
            and the policy's own default schedule is off.
        url: An lhopt server; `LHOPT_URL` if not given. Without either, the policy runs here.
        api_key: For the server; `LHOPT_API_KEY` if not given.
        timeout: Seconds that a call of `report` may wait for the server, all retries included.
        client: A `Client` to use instead of `url`.
        measure_every: Measure at most every so many-th step, and at most four per interval.
        max_entries: Entries of each tensor that are measured.
        name: What people call this run.

    Attributes:
        history: One `Record` per decision.
        overhead_seconds: Time spent in hooks, `report` and construction so far.

    Raises:
        ConfigurationError: A setting makes no sense.
        ControlError: A control that the optimizer lacks.
        SchedulerConflict: A scheduler is attached that was not declared.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        decisions: int = 32,
        interval: int | None = None,
        policy: str | Path | Policy | None = None,
        controls: Sequence[str] | None = None,
        frozen: Collection[str] = (),
        scheduler: Any = None,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float = 2.0,
        client: Client | None = None,
        measure_every: int = MEASURE_EVERY,
        max_entries: int = MAX_ENTRIES,
        name: str | None = None,
    ) -> None:
        began = time.perf_counter()
        self.history: list[Record] = []
        self.overhead_seconds = 0.0
        self._notices = Notices()
        self._timeout = settings.seconds("timeout", timeout)
        self._total, self._interval = settings.plan(total_steps, decisions, interval)
        every = settings.whole("measure_every", measure_every, why="steps between two measurements")
        entries = settings.whole("max_entries", max_entries, why="entries measured per tensor")
        adapter = adapter_for(optimizer)
        if scheduler is not None:
            check_scheduler(scheduler, optimizer)
            if cycles_momentum(scheduler):
                frozen = {*frozen, "one_minus_beta1"}
        self._hyperparameters = Hyperparameters(optimizer, adapter, scheduler)
        offered = settings.offered(self._hyperparameters, adapter.name, controls, frozen)
        self._share = self._interval / self._total
        terms = Terms(adapter.name, offered, self._share, scheduler is None, name)
        self._backend = settings.choose_backend(
            policy, terms, url=url, api_key=api_key, timeout=self._timeout, client=client
        )
        settings.check_conflict(optimizer, scheduler, self._backend.steered())

        from .interval import Interval  # imports torch

        self._log = Interval(optimizer, adapter, self._interval, every, entries)
        self._begun = 0  # steps done when the present interval began
        self._index = 0
        self._schedule = 0.0
        self._ended = False
        self._closed = False
        self._last_loss: float | None = None
        self._carry_out(0.0, self._opening, {})
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self.overhead_seconds += time.perf_counter() - began

    @property
    def values(self) -> dict[str, float]:
        """Hyperparameters that the first parameter group uses now, by control."""
        return self._hyperparameters.values()

    @property
    def interval(self) -> int:
        """Optimizer steps per decision."""
        return self._interval

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far; those that AMP skipped do not count."""
        return self._begun + self._log.offset

    def report(self, loss: Tensor | float) -> None:
        """Take the loss of a step or of a micro-batch; decide when an interval is complete.

        A tensor stays on its device until a decision needs it. Never raises.
        """
        began = time.perf_counter()
        if not self._ended:
            self._safely("loss", partial(self._log.losses.add, loss))
            self._safely("decision", self._decide_if_due)
        self.overhead_seconds += time.perf_counter() - began

    def report_validation(self, value: Tensor | float) -> None:
        """Take a held-out loss; the latest of an interval counts. Never raises."""
        began = time.perf_counter()

        def take() -> None:
            self._log.valid_loss = float(value)

        self._safely("validation", take)
        self.overhead_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Stop listening, and tell the server how it went. Never raises; twice is once."""
        if self._closed:
            return
        self._closed = self._ended = True
        for handle in self._handles:
            handle.remove()
        if ranks.decides():
            outcome: dict[str, Any] = {"steps": self.steps, "decisions": self._index}
            if self._last_loss is not None and np.isfinite(self._last_loss):
                outcome |= {"train_loss": self._last_loss}
            self._safely(
                "close",
                lambda: self._backend.close(outcome, Deadline.after(self._timeout)),
            )

    def __enter__(self) -> Tuner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, for the job's checkpoint.

        Plain values and tensors: `torch.load(..., weights_only=True)` reads it.
        """
        return {
            "version": STATE_VERSION,
            "total_steps": self._total,
            "interval": self._interval,
            "index": self._index,
            "begun": self._begun,
            "schedule": self._schedule,
            "ended": self._ended and not self._closed,
            "log": self._log.state_dict(),
            "hyperparameters": self._hyperparameters.state_dict(),
            "backend": self._backend.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the hyperparameters are written again, and so verified.

        Raises:
            ResumeError: It was saved by a Tuner of other settings.
        """
        ours = (STATE_VERSION, self._total, self._interval)
        saved = (state.get("version"), state.get("total_steps"), state.get("interval"))
        if saved != ours:
            raise ResumeError(
                f"The checkpoint has (version, total_steps, interval) = {saved}; this Tuner has "
                f"{ours}. Construct it with the same settings."
            )
        if ranks.decides():
            self._backend.resume(dict(state["backend"]), Deadline.after(self._timeout))
        self._hyperparameters.load_state_dict(state["hyperparameters"])
        self._log.load_state_dict(state["log"])
        self._index, self._begun = int(state["index"]), int(state["begun"])
        self._schedule = float(state["schedule"])
        self._ended = bool(state["ended"])
        self.history.clear()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        began = time.perf_counter()
        if not self._ended:
            closure = bool(kwargs.get("closure")) or (len(args) > 0 and args[0] is not None)
            self._safely("step", partial(self._watch, [RATE], tensors=False))
            self._safely(
                "measurement",
                partial(self._log.before_step, closure=closure, measuring=ranks.decides()),
            )
        self.overhead_seconds += time.perf_counter() - began

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        began = time.perf_counter()
        if not self._ended:
            self._safely("measurement", self._log.after_step)
        self.overhead_seconds += time.perf_counter() - began

    def _safely(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._notices.warn(
                f"{what}:{type(error).__name__}",
                "lhopt: %s failed and was left out; training goes on: %s: %s",
                what,
                type(error).__name__,
                error,
            )

    def _watch(self, names: Sequence[str] | None, *, tensors: bool) -> None:
        """Let go of controls that somebody else writes."""
        for name in self._hyperparameters.foreign(names, tensors=tensors):
            self._hyperparameters.lost.add(name)
            self._notices.warn(
                f"foreign:{name}",
                "lhopt: %s was changed by somebody else; the Tuner leaves it alone from now on. "
                "If a scheduler does it, pass scheduler=... to Tuner.",
                name,
            )

    def _decide_if_due(self) -> None:
        due = (self._begun // self._interval + 1) * self._interval - self._begun
        if self._log.offset < due or self._log.settle() < due:
            return
        steps = self.steps
        if steps >= self._total:
            self._ended = True
            losses = self._log.losses.resolve()
            self._last_loss = float(np.mean(losses)) if losses else None
            return
        self._index += 1
        statistics: dict[str, float] = {}
        try:
            self._watch(None, tensors=True)
            ask = partial(self._ask, steps / self._total, statistics)
            self._carry_out(steps / self._total, ask, statistics)
        finally:
            self._begun = steps
            self._log.restart()

    def _opening(self) -> Decision:
        return self._backend.open(Deadline.after(self._timeout)).decision

    def _ask(self, progress: float, measured: dict[str, float]) -> Decision:
        statistics = self._log.finish()
        measured |= statistics.to_mapping()
        situation = Situation(
            progress=np.array([progress]),
            share=np.array([self._share]),
            relative=self._hyperparameters.relative(self._backend.steered()),
            schedule=np.array([self._schedule]),
        )
        deadline = Deadline.after(self._timeout)
        return self._backend.decide(self._index, statistics, situation, deadline)

    def _carry_out(
        self, progress: float, ask: Callable[[], Decision], statistics: dict[str, float]
    ) -> None:
        """Ask, agree with the other processes, apply, record; on any failure hold."""
        decision, source = Decision.hold(schedule=np.array([self._schedule])), "policy"
        if ranks.decides():
            try:
                decision = ask()
            except Exception as error:
                cause = error.cause if isinstance(error, Hold) else type(error).__name__
                source = f"hold:{cause}"
                self._notices.warn(
                    source, "lhopt: no decision (%s); holding the present values: %s", cause, error
                )
        decision, source = ranks.agree(decision, source)
        self._hyperparameters.apply(decision)
        self._schedule = float(decision.schedule[0])
        self.history.append(
            Record(
                index=self._index,
                step=self.steps,
                progress=progress,
                statistics=dict(statistics),
                moves=decision.moves(),
                reasons=decision.reasons[0],
                values=self.values,
                source=source,
            )
        )
