"""What a schedule may know of a run: measured where workers meet, made unitless, in one place.

The environment, `simulate_local_sgd` and `LearnedInterval` all read these functions; a policy that
was trained on other numbers than it is served would be worthless. Drift and cosine alone exist
twice: `LocalSGD` takes them over a transport, where no process has all workers (`measurement.py`),
and a test holds both to the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.types import BoolArray, FloatArray, IntArray


def measure_meeting(
    workers: FloatArray, mean: FloatArray, anchor: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Drift and cosine at a synchronisation, as `SyncState` defines them.

    Args:
        workers: `(..., P, d)` before averaging.
        mean: `(..., d)` their mean.
        anchor: `(..., d)` where they last were together.

    Returns:
        Drift `(...)`: mean of ||x_k - mean|| / ||mean||. Cosine `(...)`: mean over pairs of workers
        of the cosine between their displacements from the anchor; nan with one worker.
    """
    n = workers.shape[-2]
    apart = np.linalg.norm(workers - mean[..., None, :], axis=-1).mean(-1)
    drift = apart / np.maximum(np.linalg.norm(mean, axis=-1), 1e-30)
    moved = workers - anchor[..., None, :]
    unit = moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-30)
    # of all pairs at once: |sum of unit vectors|^2 is their squares plus twice the sum over pairs
    together = (unit.sum(-2) ** 2).sum(-1)
    squares = (unit**2).sum((-2, -1))  # P, less those that did not move
    if n == 1:
        return drift, np.full(drift.shape, np.nan)
    return drift, (together - squares) / (n * (n - 1))


#: Decisions in a run: a policy acts at the start of each of as many equal parts. The interval
#: before the first decision is one part.
DECISIONS = 32
#: What one decision does to the interval: multiply it, or meet now and keep it.
INTERVAL_CHOICES: tuple[float | str, ...] = (0.125, 0.5, 1.0, 2.0, 8.0, "sync now")
#: What it does to the local batch; a batch is 1 to `MAX_BATCH` times the one the run began with.
BATCH_CHOICES: tuple[float, ...] = (0.5, 1.0, 2.0)
MAX_BATCH = 8

OBSERVATIONS: tuple[str, ...] = (
    "progress",
    "log_interval",
    "waited",
    "log_last_interval",
    "log_rate",
    "log_drift",
    "log_drift_rate",
    "cosine",
    "has_met",
    "log_price",
    "log_price_left",
    "log_price_interval",
    "log_workers",
    "log_total",
    "log_batch",
    "may_move_batch",
)


@dataclass(frozen=True)
class Sight:
    """Of K runs, all that a policy may know: numbers that every worker holds without talking.

    Attributes:
        ticks: `(K,)` gradients of the first batch size that each worker has computed.
        total: `(K,)` how many it will have computed at the end.
        interval: `(K,)` local steps between synchronisations.
        since: `(K,)` local steps since the last one.
        last_interval: `(K,)` local steps that lay before the last one; 0 before the first.
        learning_rate: `(K,)` at the last one.
        first_rate: `(K,)` the highest so far: the first, where rates fall.
        drift: `(K,)` see `SyncState`; nan before the first synchronisation.
        cosine: `(K,)` see `SyncState`; nan before the first synchronisation.
        price: `(K,)` what a round costs, in nats of excess loss.
        workers: `(K,)` how many there are.
        batch: `(K,)` local batch, in units of the first.
        may_move_batch: `(K,)` whether moves of the batch are carried out.
    """

    ticks: FloatArray | IntArray
    total: FloatArray | IntArray
    interval: FloatArray | IntArray
    since: FloatArray | IntArray
    last_interval: FloatArray | IntArray
    learning_rate: FloatArray
    first_rate: FloatArray
    drift: FloatArray
    cosine: FloatArray
    price: FloatArray
    workers: FloatArray | IntArray
    batch: FloatArray | IntArray
    may_move_batch: BoolArray


def observe(sight: Sight) -> FloatArray:
    """The observation `(K, len(OBSERVATIONS))`, float32 in [-3, 3]; unitless, so that one policy
    serves problems of any scale: rates against the first, drift against the weights, prices
    against the loss.
    """  # noqa: D205
    total = np.asarray(sight.total, np.float64)
    left = np.maximum(total - sight.ticks, 1.0)
    met = np.isfinite(sight.drift)
    drift = np.where(met, np.maximum(sight.drift, 1e-9), 1.0)
    last = np.maximum(sight.last_interval, 1)
    rate = np.asarray(sight.learning_rate, np.float64) / sight.first_rate
    columns = {
        "progress": 2.0 * np.asarray(sight.ticks) / total - 1.0,
        "log_interval": np.log(sight.interval) / 3.0 - 1.0,
        "waited": np.asarray(sight.since) / np.asarray(sight.interval, np.float64),
        "log_last_interval": np.log(last) / 3.0 - 1.0,
        "log_rate": np.log(np.maximum(rate, 1e-9)) / 1.5,
        "log_drift": np.where(met, np.log(drift) / 1.5 + 2.0, 0.0),
        # noise alone drifts as the square root of the interval
        "log_drift_rate": np.where(met, np.log(drift / np.sqrt(last)) / 1.5 + 3.0, 0.0),
        "cosine": np.where(np.isfinite(sight.cosine), 2.0 * sight.cosine, 0.0),
        "has_met": met,
        "log_price": np.log(sight.price) / 2.5 + 2.0,
        "log_price_left": np.log(sight.price * left) / 2.5,
        "log_price_interval": np.log(sight.price * left / sight.interval / sight.batch) / 2.5,
        "log_workers": np.log2(sight.workers) - 3.0,
        "log_total": np.log2(total) / 2.0 - 5.0,
        "log_batch": np.log2(sight.batch) / 1.5 - 1.0,
        "may_move_batch": sight.may_move_batch,
    }
    table = np.stack([np.asarray(columns[name], np.float64) for name in OBSERVATIONS], -1)
    return np.asarray(np.clip(table, -3.0, 3.0), np.float32)


def move_interval(interval: IntArray, choice: IntArray, longest: int) -> tuple[IntArray, BoolArray]:
    """Carry out choices of `INTERVAL_CHOICES`, any shape: new intervals, and who meets now."""
    now = choice == len(INTERVAL_CHOICES) - 1
    factors = np.array([f if isinstance(f, float) else 1.0 for f in INTERVAL_CHOICES])
    moved = np.clip((interval * factors[choice]).astype(np.int64), 1, longest)
    return moved, now


def move_batch(batch: IntArray, choice: IntArray, may: BoolArray) -> IntArray:
    """Carry out choices of `BATCH_CHOICES`, any shape; the new batch in [1, `MAX_BATCH`]."""
    moved = (batch * np.array(BATCH_CHOICES)[choice]).astype(np.int64)
    return np.where(may, np.clip(moved, 1, MAX_BATCH), batch)
