"""The two lines that a training loop adds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np

from ..core.adapters import adapter_for
from ..core.averages import Mix
from ..core.errors import ConfigurationError, ResumeError
from ..core.sampling import MAX_ENTRIES
from . import ranks, settings
from .backends import Terms
from .history import Record
from .hyperparameters import RATE, Hyperparameters
from .notices import Notices, logger
from .schedulers import also_written, check_scheduler, unknown
from .steering import Steering

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

    from ..core.adapters import Slot
    from ..policy.artifact import Policy
    from .blocking import Client

STATE_VERSION = 1
#: Losses without a step in between that are a sign of steps which hooks do not see: the
#: micro-batches of one step are fewer.
MANY_LOSSES = 256
#: The Tuner that listens to an optimizer: two of them would each multiply what the other did.
_LISTENING: WeakKeyDictionary[Any, ReferenceType[Tuner]] = WeakKeyDictionary()


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

    The Tuner listens through the optimizer's step hooks, so gradient accumulation and AMP need
    nothing more. Every `interval` optimizer steps, `report` decides and applies. Where several
    processes train one model, each constructs a Tuner, and the first has to report: its `report`
    decides, and all apply that when they begin the next step. Once constructed, it never raises
    into the loop: whatever fails, the hyperparameters stay as they are, one warning per cause goes
    to the logger "lhopt", and training goes on. One Tuner steers an optimizer: where a second one
    is constructed, the first lets go, with a warning in the middle of its run.

    Args:
        optimizer: Any torch optimizer; what of it can be steered stands in `core/adapters.py`.
        total_steps: Optimizer steps that this run will take. Decisions and schedule are planned for
            them: the Tuner changes nothing afterwards, with a warning if steps go on.
        decisions: How many decisions to take; 24 to 40 is what policies are trained for.
        interval: Optimizer steps per decision, instead of `decisions`.
        policy: A bundled policy's name, a file, a `Policy`, or with `url` the name of one of the
            server's. The optimizer's own bundled one by default.
        controls: Steer only these, e.g. `["learning_rate"]`.
        frozen: Steer everything but these.
        scheduler: A learning-rate scheduler that keeps running, constructed before: the Tuner
            multiplies its values, and the policy's own default schedule is off.
        url: An lhopt server; `LHOPT_URL` if not given. Without either, the policy runs here.
        api_key: For the server; `LHOPT_API_KEY` if not given.
        timeout: Seconds that a call of `report` may wait for the server, all retries included.
        client: A `Client` to use instead of `url`.
        measure_every: Measure at most every so many-th step, and at most four per interval.
        max_entries: Entries of each tensor that are measured.
        epochs: Passes over the training data that `total_steps` make, if known: the policy then
            knows how often it has seen an example, which tells how much to decay.
        labels: Number of target values of the training data, not of classes, if known: examples, or
            tokens of a language model, or examples times entries where each entry is predicted.
            The optimizer's parameters by that tell how easily the net learns them by heart.
        validate: Returns the model's loss on held-out data, the same few hundred examples every
            time, as a float32 or a float. It evaluates the model whose parameters the optimizer
            has, in evaluation mode and without gradients, and leaves it in the mode it came in,
            also when it raises, since the job goes on then.
            Instead of calls of `report_validation`: called before each decision, with the averaged
            weights where there are some; and, if the policy goes by the loss's slope, which
            suggests whether a net decays too little, three times more, with the raw weights and
            with weights 2% smaller and larger, which takes the memory of one more copy. They are
            back to the bit afterwards, whatever happens. Not in distributed training.
        averages: Keep averages of the weights for `best_weights`: one more copy of those that take
            gradients with `SteerableAdamW`, which has one, two with other optimizers and, in
            float32, of half precision. Wants `validate`.
        name: What people call this run.

    Attributes:
        overhead_seconds: Time spent in hooks, `report` and construction so far, calls of `validate`
            included.

    Raises:
        ConfigurationError: A setting makes no sense.
        ControlError: A control that the optimizer lacks.
        SchedulerConflict: A scheduler is attached that was not declared. (ReduceLROnPlateau leaves
            no trace; the Tuner lets go of the rate, with a warning, when it first writes.)
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
        measure_every: int = 4,
        max_entries: int = MAX_ENTRIES,
        epochs: float | None = None,
        labels: float | None = None,
        validate: Callable[[], Tensor | float] | None = None,
        averages: bool = False,
        name: str | None = None,
    ) -> None:
        began = time.perf_counter()
        self.overhead_seconds = 0.0
        self._notices = Notices()
        timeout = settings.seconds("timeout", timeout)
        self._total, self._interval = settings.plan(total_steps, decisions, interval)
        every = settings.whole("measure_every", measure_every, why="steps between two measurements")
        entries = settings.whole("max_entries", max_entries, why="entries measured per tensor")
        adapter = adapter_for(optimizer)
        if scheduler is not None:
            check_scheduler(scheduler, optimizer)
            frozen = {*frozen, *also_written(scheduler)}
        if validate is not None:
            settings.check_validation(validate)
        settings.check_averages(averages, validate)
        hyperparameters = Hyperparameters(optimizer, adapter, scheduler)
        offered = settings.offered(hyperparameters, adapter.name, controls, frozen)
        share = self._interval / self._total
        terms = Terms(adapter.name, offered, share, scheduler is None, name)
        backend = settings.choose_backend(
            policy, terms, url=url, api_key=api_key, timeout=timeout, client=client
        )
        settings.check_conflict(optimizer, scheduler, backend.steered())
        if scheduler is not None and RATE in backend.steered():
            self._check_known(scheduler)

        from .interval import Interval  # imports torch

        passes = None if epochs is None else settings.positive("epochs", epochs)
        seen = None if passes is None else passes * share
        held = None if labels is None else settings.positive("labels", labels)
        self._told = {"epochs": passes, "labels": held}
        self._validation = None
        if validate is not None:
            from .validation import Validation

            self._validation = Validation(optimizer, validate)
        self._averages = None
        if averages:
            from .averages import Averages

            self._averages = Averages(optimizer, self._total)
        self._log = Interval(optimizer, adapter, self._interval, every, entries, seen, held)
        self._begun = 0  # steps done when the present interval began
        self._ended = False
        self._closed = False
        self._last_loss: float | None = None
        self._optimizer = optimizer
        self._stepping = False  # a step has begun and not ended; it may have raised
        self._nested = False  # a step inside it has begun
        self._reported_inside = False
        self._unheard = 0  # losses since the last step
        self._steering = Steering(
            hyperparameters, backend, self._notices, share=share, timeout=timeout
        )
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        try:
            self._steering.open()
        except BaseException:
            self._let_go()
            raise
        if RATE in adapter.slots and controls is None and RATE not in frozen:
            self._check_rate(hyperparameters, adapter.slots[RATE])
        self._take_over(optimizer)
        self.overhead_seconds += time.perf_counter() - began

    def _take_over(self, optimizer: Optimizer) -> None:
        """Make a Tuner let go that still listens: a cell that is run again, a second phase."""
        held = _LISTENING.get(optimizer)
        earlier = None if held is None else held()
        if earlier is not None and not earlier._closed:
            if earlier.steps and not earlier._ended:
                self._notices.warn(
                    "another",
                    "lhopt: another Tuner steers this optimizer, at step %d of %d. It lets go, and "
                    "this one begins a schedule of its own from the values in force. close() a "
                    "Tuner whose run is over.",
                    earlier.steps,
                    earlier._total,
                )
            earlier._stop(None)
        _LISTENING[optimizer] = ref(self)

    def _check_known(self, scheduler: Any) -> None:
        strangers = unknown(scheduler)
        if strangers:
            self._notices.warn(
                "scheduler",
                "lhopt: %s keeps its rates where the Tuner does not look (not in base_lrs, as "
                "torch's schedulers do), so what it writes may undo the Tuner's factor. Take one "
                "of torch's, such as LambdaLR, or leave the rate to it: frozen={%r}.",
                ", ".join(strangers),
                RATE,
            )

    def _check_rate(self, hyperparameters: Hyperparameters, slot: Slot) -> None:
        if RATE in hyperparameters.names:
            return
        raw = [slot.raw(group) for group in hyperparameters.groups]
        if any(value is not None and float(value) == 0.0 for value in raw):
            self._notices.warn(
                "rate",
                "lhopt: the learning rate is 0, and decisions are factors on it, so it is not "
                "steered. Start from another%s.",
                ", or pass the scheduler that raises it: scheduler=..."
                if hyperparameters.scheduler is None
                else "",
            )

    @property
    def values(self) -> dict[str, float]:
        """Hyperparameters that the first parameter group uses now, by control."""
        return self._steering.hyperparameters.values()

    @property
    def history(self) -> list[Record]:
        """One record per decision, the opening one first."""
        return self._steering.history

    @property
    def interval(self) -> int:
        """Optimizer steps per decision."""
        return self._interval

    @property
    def steps(self) -> int:
        """Optimizer steps done; what fused AMP skipped leaves the count at the next decision."""
        return self._begun + self._log.offset

    def report(self, loss: Tensor | float) -> None:
        """Take the loss of a step or of a micro-batch; decide when an interval is complete.

        A tensor stays on its device until a decision needs it. Inside a closure, the decision is
        taken when the step is done. Never raises.
        """
        began = time.perf_counter()
        if not self._ended:
            self._notices.safely("loss", partial(self._log.losses.add, loss))
            self._unheard += 1
            if self._unheard == MANY_LOSSES:
                self._notices.safely("notice", self._hear_nothing)
            if self._stepping and _running(self._optimizer):
                self._reported_inside = True
            else:
                self._notices.safely("decision", self._decide_if_due)
        self.overhead_seconds += time.perf_counter() - began

    def report_validation(self, value: Tensor | float) -> None:
        """Take a held-out loss; the latest of an interval counts. Never raises.

        With `SteerableAdamW`, measure it under `optimizer.averaged_weights()`, and save the model
        there too: the bench's losses are those of the averaged weights, and so are the validation
        losses that policies were trained on.
        """
        began = time.perf_counter()

        def take() -> None:
            self._log.valid_loss = float(value.detach() if hasattr(value, "detach") else value)

        self._notices.safely("validation", take)
        self.overhead_seconds += time.perf_counter() - began

    @contextmanager
    def best_weights(
        self,
        validate: Callable[[], Tensor | float] | None = None,
        *,
        model: Module | None = None,
    ) -> Iterator[Mix]:
        """Put the best of the run's weights into the model, and the last ones back afterwards.

            with tuner.best_weights():
                evaluate(model)
                torch.save(model.state_dict(), "model.pt")

        The last weights, a short and a long average of them, and mixes of these are asked for their
        held-out loss, eight calls of `validate`, and the lowest is kept; where `validate` fails,
        with a warning, the optimizer's own average, or the last weights if it has none. At the end
        of a run, closed or not, or between two of its steps. Running statistics of a BatchNorm are
        buffers, and stay those of the last weights. Meanwhile a copy of the weights is held, and no
        step may be taken. A checkpoint to resume from is saved outside.

        Args:
            validate: To choose by another loss than the Tuner's own `validate`, such as that on all
                the held-out data: more of them tell better, and this is asked only here. Of the
                model as it is: without `averaged_weights()`.
            model: A model whose buffers are put back afterwards, too: those of a BatchNorm, if
                `validate` or the body estimates them anew for the weights that are in it then.

        Yields:
            The mix that was chosen.

        Raises:
            ConfigurationError: The Tuner was made without averages; they, or averaged weights, are
                in the model already; or others have joined the training.
        """
        if self._averages is None or self._validation is None:
            raise ConfigurationError(
                "best_weights() of a Tuner that keeps no averages; construct it with validate=... "
                "and averages=True."
            )
        if validate is not None:
            settings.check_validation(validate)
        with self._averages.best(partial(self._held_out_loss, validate), _said, model) as mix:
            yield mix

    def close(self) -> None:
        """Stop listening, and tell the server how it went. Never raises; twice is once."""
        if self._unheard and not self.steps and not self._ended:
            self._notices.safely("notice", self._hear_nothing)
        outcome: dict[str, Any] = {"steps": self.steps, "decisions": self._steering.index}
        if self._last_loss is not None and np.isfinite(self._last_loss):
            outcome["train_loss"] = self._last_loss
        self._stop(outcome)

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:  # the job died, was stopped or pre-empted: its session stays open for a resume
            self._stop(None)

    def _stop(self, outcome: dict[str, Any] | None) -> None:
        if not self._closed:
            self._closed = self._ended = True
            self._let_go()
            self._notices.safely("close", partial(self._steering.close, outcome))

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, for the job's checkpoint.

        Plain values and tensors: `torch.load(..., weights_only=True)` reads it.
        """
        if self._averages is not None and self._averages.swapped:
            self._notices.warn(
                "checkpoint",
                "lhopt: state_dict() inside best_weights(): the model holds the best weights now; "
                "save a checkpoint to resume from outside",
            )
        return {
            "version": STATE_VERSION,
            "total_steps": self._total,
            "interval": self._interval,
            "begun": self._begun,
            "ended": self._ended and not self._closed,
            "told": dict(self._told),
            "log": self._log.state_dict(),
            "steering": self._steering.state_dict(),
            "averages": None if self._averages is None else self._averages.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the hyperparameters are written again, and so verified.

        A checkpoint without averages is taken too: they begin here then, with a warning. So is one
        with averages by a Tuner that keeps none: they are left, with a warning.

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
        saved_averages = state.get("averages")
        if self._averages is not None and saved_averages is not None:
            self._averages.check(saved_averages)  # before anything is changed
        self._steering.load_state_dict(state["steering"])
        self._log.load_state_dict(state["log"])
        self._begun, self._ended = int(state["begun"]), bool(state["ended"])
        told = state.get("told", self._told)  # a checkpoint of before has none
        if told != self._told:
            self._notices.warn(
                "told",
                "lhopt: the checkpoint was saved by a Tuner that was told %s, this one is told %s: "
                "decisions are not those of an uninterrupted run",
                told,
                self._told,
            )
        if self._averages is None:
            if saved_averages is not None:
                self._notices.warn(
                    "averages",
                    "lhopt: the checkpoint holds averages of the weights, which are left; to go on "
                    "with them, construct the Tuner with averages=True",
                )
        elif saved_averages is not None:
            self._averages.load_state_dict(saved_averages)
        else:
            self._notices.warn(
                "averages",
                "lhopt: the checkpoint holds no averages of the weights; they begin at step %d",
                self.steps,
            )

    @property
    def _boundary(self) -> int:
        """Steps done when the present interval is complete."""
        return (self._begun // self._interval + 1) * self._interval

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._stepping and _running(optimizer) > 1:
            self._nested = True
            return
        began = time.perf_counter()
        self._stepping, self._nested, self._reported_inside = True, False, False
        if self._unheard:
            self._unheard = 0
            self._notices.safely("values", self._steering.give_again)
        if self.steps >= self._total:
            self._notices.warn(
                "total_steps",
                "lhopt: the run goes on after total_steps=%d: the Tuner decides and changes "
                "nothing any more. Construct it with all the steps that the run takes, or close() "
                "it.",
                self._total,
            )
        if not self._ended:
            # torch passes the optimizer itself as the first argument
            closure = kwargs.get("closure") is not None or any(a is not None for a in args[1:])
            self._notices.safely("step", partial(self._steering.watch, [RATE], tensors=False))
            self._notices.safely("decision", self._meet_if_due)
            measuring = ranks.decides() and self._boundary < self._total
            sample = partial(self._log.before_step, closure=closure, measuring=measuring)
            self._notices.safely("measurement", sample)
        self.overhead_seconds += time.perf_counter() - began

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._nested and _running(optimizer) > 1:
            return
        self._stepping = False
        began = time.perf_counter()
        if self._averages is not None:
            self._notices.safely("averages", self._averages.after_step)
        if not self._ended:
            self._notices.safely("measurement", self._log.after_step)
            # a loop that stopped calling `report`: decide without losses, which says so and holds
            silent = self._log.offset >= self._boundary - self._begun + self._interval
            if self._reported_inside or silent:
                self._notices.safely("decision", self._decide_if_due)
        self.overhead_seconds += time.perf_counter() - began

    def _held_out_loss(self, validate: Callable[[], Tensor | float] | None) -> float:
        assert self._validation is not None
        began = time.perf_counter()
        try:
            return self._validation.plain(validate)
        finally:
            self.overhead_seconds += time.perf_counter() - began

    def _validated(self) -> None:
        assert self._validation is not None
        loss = self._log.valid_loss = self._validation.loss()
        if not np.isfinite(loss):
            self._notices.warn(
                "validation",
                "lhopt: validate gave %s, which no policy reads; training goes on",
                loss,
            )

    def _sloped(self) -> None:
        assert self._validation is not None
        self._log.valid_slope, self._log.valid_curvature = self._validation.slope_and_curvature()

    def _hear_nothing(self) -> None:
        back = self.steps == 0 and self._steering.take_back()
        if ranks.decides():
            self._notices.warn(
                "unheard",
                "lhopt: %d losses were reported since the last call of optimizer.step() (steps so "
                "far: %d). The Tuner listens to it, so where others do the stepping, such as "
                "second_step() or a captured CUDA graph, it decides nothing%s. Call step(), or "
                "pass the optimizer inside whose step() is called.",
                self._unheard,
                self.steps,
                ", and until a step comes the values of before it are back" if back else "",
            )

    def _meet_if_due(self) -> None:
        """Carry out what the first of several processes has decided.

        Here all of them are in step, whichever of them report. Each counts steps, so all know when
        a decision is due, and ask before every step from then on until there is one.
        """
        pending = self._steering.pending is not None
        if not pending and (ranks.alone() or not self._due() or self.steps >= self._total):
            return
        decided = self._steering.meet()
        if decided is not None and decided != self._begun:
            self._begun = decided
            self._log.restart()

    def _due(self) -> bool:
        due = self._boundary - self._begun
        return self._log.offset >= due and self._log.settle() >= due

    def _decide_if_due(self) -> None:
        if not self._due():
            return
        steps = self.steps
        if steps >= self._total:
            self._ended = True
            losses = self._log.losses.resolve()
            self._last_loss = float(np.mean(losses)) if losses else None
            return
        if not ranks.decides():
            return  # the first process does; see `_meet_if_due`
        if self._validation is not None:
            self._notices.safely("validation", self._validated)
            if self._steering.needs_slope():
                self._notices.safely("the validation's slope", self._sloped)
        try:
            self._steering.decide(steps, steps / self._total, self._log.finish)
        finally:
            self._begun = steps
            self._log.restart()


def _said(message: str) -> None:
    logger.warning("lhopt: best_weights: %s", message)


def _running(optimizer: Any) -> int:
    """How many calls of `optimizer.step` are under way, one inside the other.

    torch puts hooks around the `step` of each class, so they run twice in a step that calls
    `super().step()`. Counting on the stack is right after a step that raised, too.
    """
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        hooked = frame.f_globals.get("__name__") == "torch.optim.optimizer"
        count += hooked and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count
