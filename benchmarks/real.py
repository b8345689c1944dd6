"""A task trained the way a user trains: torch's own loop, a torch optimizer, the Tuner.

Same initial weights and data order as the batched engine gives a seed, so runs pair up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..client import Tuner
from ..client.history import Record
from ..core.adapters import adapter_for
from ..core.errors import UnknownNameError
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..inner_tasks.base import InnerTask, Split
from ..inner_tasks.engine import BatchOrder, initial_params
from ..optimizers.steerable_adamw import SteerableAdamW
from .records import evaluation_steps

#: Decisions of a run: the Tuner's default.
DECISIONS = 32
#: Makes a Tuner for an optimizer, and for what may be its `validate`.
MakeTuner = Callable[[Optimizer, Callable[[], float]], Tuner]
#: Examples of `inner_valid` in a validation loss that a job reports; policies train with as many.
VALIDATED = EnvConfig.valid_examples
_CHUNK = 64

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "torch.optim.AdamW": torch.optim.AdamW,
    "lhopt.SteerableAdamW": SteerableAdamW,
}

Weights = dict[str, nn.Parameter]


@dataclass(frozen=True)
class Recipe:
    """An optimizer as a run is given it.

    Attributes:
        make: From the task, its named weights and the run's length to the optimizer.
        factors: From the run's length to `(steps,)` factors of every group's rate; None leaves the
            rates alone.
        deployed: A context in which the weights are those that are meant to be used.
        takes_loss: Whether `step` wants the loss.
        filters_as_matrices: Whether the optimizer sees a convolution's filters as one matrix.
    """

    make: Callable[[InnerTask, Weights, int], Optimizer]
    factors: Callable[[int], FloatArray] | None = None
    deployed: Callable[[Any], AbstractContextManager[object]] = nullcontext
    takes_loss: bool = False
    filters_as_matrices: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        loss: The loss that the task is scored by; infinite if the run diverged.
        test_loss: On `test`, at the same step.
        curve: `(evaluations,)` `outer_valid` losses along the run; infinite once it diverged.
        diverged: Whether a loss was not finite.
        cpu_seconds: CPU time of the training loop, the Tuner's included, evaluations not.
        steps: Steps that the CPU time is of.
        history: The Tuner's records.
    """

    loss: float
    test_loss: float
    curve: FloatArray
    diverged: bool
    cpu_seconds: float
    steps: int
    history: tuple[Record, ...]

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per step."""
        return 1e3 * self.cpu_seconds / self.steps


def recipe(name: str, rate: float | None = None) -> Recipe:
    """An optimizer at its own defaults, but for the learning rate, which stays where it is.

    Raises:
        UnknownNameError: No arm trains with it.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    given: dict[str, Any] = {} if rate is None else {"lr": rate}
    averaged = SteerableAdamW.averaged_weights if OPTIMIZERS[name] is SteerableAdamW else None
    return Recipe(
        make=lambda _task, weights, _steps: OPTIMIZERS[name](weights.values(), **given),
        deployed=averaged or nullcontext,
    )


def default_values(name: str) -> dict[str, float]:
    """The values an optimizer starts with when its user says nothing, by control."""
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    make: Any = OPTIMIZERS[name]
    optimizer: Optimizer = make([nn.Parameter(torch.zeros(1))])
    read = {
        control: slot.read(optimizer.param_groups[0])
        for control, slot in adapter_for(optimizer).slots.items()
    }
    return {control: value for control, value in read.items() if value is not None}


def scored(task: InnerTask, curve: FloatArray) -> int:
    """Which evaluation of a curve the task is scored by."""
    return int(np.argmin(curve)) if task.selection == "best" else len(curve) - 1


def train(
    task: InnerTask,
    steps: int,
    seed: int,
    with_: Recipe,
    *,
    tuner: MakeTuner | None = None,
    averages: bool = False,
    marks: Sequence[int] | None = None,
    until: int | None = None,
    halfway: Callable[[], None] | None = None,
) -> Outcome:
    """Train one run.

    Args:
        task: What is trained.
        steps: Optimizer steps.
        seed: Of weights and data order.
        with_: The optimizer and its schedule.
        tuner: Makes the Tuner that steers, of the optimizer and of what may be its `validate`: a
            loss on `inner_valid`, whose time is the run's. None trains without one.
        averages: Whether the weights that are used are the Tuner's `best_weights`, by the loss on
            all of `inner_valid`. Choosing them after the last step is the run's time, too, and
            where a task is scored by its best evaluation, choosing them for each.
        marks: Steps after which to evaluate, ascending, the last one `steps`; by default those of
            the bench. Empty for a run that is timed alone: its losses are nan.
        until: Stop after so many steps of the same plan.
        halfway: Called once half of the steps are done; its time is not the run's.
    """
    marks = evaluation_steps(steps) if marks is None else marks
    total = until or steps
    run = _Run(task, steps, seed, with_)
    rows = torch.from_numpy(BatchOrder(seed, len(run.arrays[0]), task.batch_size).take(total))
    factors = None if with_.factors is None else with_.factors(steps)
    curve, tests = np.full(len(marks), math.inf), np.full(len(marks), math.inf)
    done, finite = 0, True
    began = time.process_time()
    steering = tuner(run.optimizer, run.validate) if tuner else None
    seconds = time.process_time() - began
    for stop in sorted({*marks, steps // 2, total} - {0}):
        began = time.process_time()
        while finite and done < min(stop, total):
            if factors is not None:
                run.set_rate(float(factors[done]))
            loss = run.step(rows[done])
            done += 1
            finite = math.isfinite(loss.item())
            if steering and finite:
                steering.report(loss)
        if steering and (done == total or not finite):
            steering.close()
        seconds += time.process_time() - began
        if not finite:
            break
        here = [i for i, mark in enumerate(marks) if mark == stop]
        if here:
            best = steering.best_weights if steering and averages else None
            began = time.process_time()
            with best(run.held_out) if best else run.deployed():
                if best and (task.selection == "best" or stop == total):
                    seconds += time.process_time() - began
                curve[here] = run.evaluate("outer_valid")
                if task.selection == "best" or stop == marks[-1]:
                    tests[here] = run.evaluate("test")
        if halfway and stop == steps // 2:
            halfway()
    history = tuple(steering.history) if steering else ()
    if not len(curve):
        return Outcome(math.nan, math.nan, curve, not finite, seconds, done, history)
    diverged = not math.isfinite(curve[-1])
    at = scored(task, curve)
    loss_valid, loss_test = (math.inf, math.inf) if diverged else (curve[at], tests[at])
    return Outcome(float(loss_valid), float(loss_test), curve, diverged, seconds, done, history)


class _Run:
    """Weights, data and optimizer of one run."""

    def __init__(self, task: InnerTask, steps: int, seed: int, with_: Recipe) -> None:
        self.task, self.with_ = task, with_
        initial = initial_params(task, seed)
        self.shapes = {name: p.shape for name, p in initial.items()}
        self.folded = {n for n, p in initial.items() if with_.filters_as_matrices and p.ndim > 2}
        self.weights: Weights = {
            name: nn.Parameter(p.flatten(1) if name in self.folded else p)
            for name, p in initial.items()
        }
        self.optimizer = with_.make(task, self.weights, steps)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.arrays = task.arrays("train")

    def params(self) -> Mapping[str, Tensor]:
        """The weights in the task's own shapes."""
        if not self.folded:
            return self.weights
        return {
            name: p.view(self.shapes[name]) if name in self.folded else p
            for name, p in self.weights.items()
        }

    def set_rate(self, factor: float) -> None:
        """Every group's rate, as a multiple of its first."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def step(self, index: Tensor) -> Tensor:
        """One step on these rows of the training data; the loss before it."""
        batch = tuple(array.index_select(0, index) for array in self.arrays)
        self.optimizer.zero_grad()
        loss = self.task.loss(self.params(), batch)
        if math.isfinite(loss.item()):
            loss.backward()  # type: ignore[no-untyped-call]
            if self.with_.takes_loss:
                step: Any = self.optimizer.step  # MomoAdam's takes more than torch's
                step(loss=loss)
            else:
                self.optimizer.step()
        return loss

    def validate(self) -> float:
        """What a job would log: loss on a little held-out data, in the unit of the train loss.

        Of the weights as they are: which ones to look at is the Tuner's to say.
        """
        with torch.no_grad():
            loss = evaluate(self.task, self.params(), "inner_valid", VALIDATED)
        return self.task.loss_scale * loss

    def held_out(self) -> float:
        """Loss on all of `inner_valid`."""
        return self.evaluate("inner_valid")

    def deployed(self) -> AbstractContextManager[object]:
        """A context with the weights that are meant to be used."""
        return self.with_.deployed(self.optimizer)

    def evaluate(self, split: Split) -> float:
        """Mean loss on a split, with the weights as they are."""
        with torch.no_grad():
            return evaluate(self.task, self.params(), split)


def evaluate(
    task: InnerTask, params: Mapping[str, Tensor], split: Split, limit: int | None = None
) -> float:
    """Mean loss on the first `limit` rows of a split; infinite if it is not finite."""
    arrays = tuple(array[:limit] for array in task.arrays(split))
    n, total = len(arrays[0]), 0.0
    for start in range(0, n, _CHUNK):
        part = tuple(array[start : start + _CHUNK] for array in arrays)
        total += task.evaluate(params, part).item() * len(part[0])
    return total / n if math.isfinite(total) else math.inf
