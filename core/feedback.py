"""A feedback loop under a policy: the weight decay follows the slope of the held-out loss.

As the default schedule does for the learning rate, it does what needs no learning: where smaller
weights would generalise better at the moment (`core.statistics.slope` above 0), it raises the
decay, where larger ones would, it lowers it. The policy's own moves ride on top. It sees its own
moves alone: the features leave out what feedback did, or a policy that has a decay in mind would
take it back.

In control engineering an integral controller; the error that it integrates is one part of the
hypergradient of the decay (Bengio, 2000, Neural Computation 12(8); Baydin et al., 2018,
arXiv:1703.04782, who move a learning rate by its own).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .actions import COLUMN
from .errors import ConfigurationError
from .statistics import Statistics
from .types import FloatArray

#: The column of controls that is moved.
DECAY = COLUMN["weight_decay"]


@dataclass(frozen=True)
class Feedback:
    """How much the slope moves the weight decay.

    Attributes:
        gain: By how much the log of the decay would move over a whole run, if the slope were 1
            throughout. A share of the run moves it by that share of this, so that it does not
            matter how often a job asks.
        limit: The slope counts within plus and minus this.
    """

    gain: float
    limit: float = 1.0

    def __post_init__(self) -> None:
        for name, value, most in (("gain", self.gain, 1e3), ("limit", self.limit, 1e2)):
            sound = isinstance(value, int | float) and not isinstance(value, bool)
            if not sound or not math.isfinite(value) or not 0.0 < value <= most:
                raise ConfigurationError(
                    f"The {name} of a feedback is {value!r}; a number above 0 and up to {most:g} "
                    "is wanted. Without feedback, give none."
                )

    @classmethod
    def read(cls, given: Feedback | Mapping[str, Any] | None) -> Feedback | None:
        """A feedback, or what `to_json` made of it, or None.

        Raises:
            ConfigurationError: It is none of these.
        """
        if given is None or isinstance(given, cls):
            return given
        try:
            return cls(**given)  # type: ignore[arg-type]
        except TypeError as error:
            raise ConfigurationError(
                f"A feedback is {given!r}: {error}. gain and limit are wanted, or nothing."
            ) from error

    def move(self, statistics: Statistics, share: FloatArray) -> FloatArray:
        """By how much the log of the decay is to move, `(K,)`; 0 where no slope was told.

        Args:
            statistics: Of the interval that just ended.
            share: `(K,)` fraction of the run that one interval takes.
        """
        slope = np.nan_to_num(statistics["valid_slope"], nan=0.0)
        return np.asarray(self.gain * share * np.clip(slope, -self.limit, self.limit))

    def to_json(self) -> dict[str, float]:
        """As a JSON object."""
        return asdict(self)
