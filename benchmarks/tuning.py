"""How the two baselines are tuned: what is tried, which setting wins, and when a box is too small.

Two seeds tell trials apart badly, and the best of many noisy ones is lucky: the six best of either
baseline are run on more seeds, and the choice is made on all of them.

The stronger one, "k24": AdamW with 5% linear warm-up and cosine to 0; 24 Sobol trials over learning
rate, weight decay and betas. A winner on an edge of the box widens it for 24 more trials; all are
ranked again on the tuning seeds, and the six best of all are run on more. The other, "5x7": five
rates times seven schedules, as LHOPT's own comparison had it (arXiv:2106.00958).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.stats import qmc

from ..core.errors import ConfigurationError, FrontierError
from ..core.types import FloatArray
from ..env.frontier import cosine
from .frontier import HORIZONS, N_TRIALS

#: Seed of the first round's Sobol points; round r has this plus r.
SOBOL_SEED: Final = 2024
#: A rate within this factor of an end of its range lies on the edge.
EDGE_FACTOR: Final = 10.0 ** (1.0 / 6.0)
#: What a side gains when the winner lies on it, in turn; a beta1 of 0 is no edge.
MORE_WEIGHT_DECAY: Final = ((1.0,), (3.0,))
BELOW_BETA1: Final = ((0.5, 0.7), (0.0, 0.3))
ABOVE_BETA1: Final = ((0.98,), (0.99,))
BELOW_BETA2: Final = ((0.8, 0.9), (0.5, 0.7))
ABOVE_BETA2: Final = ((0.9999,), (0.99999,))

Multiplier = Callable[[FloatArray, FloatArray], FloatArray]


def _warm_up_cosine(t: FloatArray, total: FloatArray) -> FloatArray:
    start, stop = int(t[0, 0]), int(t[-1, 0]) + 1
    return cosine(np.ones_like(total), total.astype(np.int64), start, stop)


def _multi_step(t: FloatArray, total: FloatArray) -> FloatArray:
    return np.where(t < 0.5 * total, 1.0, np.where(t < 0.75 * total, 0.1, 0.01))


def _cosine(t: FloatArray, total: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1.0 + np.cos(np.pi * t / total)))


#: Schedule by name: steps `(n, 1)` from 0, consecutive, and lengths `(K,)` to factors `(n, K)`.
SCHEDULES: Final[dict[str, Multiplier]] = {
    "warm-up + cosine to 0": _warm_up_cosine,
    "constant": lambda t, total: np.ones(np.broadcast_shapes(t.shape, total.shape)),
    "multi-step": _multi_step,
    "linear": lambda t, total: 1.0 - t / total,
    "quadratic": lambda t, total: np.square(1.0 - t / total),
    "exponential": lambda t, total: np.power(0.01, t / total),
    "cosine to 0": _cosine,
    "cosine to 0.1": lambda t, total: 0.1 + 0.9 * _cosine(t, total),
}


@dataclass(frozen=True)
class Setting:
    """One AdamW with its schedule, which is stretched over whatever length is run."""

    learning_rate: float
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: str = "warm-up + cosine to 0"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"rate {self.learning_rate:.2g}, weight decay {self.weight_decay:g}, betas "
            f"{self.beta1:g} {self.beta2:g}, {self.schedule}"
        )


#: Five rates times seven schedules, torch's default betas and weight decay.
FIVE_BY_SEVEN: Final = tuple(
    Setting(rate, schedule=name)
    for rate in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    for name in list(SCHEDULES)[1:]
)


@dataclass(frozen=True)
class Box:
    """What trials are drawn from: a log-uniform rate, and values with equal probability.

    Attributes:
        learning_rate: Lowest and highest.
        weight_decay: Ascending; its lowest, 0, is no edge.
        beta1: Ascending; 0, which is no momentum, is no edge.
        beta2: Ascending.
    """

    learning_rate: tuple[float, float] = (1e-4, 1.0)
    weight_decay: tuple[float, ...] = (0.0, 0.01, 0.1, 0.3)
    beta1: tuple[float, ...] = (0.8, 0.9, 0.95)
    beta2: tuple[float, ...] = (0.95, 0.99, 0.999)

    def draw(self, n: int, seed: int) -> list[Setting]:
        """The first `n` points of a scrambled Sobol sequence, as settings."""
        # n need be no power of 2: the first n of the next power are the same points
        power = max(math.ceil(math.log2(n)), 0)
        points = qmc.Sobol(4, scramble=True, seed=seed).random_base2(power)[:n]
        low, high = np.log(self.learning_rate)

        def pick(values: tuple[float, ...], u: float) -> float:
            return values[min(int(u * len(values)), len(values) - 1)]

        return [
            Setting(
                float(np.exp(low + u * (high - low))),
                pick(self.weight_decay, v),
                pick(self.beta1, w),
                pick(self.beta2, x),
            )
            for u, v, w, x in points.tolist()
        ]

    def widened(self, setting: Setting) -> Box:
        """The box with every side moved out that this setting lies on; itself if on none.

        A side that has been moved out as far as it goes stays.
        """
        low, high = self.learning_rate
        if setting.learning_rate <= low * EDGE_FACTOR:
            low /= 10.0
        if setting.learning_rate >= high / EDGE_FACTOR:
            high *= 10.0
        decay = self.weight_decay
        if setting.weight_decay >= decay[-1]:
            more = [values for values in MORE_WEIGHT_DECAY if values[-1] > decay[-1]]
            decay = decay + more[0] if more else decay
        return Box(
            (low, high),
            decay,
            _wider(self.beta1, setting.beta1, BELOW_BETA1, ABOVE_BETA1),
            _wider(self.beta2, setting.beta2, BELOW_BETA2, ABOVE_BETA2),
        )

    def on_edge(self, setting: Setting) -> bool:
        """Whether a setting lies on a side of the box, one that cannot be moved included."""
        low, high = self.learning_rate
        return (
            not low * EDGE_FACTOR < setting.learning_rate < high / EDGE_FACTOR
            or setting.weight_decay >= self.weight_decay[-1]
            or (setting.beta1 <= self.beta1[0] and setting.beta1 > 0.0)
            or setting.beta1 >= self.beta1[-1]
            or not self.beta2[0] < setting.beta2 < self.beta2[-1]
        )


def _wider(
    values: tuple[float, ...],
    chosen: float,
    below: Sequence[tuple[float, ...]],
    above: Sequence[tuple[float, ...]],
) -> tuple[float, ...]:
    """The values and the next ones on the side that was chosen; the same where none is left."""
    wider = set(values)
    if chosen <= values[0]:
        wider |= set(next((more for more in below if more[0] < values[0]), ()))
    if chosen >= values[-1]:
        wider |= set(next((more for more in above if more[-1] > values[-1]), ()))
    return tuple(sorted(wider))


@dataclass(frozen=True)
class Protocol:
    """How both baselines are tuned and their frontiers measured.

    Attributes:
        horizons: Ascending, in units of a run's own length.
        seeds: Evaluation seeds, of the frontiers.
        tuning_seeds: Seeds that every setting is tried on, at horizon 1.
        final_seeds: More seeds for the best of them; the choice is by the mean loss on all.
        finalists: How many are run on those.
        n_trials: Trials per round of the stronger baseline.
        max_rounds: Rounds at most, the first included.
        box: What the first round draws from.
        grid: The settings of the other baseline.
    """

    horizons: tuple[float, ...] = HORIZONS
    seeds: tuple[int, ...] = tuple(range(10))
    tuning_seeds: tuple[int, ...] = (100, 101)
    final_seeds: tuple[int, ...] = (102, 103, 104, 105)
    finalists: int = 6
    n_trials: int = N_TRIALS
    max_rounds: int = 3
    box: Box = Box()
    grid: tuple[Setting, ...] = FIVE_BY_SEVEN

    def __post_init__(self) -> None:
        choosing = (*self.tuning_seeds, *self.final_seeds)
        if set(self.seeds) & set(choosing) or len(set(choosing)) < len(choosing):
            raise ConfigurationError(
                f"Seeds {self.seeds} and tuning seeds {choosing} overlap; a setting must "
                "be chosen on other seeds than it is measured on."
            )
        if not self.tuning_seeds or self.n_trials < 1 or self.max_rounds < 1 or not self.grid:
            raise ConfigurationError("A baseline needs a tuning seed, a trial, a round and a grid.")


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        setting: The best of all trials.
        trials: Every setting tried, in order.
        losses: `(trials, tuning seeds)`, infinite where a run diverged.
        finals: `(trials, final seeds)`, nan for a trial that was no finalist.
        edge: Whether the setting lies on an edge of the last box, or of the grid's rates.
        rounds: Boxes searched.
    """

    setting: Setting
    trials: tuple[Setting, ...]
    losses: FloatArray
    finals: FloatArray
    edge: bool
    rounds: int


#: Losses `(settings, seeds)` of settings at horizon 1.
Try = Callable[[Sequence[Setting], Sequence[int]], FloatArray]


def tune(attempt: Try, protocol: Protocol) -> Tuned:
    """The stronger baseline's setting.

    Raises:
        FrontierError: Every trial diverged.
    """
    box, trials, tables, rounds = protocol.box, list[Setting](), list[FloatArray](), 0
    while True:
        drawn = box.draw(protocol.n_trials, SOBOL_SEED + rounds)
        trials += drawn
        tables.append(attempt(drawn, protocol.tuning_seeds))
        rounds += 1
        losses = np.concatenate(tables)
        best, finals = _best(attempt, trials, losses, protocol)
        wider = box.widened(best)
        if rounds == protocol.max_rounds or wider == box:
            return Tuned(best, tuple(trials), losses, finals, box.on_edge(best), rounds)
        box = wider


def choose(attempt: Try, protocol: Protocol) -> Tuned:
    """The best setting of the fixed grid; "edge" then is its lowest or highest rate.

    Raises:
        FrontierError: Every setting diverged.
    """
    grid = protocol.grid
    losses = attempt(grid, protocol.tuning_seeds)
    best, finals = _best(attempt, grid, losses, protocol)
    rates = [setting.learning_rate for setting in grid]
    return Tuned(
        best, tuple(grid), losses, finals, best.learning_rate in (min(rates), max(rates)), 1
    )


def _best(
    attempt: Try, trials: Sequence[Setting], losses: FloatArray, protocol: Protocol
) -> tuple[Setting, FloatArray]:
    """The best of the finalists on all seeds, and what they came to on the final ones."""
    means = losses.mean(axis=1)
    if not np.isfinite(means).any():
        raise FrontierError(
            f"All {len(trials)} trials of the baseline diverged; the task is broken, or its rates "
            "lie outside the range that is searched."
        )
    order = np.argsort(means, kind="stable")[: protocol.finalists]
    order = order[np.isfinite(means[order])]
    finals = np.full((len(trials), len(protocol.final_seeds)), np.nan)
    if protocol.final_seeds:
        finals[order] = attempt([trials[i] for i in order], protocol.final_seeds)
    every = np.concatenate([losses, finals], axis=1)[order].mean(axis=1)
    # all of them may have diverged on some seed: then the first stage's best
    chosen = int(np.argmin(every)) if np.isfinite(every).any() else 0
    return trials[int(order[chosen])], finals


def with_seeds(protocol: Protocol, n_seeds: int, horizons: tuple[float, ...]) -> Protocol:
    """The protocol with fewer evaluation seeds and horizons."""
    return replace(protocol, seeds=tuple(range(n_seeds)), horizons=horizons)
