"""The yardstick of a task: final losses of finished, tuned baseline runs against their budget.

Baseline: AdamW, default betas, 5% linear warm-up, cosine to 0 over the run's own budget, learning
rate and weight decay the best of a grid at each budget. A run that is cut off before its decay is
no baseline: every point is a run that finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ConfigurationError, FrontierError
from ..core.types import BoolArray, FloatArray, IntArray
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, Settings
from ..inner_tasks.registry import family_of
from .measured import family_noise, shipped

#: Changes whenever the protocol does, so that old caches are not read.
PROTOCOL = 1
WARMUP = 0.05
#: log2 speed is read no further than this, unless asked: beyond the frontier's ends it is a guess.
SPEED_BOUNDS = (-3.0, 2.0)
#: Budget, in units of ours, that the untrained loss is plotted at, to extrapolate downwards.
UNTRAINED_BUDGET = 1.0 / 64.0
#: Nats that the frontier's first segment spans at least, where it is read beyond the untrained
#: loss: a baseline that has learned nothing in its shortest run has no slope to go on with.
LEAST_FALL = 0.1
#: Degrees of freedom that a family's noise counts as beside the one of a frontier's two runs.
FAMILY_FREEDOM = 4.0


@dataclass(frozen=True)
class FrontierConfig:
    """How a frontier is measured.

    Attributes:
        budgets: In units of the run's own length; ascending, 1 among them.
        rates: Learning rates tried at every budget.
        seeds: Runs per rate and budget; a rate is judged by its mean.
        window: None tries every rate and decay at every budget. A number tries every rate, with the
            first decay, at the smallest budget, and then at each so many rates, and one decay, on
            either side of the best, moving on until the best has neighbours that are worse: a few
            of the grid instead of all.
        decays: Weight decays tried, ascending.
    """

    budgets: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    rates: tuple[float, ...] = tuple(float(10.0 ** (k / 3.0)) for k in range(-12, 1))
    seeds: tuple[int, ...] = (900_001, 900_002)
    window: int | None = None
    decays: tuple[float, ...] = (0.01,)

    def __post_init__(self) -> None:
        ordered = sorted(set(self.budgets)) == list(self.budgets) and min(self.budgets) > 0
        if not ordered or 1.0 not in self.budgets or self.budgets[-1] <= 1.0:
            raise ConfigurationError(
                f"budgets is {self.budgets}; ascending numbers are wanted, 1.0 among them and at "
                "least one beyond it."
            )
        if not self.rates or not self.seeds or not self.decays:
            raise ConfigurationError(
                "A frontier needs at least one rate, one weight decay and one seed."
            )
        if self.window is not None and self.window < 1:
            raise ConfigurationError(
                f"window is {self.window}; at least 1 rate on either side is wanted, or None for "
                "all of them."
            )


#: Of training pools, which have many tasks and long ones: half a decade between rates, and no more
#: of them than it takes to see that the best is inside. The decay is tuned too: where few data are
#: seen often, every rate with a small decay ends alike, and such a yardstick tells nothing apart.
POOL_FRONTIER = FrontierConfig(
    budgets=(0.25, 0.5, 1.0, 2.0),
    rates=tuple(float(10.0 ** (k / 2.0)) for k in range(-9, 1)),
    window=1,
    decays=(0.01, 0.1, 0.3, 1.0),
)


@dataclass(frozen=True)
class Frontier:
    """Best final loss of the tuned baseline at each budget.

    Attributes:
        task: The inner task's name.
        steps: Inner steps of budget 1.
        budgets: Ascending, in units of `steps`.
        losses: Mean final `outer_valid` loss at the best rate and decay, as measured.
        best_rates: That rate, per budget.
        best_decays: The weight decay with it, per budget.
        noise: Standard deviation of log loss at budget 1 over seeds, at the best of them.
        untrained: Loss before the first step.
        grid: `(budgets, rates)` mean final loss of every rate tried, with the best of the decays;
            None is divergence, or not tried.
        rates: The rates tried.
    """

    task: str
    steps: int
    budgets: tuple[float, ...]
    losses: tuple[float, ...]
    best_rates: tuple[float, ...]
    noise: float
    untrained: float
    rates: tuple[float, ...] = ()
    grid: tuple[tuple[float | None, ...], ...] = field(default=(), repr=False)
    best_decays: tuple[float, ...] = ()

    def log2_speed(
        self, loss: FloatArray | float, bounds: tuple[float, float] = SPEED_BOUNDS
    ) -> FloatArray:
        """log2 of the budget at which the baseline reaches `loss`; any shape.

        Log-log interpolation on the monotone envelope of the frontier, and of the untrained loss at
        `UNTRAINED_BUDGET`; beyond both ends the last segment's slope goes on.

        Args:
            loss: Final losses; one that is not finite gets the lower bound.
            bounds: Octaves, least and most, that the answer is clipped to.
        """
        loss = np.asarray(loss, np.float64)
        low, high = bounds
        x = np.log2(np.asarray([UNTRAINED_BUDGET, *self.budgets]))
        envelope = np.minimum.accumulate([max(self.untrained, self.losses[0]), *self.losses])
        y = np.log(np.maximum(envelope, 1e-12))
        # strictly falling, or the inverse does not exist
        y = y - 1e-9 * np.arange(len(y))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.log(np.maximum(loss, 1e-12))
        speed = np.interp(-value, -y, x)
        first = (x[1] - x[0]) / max(y[0] - y[1], LEAST_FALL)
        last = (x[-1] - x[-2]) / (y[-2] - y[-1])
        speed = np.where(value < y[-1], x[-1] + last * (y[-1] - value), speed)
        speed = np.where(value > y[0], x[0] - first * (value - y[0]), speed)
        return np.asarray(np.where(np.isfinite(loss), np.clip(speed, low, high), low))

    @property
    def resolution(self) -> float:
        """Standard deviation of one baseline run's final loss, in octaves of speed.

        Large where the frontier is flat: there a speed says little, and a task is of no use.
        """
        i = self.budgets.index(1.0)
        envelope = np.minimum.accumulate(self.losses)
        j = max(i - 1, 0)
        octaves = np.log2(self.budgets[i + 1] / self.budgets[j])
        slope = (np.log(envelope[j]) - np.log(envelope[i + 1])) / octaves
        return float(self.noise / slope) if slope > 0 else float("inf")

    def sharpened(self, resolution: float) -> Frontier:
        """The same, read no finer than its noise allows: so that `resolution` is at most this.

        Between budgets the loss falls by at least `noise / resolution` per octave, counted from
        budget 1 either way. Where it really falls by more, nothing changes; where more steps gain
        next to nothing, as over few rows seen often, a loss within the noise stays within
        `resolution` octaves, and one far above it counts as far behind.

        Args:
            resolution: Octaves, above 0.
        """
        one, least = self.budgets.index(1.0), self.noise / resolution
        octaves = np.log2(self.budgets)
        logs = np.log(np.maximum(np.minimum.accumulate(self.losses), 1e-12))
        falls = np.maximum(-np.diff(logs), least * np.diff(octaves))
        down = np.concatenate([[0.0], np.cumsum(falls)])
        losses = np.exp(logs[one] - (down - down[one]))
        return replace(self, losses=tuple(float(v) for v in losses))

    def steadied(self) -> Frontier:
        """The same, its `noise` that of its family's tasks and of its own two runs, weighed.

        Its own variance counts as the one degree of freedom that it has, the family's as
        `FAMILY_FREEDOM`. Of a family that does not ship with the package it stays what it is.
        """
        typical = family_noise(family_of(self.task))
        if typical is None:
            return self
        pooled = (self.noise**2 + FAMILY_FREEDOM * typical**2) / (1.0 + FAMILY_FREEDOM)
        return replace(self, noise=float(np.sqrt(pooled)))

    @property
    def edge(self) -> bool:
        """Whether the best rate at budget 1 lies on the edge of the grid."""
        best = self.best_rates[self.budgets.index(1.0)]
        return best in (min(self.rates), max(self.rates))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Frontier:
        """The frontier that `to_json` wrote."""
        try:
            return cls(
                task=row["task"],
                steps=int(row["steps"]),
                budgets=tuple(row["budgets"]),
                losses=tuple(row["losses"]),
                best_rates=tuple(row["best_rates"]),
                noise=float(row["noise"]),
                untrained=float(row["untrained"]),
                rates=tuple(row["rates"]),
                grid=tuple(tuple(line) for line in row["grid"]),
                best_decays=tuple(row.get("best_decays", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FrontierError(
                f"A stored frontier cannot be read ({error!r}); delete it, it is made again."
            ) from error


def cosine(rate: FloatArray, total: IntArray, start: int, stop: int) -> FloatArray:
    """Warm-up and cosine to 0 for steps `start` to `stop`: `(stop - start, K)` rates.

    Args:
        rate: `(K,)` peak rates.
        total: `(K,)` length of each run, in steps.
        start: First step, from 0.
        stop: One past the last step.
    """
    t = np.arange(start, stop, dtype=np.float64)[:, None]
    warmup = np.maximum(np.ceil(WARMUP * total), 1.0)
    rising = np.minimum((t + 1.0) / warmup, 1.0)
    falling = 0.5 * (1.0 + np.cos(np.pi * np.minimum(t / total, 1.0)))
    return np.asarray(rate * rising * falling)


def measure_frontier(task: InnerTask, steps: int, config: FrontierConfig | None = None) -> Frontier:
    """Train the baseline at every budget and seed, at every rate or those around the best.

    Args:
        task: What is trained.
        steps: Inner steps of budget 1.
        config: Budgets, rates and seeds.

    Raises:
        FrontierError: At some budget every rate diverged.
    """
    config = config or FrontierConfig()
    n_seeds = len(config.seeds)
    lengths = np.array([max(2, round(b * steps)) for b in config.budgets])
    rates, decays = np.asarray(config.rates), np.asarray(config.decays)
    seeds = [int(s) for s in config.seeds]
    untrained = float(np.mean(BatchedRuns(task, seeds).evaluate(averaged=False)))
    table = np.full((len(lengths), len(rates), len(decays), n_seeds), np.inf)
    tried = np.zeros(table.shape[:3], bool)
    while len(todo := _untried(table, tried, config.window)):
        budget, rate, decay = todo.T
        finals = _finals(
            task,
            rates[rate].repeat(n_seeds),
            decays[decay].repeat(n_seeds),
            lengths[budget].repeat(n_seeds),
            seeds * len(todo),
        )
        table[budget, rate, decay] = finals.reshape(len(todo), n_seeds)
        tried[budget, rate, decay] = True
    means = table.mean(axis=3)
    if not np.isfinite(means.min(axis=(1, 2))).all():
        raise FrontierError(
            f"Every rate of {config.rates} diverged on {task.name!r}; the task is broken, or its "
            "rates lie outside the grid."
        )
    best_rate, best_decay = _best(means)
    one = config.budgets.index(1.0)
    at_one = table[one, best_rate[one], best_decay[one]]
    log_std = float(np.log(np.maximum(at_one, 1e-12)).std(ddof=1)) if n_seeds > 1 else 0.0
    return Frontier(
        task=task.name,
        steps=steps,
        budgets=config.budgets,
        losses=tuple(float(v) for v in means.min(axis=(1, 2))),
        best_rates=tuple(float(config.rates[i]) for i in best_rate),
        noise=log_std,
        untrained=untrained,
        rates=config.rates,
        grid=tuple(
            tuple(float(v) if np.isfinite(v) else None for v in row) for row in means.min(axis=2)
        ),
        best_decays=tuple(float(config.decays[i]) for i in best_decay),
    )


def _best(means: FloatArray) -> tuple[IntArray, IntArray]:
    """Rate and decay of each budget's lowest loss, as indices."""
    flat = means.reshape(len(means), -1).argmin(axis=1)
    return np.divmod(flat, means.shape[2])


def _untried(table: FloatArray, tried: BoolArray, window: int | None) -> IntArray:
    """Which (budget, rate, decay) to run next, `(n, 3)`; none when the frontier is complete."""
    if window is None:
        return np.argwhere(~tried)
    if not tried.any():
        first = np.zeros_like(tried)
        first[0, :, 0] = True
        return np.argwhere(first)
    means = table.mean(axis=3)
    if not np.isfinite(means[0].min()):
        return np.empty((0, 3), np.int64)  # all diverged at once: nothing is better for longer
    known = tried.any(axis=(1, 2))
    best_rate, best_decay = (np.where(known, index, index[0]) for index in _best(means))
    from_rate = np.abs(np.arange(tried.shape[1]) - best_rate[:, None])[:, :, None]
    from_decay = np.abs(np.arange(tried.shape[2]) - best_decay[:, None])[:, None, :]
    # along either axis, not over the corners
    wanted = ((from_rate <= window) & (from_decay == 0)) | ((from_rate == 0) & (from_decay <= 1))
    return np.argwhere(wanted & ~tried)


def _finals(
    task: InnerTask, rate: FloatArray, decay: FloatArray, total: IntArray, seeds: Sequence[int]
) -> FloatArray:
    """Final `outer_valid` losses of baseline runs, `(n,)`, trained in one batch.

    Args:
        task: What is trained.
        rate: `(n,)` peak rates.
        decay: `(n,)` weight decays.
        total: `(n,)` lengths, in steps.
        seeds: One per run.
    """
    runs = BatchedRuns(task, seeds, Settings(learning_rate=rate, weight_decay=decay))
    rows, out, done = np.arange(len(rate)), np.full(len(rate), np.inf), 0
    for length in np.unique(total):
        while done < length:  # in pieces, so that batch indices of 4 T steps need not be held
            stop = min(done + 256, int(length))
            runs.advance(stop - done, learning_rates=cosine(rate, total, done, stop))
            done = stop
        ending = total == length
        out[rows[ending]] = runs.evaluate(averaged=False)[ending]
        if not ending.all():
            runs.keep(~ending)
            rate, total, rows = rate[~ending], total[~ending], rows[~ending]
    return out


def cache_folder() -> Path:
    """Where frontiers are kept: `LHOPT_CACHE`, or `~/.cache/lhopt`."""
    root = os.environ.get("LHOPT_CACHE") or Path.home() / ".cache" / "lhopt"
    return Path(root) / "frontiers"


def cache_key(task: InnerTask, steps: int, config: FrontierConfig) -> str:
    """Name of a frontier's file: changes with the task's configuration, data and the protocol."""
    frontier = asdict(config)
    if config.decays == FrontierConfig().decays:
        del frontier["decays"]  # what was measured before there were any stays good
    described = {
        "protocol": PROTOCOL,
        "task": task.name,
        "config": getattr(task, "config", None),
        "batch_size": task.batch_size,
        "outer_valid": _data_digest(task),
        "steps": steps,
        "frontier": frontier,
    }
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _data_digest(task: InnerTask) -> str:
    """Of the arrays that losses are measured on.

    A name does not fix the data: the text of the character models is the running Python's library.
    """
    digest = hashlib.sha256()
    for tensor in task.arrays("outer_valid"):
        array = tensor.contiguous().numpy(force=True)
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Frontier:
    try:
        return Frontier.from_json(json.loads(path.read_text()))
    except (ValueError, FrontierError) as error:
        raise FrontierError(
            f"{path} holds no frontier ({error!r}); delete it, it is made again."
        ) from error


def get_frontier(
    task: InnerTask,
    steps: int,
    config: FrontierConfig | None = None,
    *,
    folders: Sequence[Path] = (),
) -> Frontier:
    """The frontier from the cache or the package, measured first if it is in neither.

    Args:
        task: Which task.
        steps: Inner steps of budget 1.
        config: How it is measured; part of the cache key.
        folders: Further folders that are read before the cache, e.g. shipped frontiers.
    """
    config = config or FrontierConfig()
    name = cache_key(task, steps, config) + ".json"
    for folder in (*folders, cache_folder()):
        path = folder / name
        if path.exists():
            return _read(path)
    known = shipped(name)
    if known is not None:
        return Frontier.from_json(known)
    frontier = measure_frontier(task, steps, config)
    path = cache_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.write_text(json.dumps(frontier.to_json()) + "\n")
    temporary.replace(path)
    return frontier
