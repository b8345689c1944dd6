"""Speeds: which share of our steps the tuned, finished baseline needs to reach our loss.

A frontier holds the final losses of one tuned baseline, trained to its full decay at each of
several horizons, on the evaluation seeds. `tuning.py` measures it, `frontier_files.py` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import comb
from typing import Any, Literal

import numpy as np

from ..core.errors import ConfigurationError, FrontierError
from ..core.types import FloatArray, IntArray
from ..env.pool import TaskSpec
from ..inner_tasks.base import InnerTask, Scoring

#: Budgets of the baseline, in units of a run's own length. The protocol's are the first seven; the
#: last two serve a second reading that goes up to 4.
HORIZONS: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
#: The protocol's own horizons.
PROTOCOL_HORIZONS: tuple[float, ...] = HORIZONS[:7]
#: Speeds are clipped to these: the protocol's bounds, and those of the second reading.
BOUNDS: tuple[float, float] = (0.25, 2.0)
WIDE_BOUNDS: tuple[float, float] = (0.25, 4.0)
#: Trials that tune the stronger baseline in its first round.
N_TRIALS = 24

Strength = Literal["k24", "5x7"]
Tier = Literal["small", "long", "real", "real-long"]
#: Losses below this are read as this: their logarithm is taken.
_FLOOR = 1e-12


@dataclass(frozen=True)
class BenchFrontier:
    """Final losses of one tuned baseline by horizon and evaluation seed.

    A task with selection "best" has, instead of the final loss, the best of the run's curve.

    Attributes:
        task: The inner task's name.
        steps: Inner steps of horizon 1.
        strength: "k24" (Sobol trials over rate, weight decay and betas) or "5x7" (five rates times
            seven schedules).
        horizons: Ascending, in units of `steps`; each run decays fully at its own.
        seeds: Evaluation seeds, the columns of `runs`.
        runs: `(horizons, seeds)` `outer_valid` losses; infinite where a run diverged.
        test_runs: The losses on `test` at the same steps.
        setting: The setting that was chosen on the tuning seeds.
        trials: Every setting that was tried, in order: "setting", "losses" (one per tuning
            seed, at horizon 1; infinite where it diverged), and of a finalist "final_losses".
        edge: Whether the chosen setting lies on an edge of the last box that was searched.
        rounds: Boxes that were searched.
    """

    task: str
    steps: int
    strength: Strength
    horizons: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: FloatArray
    test_runs: FloatArray
    setting: Mapping[str, Any]
    trials: tuple[Mapping[str, Any], ...] = field(repr=False)
    edge: bool
    rounds: int

    def __post_init__(self) -> None:
        shape = (len(self.horizons), len(self.seeds))
        if self.runs.shape != shape or self.test_runs.shape != shape or min(shape) < 1:
            raise FrontierError(
                f"The frontier of {self.task!r} has runs of shape {self.runs.shape} and test runs "
                f"of shape {self.test_runs.shape}; {shape} is wanted, and nothing empty."
            )
        if list(self.horizons) != sorted(set(self.horizons)) or self.horizons[0] <= 0:
            raise FrontierError(
                f"horizons is {self.horizons}; positive, ascending ones are wanted."
            )
        if np.isnan(self.runs).any() or np.isnan(self.test_runs).any():
            raise FrontierError(f"The frontier of {self.task!r} has nan; divergence is infinite.")

    def losses(self, rows: IntArray | None = None, *, test: bool = False) -> FloatArray:
        """Monotone envelope of the median loss over seeds, `(horizons,)`.

        Args:
            rows: Columns of `runs` to take instead of each once, e.g. drawn with replacement for a
                bootstrap; `(n,)`, or `(..., n)` for many draws at once: `(..., horizons)` then.
            test: On `test` instead of `outer_valid`.
        """
        table = self.test_runs if test else self.runs
        picked = table if rows is None else np.moveaxis(table[:, rows], 0, -2)
        return np.asarray(np.minimum.accumulate(np.median(picked, axis=-1), axis=-1))

    def speed(
        self,
        loss: FloatArray | float,
        *,
        bounds: tuple[float, float] = BOUNDS,
        rows: IntArray | None = None,
        test: bool = False,
    ) -> FloatArray:
        """h*: the smallest horizon at which the baseline reaches `loss`; any shape.

        Straight lines in log loss against log horizon. A loss above the one at the smallest horizon
        gets the lower bound, as does one that is not finite; one below every loss gets the last
        horizon. Nothing is extrapolated.

        Args:
            loss: Losses of whatever is compared.
            bounds: The result is clipped to these.
            rows: As in `losses`, `(n,)`.
            test: Read losses on `test` against the frontier on `test`.
        """
        loss = np.asarray(loss, np.float64)
        low, high = bounds
        envelope = np.log(np.maximum(self.losses(rows, test=test), _FLOOR))
        x = np.log(np.asarray(self.horizons))
        finite = np.isfinite(loss)
        value = np.log(np.maximum(np.where(finite, loss, 1.0), _FLOOR))
        # the first horizon whose loss is no larger; a flat piece is reached at its start
        above = np.searchsorted(-envelope, -value, side="left")
        right = np.clip(above, 1, len(x) - 1)
        left = right - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (envelope[left] - value) / (envelope[left] - envelope[right])
        # next to an infinite loss the line is vertical: reached at the finite end
        share = np.where(np.isfinite(share), share, 1.0)
        reached = x[left] + share * (x[right] - x[left])
        reached = np.where(above == 0, x[0], np.where(above == len(x), x[-1], reached))
        out = np.where(finite, np.exp(reached), low)
        return np.asarray(np.clip(out, low, high))


@dataclass(frozen=True)
class BenchTask:
    """A held-out task with both baselines.

    Attributes:
        spec: Its name and length.
        task: The task.
        tier: Where it belongs.
        k24: The stronger baseline's frontier.
        five_by_seven: The frontier of five rates times seven schedules.
        selection: Whether a run is scored by its last loss or the best of its curve.
    """

    spec: TaskSpec
    task: InnerTask
    tier: Tier
    k24: BenchFrontier
    five_by_seven: BenchFrontier
    selection: Scoring


def worth_of_trials(frontier: BenchFrontier, k: int) -> float:
    """What tuning with `k` trials is worth: the speed, on this frontier, of the best of `k`.

    Trials are drawn without replacement from the first round's. The best is chosen by its loss on
    one tuning seed and read on the other, both ways, so that no loss is read where it was chosen.
    Exact, over all draws; averaged in log speed, as every figure of the bench. Trials whose losses
    tie (both diverged) count in their order.

    Args:
        frontier: Of strength "k24".
        k: 1 to the number of trials of the first round.

    Raises:
        ConfigurationError: `k` is out of range.
        FrontierError: The trials were not run on two tuning seeds.
    """
    table = np.asarray([trial["losses"] for trial in frontier.trials[:N_TRIALS]], np.float64)
    if table.ndim != 2 or table.shape[1] != 2:
        raise FrontierError(
            f"The trials of {frontier.task!r} have losses of shape {table.shape}; one per tuning "
            "seed is wanted, and two tuning seeds."
        )
    n = len(table)
    if not 1 <= k <= n:
        raise ConfigurationError(f"k is {k}; it must be in 1 to {n}, the trials there are.")
    # the trial of rank r is the best of k when the other k - 1 come from the n - 1 - r behind it
    chance = np.array([comb(n - 1 - rank, k - 1) for rank in range(n)]) / comb(n, k)
    logs = []
    for chosen_on, read_on in ((0, 1), (1, 0)):
        order = np.argsort(table[:, chosen_on], kind="stable")
        logs.append(chance @ np.log(frontier.speed(table[order, read_on])))
    return float(np.exp(np.mean(logs)))
