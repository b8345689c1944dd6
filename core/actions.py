"""From a policy's output to a decision: choices to deltas, deltas to bounded moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .controls import CONTROL_NAMES, CONTROLS, Control
from .errors import ControlError
from .types import FloatArray, IntArray

N_CONTROLS = len(CONTROL_NAMES)
COLUMN: dict[str, int] = {name: j for j, name in enumerate(CONTROL_NAMES)}


@dataclass(frozen=True)
class Decision:
    """What K runs are told to do, in the order of `CONTROL_NAMES`.

    Attributes:
        delta: `(K, controls)` move of each control: log of a factor, or a logit shift. 0 is hold.
        action_delta: `(K, controls)` the policy's own part of `delta`: bounded, without schedule.
        schedule: `(K,)` log multiplier of the default schedule once `delta` is applied; the job
            hands it back with its next report (`Situation.schedule`).
        reasons: Per run, why `delta` differs from what the policy chose; empty where it does not.
    """

    delta: FloatArray
    action_delta: FloatArray
    schedule: FloatArray
    reasons: tuple[tuple[str, ...], ...]

    @classmethod
    def hold(
        cls, n_runs: int = 1, reason: str | None = None, *, schedule: FloatArray | None = None
    ) -> Decision:
        """Change nothing; `schedule` (0 if not given) is where the default schedule stands."""
        zero = np.zeros((n_runs, N_CONTROLS))
        stands = np.zeros(n_runs) if schedule is None else np.asarray(schedule, np.float64)
        return cls(zero, zero, stands, ((reason,) if reason else (),) * n_runs)

    def row(self, i: int) -> Decision:
        """One run's decision."""
        rows = slice(i, i + 1)
        return Decision(
            self.delta[rows], self.action_delta[rows], self.schedule[rows], (self.reasons[i],)
        )

    def is_hold(self, row: int = 0) -> bool:
        """Whether nothing changes for this run."""
        return not np.any(self.delta[row])

    def moves(self, row: int = 0) -> dict[str, float]:
        """The factor (`scale`) or shift (`logit_shift`) of every control of one run, by name."""
        return {
            name: float(np.exp(d)) if CONTROLS[name].kind == "scale" else float(d)
            for name, d in zip(CONTROL_NAMES, self.delta[row], strict=True)
        }


def noop(controls: tuple[Control, ...], n_runs: int) -> IntArray:
    """The action that holds every control: `(K, len(controls))` indices."""
    return np.tile(np.array([control.noop for control in controls], np.int64), (n_runs, 1))


def action_deltas(action: IntArray, controls: tuple[Control, ...]) -> FloatArray:
    """Deltas of chosen indices: `(K, len(controls))` to `(K, all controls)`, 0 where not steered.

    Raises:
        ControlError: The action has another width, or an index without a choice.
    """
    action = np.asarray(action)
    if action.ndim != 2 or action.shape[1] != len(controls) or action.dtype.kind not in "iu":
        raise ControlError(
            f"An action of shape {action.shape} and type {action.dtype} came; (K, {len(controls)}) "
            f"is wanted, one whole index for each of {', '.join(c.name for c in controls)}."
        )
    out = np.zeros((action.shape[0], N_CONTROLS))
    for j, control in enumerate(controls):
        index = action[:, j]
        outside = index[(index < 0) | (index >= len(control.choices))]
        if outside.size:
            raise ControlError(
                f"Action index {int(outside[0])} for {control.name!r}; it has the choices "
                f"0 to {len(control.choices) - 1}."
            )
        out[:, COLUMN[control.name]] = control.deltas[index]
    return out


def apply(values: Mapping[str, float], decision: Decision, row: int = 0) -> dict[str, float]:
    """One job's hyperparameters after a decision; the names given are the controls steered.

    >>> apply({"learning_rate": 0.1}, Decision.hold())
    {'learning_rate': 0.1}
    """
    return {
        name: float(CONTROLS[name].apply(np.asarray(value), decision.delta[row, COLUMN[name]]))
        for name, value in values.items()
    }
