"""A feedback loop under a policy: the weight decay follows the slope of the held-out loss.

As the default schedule does for the learning rate, it does what needs no learning: where smaller
weights would generalise better at the moment (`core.statistics.slope` above 0), it raises the
decay, and where larger ones would, it takes back what it raised. The policy's own moves ride on
top. It sees its own moves alone: the features leave out what feedback did, or a policy that has a
decay in mind would take it back.

How much smaller the weights should be is Newton's step along their size, damped (Levenberg, 1944;
Marquardt, 1963): where the loss is stiff, as in a regression that is nearly exact, a steep slope is
little way, and mostly noise. An integral controller of the decay, whose error is that step; the
slope is one part of the decay's hypergradient (Bengio, 2000, Neural Computation 12(8); Baydin et
al., 2018, arXiv:1703.04782, who move a learning rate by its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
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
    """How the held-out loss moves the weight decay.

    Attributes:
        gain: By how much the log of the decay would move over a whole run, for each unit by which
            the damped step says the weights should shrink. A share of the run moves it by that
            share of this, so that it does not matter how often a job asks, as long as no decision
            meets its own bound: with 200, 0.1 and 15 decisions or more none does.
        damping: Added to the loss's curvature.
        limit: The step counts within plus and minus this.
        floor: The log of the factor on the decay falls no lower than this. At 0 feedback raises the
            decay above the policy's, and takes back what it raised.
    """

    gain: float
    damping: float = 10.0
    limit: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        bounds = {"gain": (0.0, 1e4), "damping": (0.0, 1e4), "limit": (0.0, 1e2)}
        for name, (low, high) in {**bounds, "floor": (-1e2, 0.0)}.items():
            value = getattr(self, name)
            sound = isinstance(value, int | float) and not isinstance(value, bool)
            if not sound or not low <= value <= high or (value == 0.0 and name != "floor"):
                least = f"at least {low:g}" if name == "floor" else f"above {low:g}"
                raise ConfigurationError(
                    f"The {name} of a feedback is {value!r}; a number {least} and up to {high:g} "
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
        names = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or "gain" not in given or set(given) - set(names):
            raise ConfigurationError(
                f"A feedback is {given!r}; gain is wanted, and {', '.join(names[1:])} may be given."
            )
        return cls(**given)

    def move(self, statistics: Statistics, share: FloatArray, moved: FloatArray) -> FloatArray:
        """By how much the log of the decay is to move, `(K,)`; 0 where no slope was told.

        Args:
            statistics: Of the interval that just ended.
            share: `(K,)` fraction of the run that one interval takes.
            moved: `(K,)` how far it was moved so far.
        """
        slope, curvature = statistics["valid_slope"], statistics["valid_curvature"]
        # a loss that bends down along the weights' size has no nearest minimum: the slope decides
        step = slope / (np.maximum(curvature, 0.0) + self.damping)
        wanted = self.gain * share * np.clip(step, -self.limit, self.limit)
        move = np.maximum(moved + wanted, self.floor) - moved
        return np.where(np.isfinite(move), move, 0.0)

    def to_json(self) -> dict[str, float]:
        """As a JSON object."""
        return asdict(self)
