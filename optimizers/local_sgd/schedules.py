"""Communication schedules: how many local steps lie between two synchronisations.

Every schedule answers `next_interval(state)` for `LocalSGD`, and `plan(total_steps,
learning_rates)` for those who want to know beforehand: a list of intervals that sums to
`total_steps`. Counting a plan's entries counts its rounds, because a run always ends with one.

Which one: growth is licensed by a step size that decays, not by time. Under a decaying step all of
these cost next to nothing; under a constant one every growing interval does harm (`lhopt bench
local-sgd` prints both). `InverseStepSize` and `QuadraticSync` follow the step size by themselves.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...core.errors import ConfigurationError
from .checks import rate
from .protocol import SyncState

#: No interval is longer: a step size of 0 would ask for an endless one.
LONGEST = 2**31 - 1
#: Relative slack before rounding, so that (0.3 / 0.1)**2 counts as 9 and not as 8.999999.
SLACK = 1e-9


class CommunicationSchedule(ABC):
    """Base of the schedules here; a schedule of your own needs `next_interval` alone."""

    @abstractmethod
    def next_interval(self, state: SyncState) -> int:
        """Local steps until the next synchronisation, in [1, `LONGEST`]."""

    def plan(self, total_steps: int, learning_rates: float | Sequence[float]) -> list[int]:
        """The intervals of a whole run, which sum to `total_steps`; the last one may be cut.

        Args:
            total_steps: Local steps of each worker.
            learning_rates: One for all steps, or one per step (`total_steps` of them).

        Raises:
            ConfigurationError: `total_steps` is negative, or there are too few learning rates.
        """
        if total_steps < 0:
            raise ConfigurationError(f"total_steps={total_steps}; it must be >= 0.")
        if not isinstance(learning_rates, Sequence):
            learning_rates = [float(learning_rates)] * total_steps
        if len(learning_rates) < total_steps:
            raise ConfigurationError(
                f"{len(learning_rates)} learning rates for {total_steps} steps; give one per step, "
                "or a single number."
            )
        # a schedule with a memory must not remember a run that was only planned
        schedule = copy.deepcopy(self)
        intervals: list[int] = []
        step = 0
        while step < total_steps:
            state = SyncState(
                step, len(intervals), float(learning_rates[step]), math.nan, math.nan, 1
            )
            intervals.append(min(schedule.next_interval(state), total_steps - step))
            step += intervals[-1]
        return intervals


@dataclass(frozen=True)
class ConstantInterval(CommunicationSchedule):
    """The same interval throughout; 1 is minibatch averaging, a whole run one-shot averaging.

    Args:
        interval: Local steps between synchronisations, >= 1.

    Source: Stich, 2019, arXiv:1805.09767.
    """

    interval: int = 1

    def __post_init__(self) -> None:
        _check_interval("interval", self.interval)

    def next_interval(self, state: SyncState) -> int:
        """`interval`, always."""
        return min(self.interval, LONGEST)


@dataclass(frozen=True)
class PowerInterval(CommunicationSchedule):
    """An interval that grows as a power: `ceil(scale * n ** exponent)`.

    By "step", n is the number of local steps done, plus one; by "round", the number of rounds done,
    plus one. The exponents are not the same: intervals that grow as `step ** a` grow as
    `round ** (a / (1 - a))`. The square root by step is linear growth by round.

    Args:
        scale: Factor, > 0.
        exponent: In [0, 1) by step, >= 0 by round. 0.5 by step is the sqrt growth of the paper.
        by: What the power is taken of.

    Source: Dieuleveut and Patel, 2019, "Communication trade-offs for Local-SGD with large step
    size", N_t growing with the phase. The paper's constants are not used: `scale` is yours to set.
    """

    scale: float = 1.0
    exponent: float = 0.5
    by: Literal["step", "round"] = "step"

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)
        if self.by not in ("step", "round"):
            raise ConfigurationError(f"by={self.by!r}; it must be 'step' or 'round'.")
        if not 0 <= self.exponent < (1.0 if self.by == "step" else math.inf):
            raise ConfigurationError(
                f"exponent={self.exponent} by {self.by}; allowed is [0, 1) by step and any number "
                ">= 0 by round. Steps to the power 1 double with every round."
            )

    def next_interval(self, state: SyncState) -> int:
        """`ceil(scale * n ** exponent)`."""
        n = state.step if self.by == "step" else state.round
        return _up(self.scale * (n + 1.0) ** self.exponent)


@dataclass(frozen=True)
class InverseStepSize(CommunicationSchedule):
    """A drift budget: `ceil(budget / learning_rate)`, so that interval times step size is constant.

    Args:
        budget: Interval times learning rate, > 0; it has the learning rate's unit.
        warm_up: Local steps of the learning rate's warm-up, in which workers meet after each step.
            Without, the small rates of a warm-up ask for long intervals, and a rate of 0 at the
            first step for an endless one.

    Source: the drift between averagings in Dieuleveut and Patel, 2019, grows as N_t * eta_t.
    """

    budget: float
    warm_up: int = 0

    def __post_init__(self) -> None:
        _check_positive("budget", self.budget)
        _check_steps("warm_up", self.warm_up)

    def next_interval(self, state: SyncState) -> int:
        """`ceil(budget / learning_rate)`; 1 in the warm-up."""
        if state.step < self.warm_up:
            return 1
        return _up(_over(self.budget, state.learning_rate))


@dataclass(frozen=True)
class QuadraticSync(CommunicationSchedule):
    """The quadratic synchronisation rule: `max(base, floor((alpha / learning_rate) ** 2))`.

    Args:
        alpha: > 0, in the learning rate's unit; the interval starts to grow where the learning
            rate falls below alpha / sqrt(base).
        base: Smallest interval, >= 1.
        warm_up: Local steps of the learning rate's warm-up, in which the interval is `base`, cut to
            end with it. Without, the small rates of a warm-up ask for long intervals, and a rate
            of 0 at the first step for an endless one.

    Source: Gu et al., 2024, arXiv:2310.14423.
    """

    alpha: float
    base: int = 1
    warm_up: int = 0

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)
        _check_interval("base", self.base)
        _check_steps("warm_up", self.warm_up)

    def next_interval(self, state: SyncState) -> int:
        """`max(base, floor((alpha / learning_rate) ** 2))`; at most `base` in the warm-up."""
        if state.step < self.warm_up:
            return min(self.base, self.warm_up - state.step)
        ratio = min(_over(self.alpha, state.learning_rate), float(LONGEST))
        return max(self.base, min(LONGEST, math.floor(ratio**2 * (1.0 + SLACK))))


@dataclass
class PostLocal(CommunicationSchedule):
    """Synchronous first, `interval` local steps per round afterwards.

    Without `switch_step` it switches where the learning rate first falls below the highest that it
    has seen, which a warm-up does not trigger. That is the paper's choice for step-wise schedules;
    with a cosine it means the end of the warm-up, so name a step there.

    Args:
        interval: After the switch, >= 1.
        switch_step: First local step after the switch; `None` waits for the first decay.

    Source: Lin et al., 2020, arXiv:1808.07217.
    """

    interval: int = 16
    switch_step: int | None = None
    _highest: float = field(default=0.0, init=False, repr=False)
    _switched: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_interval("interval", self.interval)
        if self.switch_step is not None:
            _check_steps("switch_step", self.switch_step, ", or None")

    def next_interval(self, state: SyncState) -> int:
        """1 before the switch, `interval` after it."""
        if self.switch_step is not None:
            self._switched = state.step >= self.switch_step
        else:
            self._highest = max(self._highest, rate(state.learning_rate))
            # a little slack: a constant rate that is recomputed every step wobbles in its last bit
            self._switched |= state.learning_rate < self._highest * (1.0 - SLACK)
        return min(self.interval, LONGEST) if self._switched else 1

    def state_dict(self) -> dict[str, Any]:
        """The highest learning rate seen, and whether it has switched."""
        return {"highest": self._highest, "switched": self._switched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self._highest, self._switched = float(state["highest"]), bool(state["switched"])


def _up(length: float) -> int:
    return max(1, min(LONGEST, math.ceil(min(length * (1.0 - SLACK), float(LONGEST)))))


def _over(budget: float, learning_rate: float) -> float:
    return budget / learning_rate if rate(learning_rate) > 0 else math.inf


def _check_interval(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r}; it must be a whole number >= 1.")


def _check_steps(name: str, value: int, also: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name}={value!r}; it must be a whole number >= 0{also}.")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name}={value!r}; it must be finite and > 0.")
