"""The default shape that decisions ride on: a policy that holds still follows it.

A decision moves the learning rate by its own factor times the ratio of two values of this shape,
so that "hold everything" is already a sound schedule and the policy learns only what differs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .errors import ConfigurationError, UnknownNameError
from .types import FloatArray


@dataclass(frozen=True)
class Schedule:
    """Multiplier of the starting learning rate, constant within an interval.

    `kind` "none" is 1 throughout. `kind` "linear" stays at 1 for the share `hold` of the run and
    then decays to `final`, linearly or, with `power`, by the remaining share to that power; read at
    the middle of each interval. Both start with `warmup` intervals that rise geometrically from
    `warmup_from` to 1: a starting rate that is far too high then shows in the statistics before
    it has ruined the weights.

    Attributes:
        kind: Shape after the warm-up.
        warmup: Number of intervals below full rate.
        warmup_from: Multiplier of the first interval.
        final: Where the decay ends, as a multiplier.
        hold: Share of the run before the decay.
        power: Of the decay; 1 is a straight line, above it falls early.
    """

    kind: Literal["none", "linear"] = "linear"
    warmup: int = 2
    warmup_from: float = 0.1
    final: float = 0.0
    hold: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("none", "linear"):
            raise UnknownNameError("schedule", self.kind, ("none", "linear"))
        if self.warmup < 0 or not 0.0 < self.warmup_from <= 1.0 or not 0.0 <= self.final <= 1.0:
            raise ConfigurationError(
                f"Schedule with warmup={self.warmup}, warmup_from={self.warmup_from}, "
                f"final={self.final}: warmup must be >= 0, warmup_from in (0, 1], final in [0, 1]."
            )
        if not 0.0 <= self.hold < 1.0 or not self.power > 0.0:
            raise ConfigurationError(
                f"Schedule with hold={self.hold}, power={self.power}: hold must be in [0, 1), "
                "power above 0."
            )

    @classmethod
    def off(cls) -> Schedule:
        """Multiplier 1 throughout: the job brings its own schedule."""
        return cls(kind="none", warmup=0)

    def log_multiplier(self, progress: FloatArray, share: FloatArray) -> FloatArray:
        """Log of the multiplier during the interval that begins at `progress`.

        Args:
            progress: `(K,)` fraction of the run done when the interval begins, in [0, 1).
            share: `(K,)` fraction of the run that one interval takes.
        """
        progress, share = np.asarray(progress, np.float64), np.asarray(share, np.float64)
        middle = np.minimum(progress + 0.5 * share, 0.5 * (progress + 1.0))
        out = np.zeros(np.broadcast(progress, share).shape)
        if self.kind == "linear":
            left = np.minimum((1.0 - middle) / (1.0 - self.hold), 1.0) ** self.power
            out = out + np.log(np.maximum(self.final + left * (1.0 - self.final), 1e-4))
        if self.warmup:
            index = np.rint(progress / share)
            left = np.maximum(1.0 - index / self.warmup, 0.0)
            out = out + left * np.log(self.warmup_from)
        return out

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for manifests; the digests of older policies know no hold and power."""
        row = asdict(self)
        later = {"hold": 0.0, "power": 1.0}
        return {k: v for k, v in row.items() if later.get(k) != v}
