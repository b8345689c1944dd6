"""JSON shapes of what travels between a job and a server, and their checks.

JSON has no nan: numbers that are not finite travel as the strings "NaN", "Infinity" and
"-Infinity" (protobuf's JSON rule). A diverged loss is a signal, so it must arrive. Floats are
written with `repr`, so a float64 survives the journey to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .actions import COLUMN, N_CONTROLS, Decision
from .controls import CONTROL_NAMES, CONTROLS
from .errors import ProtocolError, StatisticsError, UnknownNameError
from .features import Situation
from .statistics import Statistics

#: Sent with every session; a server answers only clients of its own version.
WIRE_VERSION = 1
#: Lowest log multiplier of a default schedule: nothing that is served comes near it, and factors
#: made of it stay finite.
MIN_SCHEDULE = -50.0
NON_FINITE: dict[str, float] = {
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}


def encode_number(value: float) -> float | str:
    """A number as JSON may carry it."""
    value = float(value)
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def decode_number(value: Any, where: str) -> float:
    """The number that `encode_number` wrote.

    Raises:
        StatisticsError: Neither a number nor one of the three strings; `true` is no number.
    """
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StatisticsError(
            f"{where} is {value!r}; a number is wanted, or one of the strings "
            f"{', '.join(map(repr, NON_FINITE))}."
        )
    try:
        return float(value)
    except OverflowError as error:
        raise StatisticsError(f"{where} has more digits than a float64 can hold.") from error


def encode_statistics(statistics: Statistics, row: int = 0) -> dict[str, float | str]:
    """One run's statistics; what was not measured is left out."""
    return {name: encode_number(v) for name, v in statistics.to_mapping(row).items()}


def decode_statistics(values: Mapping[str, Any]) -> Statistics:
    """The statistics that `encode_statistics` wrote; raises as `Statistics.from_mapping`."""
    return Statistics.from_mapping(
        {name: decode_number(v, f"Statistic {name!r}") for name, v in values.items()}
    )


def encode_situation(situation: Situation, row: int = 0) -> dict[str, Any]:
    """Where one run stands; controls that the job does not steer are left out."""
    return {
        "progress": float(situation.progress[row]),
        "share": float(situation.share[row]),
        "schedule": float(situation.schedule[row]),
        "relative": {
            name: float(value)
            for name, value in zip(CONTROL_NAMES, situation.relative[row], strict=True)
            if np.isfinite(value)
        },
    }


def decode_situation(
    *, progress: float, share: float, schedule: float, relative: Mapping[str, float]
) -> Situation:
    """The situation that `encode_situation` wrote.

    Raises:
        UnknownNameError: `relative` names no control.
        StatisticsError: A number is outside its range.
    """
    if not 0.0 < progress <= 1.0 or not 0.0 < share <= 1.0:
        raise StatisticsError(
            f"progress is {progress} and share is {share}; both must lie in (0, 1]: the fraction "
            "of the run that is done, and the fraction that one interval takes."
        )
    if not MIN_SCHEDULE <= schedule <= 1e-9:
        raise StatisticsError(
            f"schedule is {schedule}; the log multiplier that the last decision answered is "
            f"wanted, in [{MIN_SCHEDULE:g}, 0]. Send back what came, 0 if nothing did."
        )
    row = np.full((1, N_CONTROLS), np.nan)
    for name, value in relative.items():
        if not -1e3 <= value <= 1e3:
            raise StatisticsError(
                f"{name!r} is {value}; a finite log-factor or logit shift is wanted."
            )
    for name, value in relative.items():
        if name not in COLUMN:
            raise UnknownNameError("control", name, CONTROLS)
        row[0, COLUMN[name]] = value
    return Situation(
        progress=np.array([progress]),
        share=np.array([share]),
        relative=row,
        schedule=np.array([schedule]),
    )


def encode_decision(decision: Decision, row: int = 0) -> dict[str, Any]:
    """One run's decision: per control the exact delta, and the factor or shift for readers."""
    moves = {}
    for name, value in decision.moves(row).items():
        word = "factor" if CONTROLS[name].kind == "scale" else "shift"
        moves[name] = {"delta": float(decision.delta[row, COLUMN[name]]), word: value}
    return {
        "moves": moves,
        "action": {
            name: float(value)
            for name, value in zip(CONTROL_NAMES, decision.action_delta[row], strict=True)
        },
        "schedule": float(decision.schedule[row]),
        "hold": decision.is_hold(row),
        "reasons": list(decision.reasons[row]),
    }


def decode_decision(payload: Any) -> Decision:
    """The decision that `encode_decision` wrote, checked: a client applies nothing else.

    Raises:
        ProtocolError: A member is missing, not a finite number, or outside the control's bound.
    """
    delta, action = np.zeros((1, N_CONTROLS)), np.zeros((1, N_CONTROLS))
    try:
        for name, move in payload["moves"].items():
            delta[0, COLUMN[name]] = _finite(move["delta"], name)
        for name, value in payload["action"].items():
            action[0, COLUMN[name]] = _finite(value, name)
        schedule = _finite(payload["schedule"], "schedule")
        reasons = tuple(str(reason) for reason in payload["reasons"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ProtocolError(
            f"The answer is no decision of wire version {WIRE_VERSION}: {error!r}. "
            "Does the URL lead to an lhopt server of this version?"
        ) from error
    limit = np.array([control.max_delta for control in CONTROLS.values()])
    if (np.abs(action) > limit + 1e-9).any() or np.abs(delta).max() > 50.0 or schedule > 1e-9:
        raise ProtocolError(
            f"The answer moves further than the bounds allow: {payload['moves']}. Nothing of it "
            "is applied."
        )
    return Decision(delta, action, np.array([schedule]), (reasons,))


def _finite(value: Any, where: str) -> float:
    # a range, not isfinite: JSON may carry whole numbers that no float64 holds, and -1e300 is no
    # schedule that a later report could hand back
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e3 <= value <= 1e3:
        raise ValueError(f"{where} is {value!r}")
    return float(value)
