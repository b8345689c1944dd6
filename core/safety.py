"""Bounds that no policy can leave, whatever its weights are."""

from __future__ import annotations

import numpy as np

from .actions import COLUMN, Decision
from .controls import CONTROL_NAMES, CONTROLS
from .statistics import Statistics
from .types import FloatArray

MAX_DELTA = np.array([control.max_delta for control in CONTROLS.values()])
MAX_TOTAL = np.array([control.max_total for control in CONTROLS.values()])
LEARNING_RATE = COLUMN["learning_rate"]
#: With a loss that is not finite, the learning rate falls by at least this factor.
BRAKE = np.log(0.5)
#: It falls no lower than this, for that reason alone: a job whose logged loss is never a number
#: though it trains well must not be braked to a standstill.
BRAKE_FLOOR = np.log(1 / 64)


def bound(
    action_delta: FloatArray,
    *,
    relative: FloatArray,
    statistics: Statistics,
    schedule_now: FloatArray,
    schedule_next: FloatArray,
) -> Decision:
    """The decision that is carried out.

    Args:
        action_delta: `(K, controls)` what the policy chose.
        relative: `(K, controls)` delta of each control since its start, schedule included; nan
            where a run does not steer it.
        statistics: Of the interval that just ended.
        schedule_now: `(K,)` the default schedule's log multiplier, as part of `relative`.
        schedule_next: `(K,)` its log multiplier for the interval that begins.

    Returns:
        A decision with, per run, reasons among: "not-steered:NAME", "non-finite-statistics",
        "per-decision-bound:NAME", "total-bound:NAME".
    """
    chosen = np.asarray(action_delta, np.float64)
    steered = np.isfinite(relative)
    safe = np.where(steered & np.isfinite(chosen), chosen, 0.0)
    diverged = statistics.diverged
    # nothing is learned from a loss that is not a number: hold, and brake
    safe[diverged] = 0.0
    so_far = np.where(steered, relative, 0.0)
    so_far[:, LEARNING_RATE] -= np.where(steered[:, LEARNING_RATE], schedule_now, 0.0)
    left = np.minimum(BRAKE_FLOOR - so_far[diverged, LEARNING_RATE], 0.0)
    brake = np.where(steered[diverged, LEARNING_RATE], np.maximum(BRAKE, left), 0.0)
    safe[diverged, LEARNING_RATE] = brake
    within = np.clip(safe, -MAX_DELTA, MAX_DELTA)

    # a job that is outside already (its owner moved the value) may come back, not go further
    low, high = np.minimum(-MAX_TOTAL, so_far), np.maximum(MAX_TOTAL, so_far)
    final = np.where(within == 0.0, 0.0, np.clip(so_far + within, low, high) - so_far)

    delta = final.copy()
    delta[:, LEARNING_RATE] += np.where(
        steered[:, LEARNING_RATE], schedule_next - schedule_now, 0.0
    )
    reasons = tuple(
        _reasons(chosen[i], safe[i], within[i], final[i], steered[i], bool(diverged[i]))
        for i in range(len(chosen))
    )
    return Decision(delta=delta, action_delta=final, schedule=schedule_next, reasons=reasons)


def _reasons(
    chosen: FloatArray,
    safe: FloatArray,
    within: FloatArray,
    final: FloatArray,
    steered: FloatArray,
    diverged: bool,
) -> tuple[str, ...]:
    out = ["non-finite-statistics"] if diverged else []
    for j, name in enumerate(CONTROL_NAMES):
        if not steered[j] and chosen[j] != 0.0:
            out.append(f"not-steered:{name}")
        if within[j] != safe[j]:
            out.append(f"per-decision-bound:{name}")
        if abs(final[j] - within[j]) > 1e-12:
            out.append(f"total-bound:{name}")
    return tuple(out)
