"""What a Tuner did, one record per decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One decision, as it was carried out.

    Attributes:
        index: Number of the decision in this run; 0 is the opening one.
        step: Optimizer steps done when it was taken.
        progress: Fraction of the run done.
        statistics: What was measured in the interval before, by name; losses are always there.
        moves: Factor (or shift) of every control, by name; what is held reads 1 (or 0).
        reasons: Why moves differ from what the policy chose.
        values: Hyperparameters of the first group afterwards.
        source: "policy", or "hold:CAUSE" when nothing was changed because something failed.
    """

    index: int
    step: int
    progress: float
    statistics: Mapping[str, float]
    moves: Mapping[str, float]
    reasons: tuple[str, ...]
    values: Mapping[str, float]
    source: str
