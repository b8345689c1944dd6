"""What numbers a setting may have, so that a wrong one is refused before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..core.errors import ConfigurationError


@dataclass(frozen=True)
class Numbers:
    """Finite numbers of a range.

    Attributes:
        low: The smallest.
        high: The largest; infinity is none.
        whole: Whether whole numbers alone are meant.
        above: Whether `low` itself is none of them.
        below: Whether `high` itself is none of them.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number = float(value)
        low = self.low < number if self.above else self.low <= number
        high = number < self.high if self.below else number <= self.high
        return math.isfinite(number) and low and high

    def __str__(self) -> str:
        words = ["a whole number" if self.whole else "a finite number"]
        if math.isfinite(self.low):
            words.append(f"{'above' if self.above else 'of at least'} {self.low:.16g}")
        if math.isfinite(self.high):
            words.append(f"and {'below' if self.below else 'at most'} {self.high:.16g}")
        return " ".join(words)


#: How many there are of something that there must be.
COUNT = Numbers(1, whole=True)
#: How many there are of something that there need not be.
COUNT_OR_NONE = Numbers(0, whole=True)
SHARE = Numbers(0.0, 1.0)
POSITIVE = Numbers(0.0, above=True)
NOT_NEGATIVE = Numbers(0.0)


def check_ranges(config: object, ranges: Mapping[str, Numbers]) -> None:
    """Refuse settings out of their ranges.

    Args:
        config: Whose attributes they are.
        ranges: By the names of attributes.

    Raises:
        ConfigurationError: One is no such number.
    """
    for name, wanted in ranges.items():
        if (value := getattr(config, name)) not in wanted:
            raise ConfigurationError(f"{name} is {value!r}; {wanted} is wanted.")


def check_interval(name: str, value: Any, numbers: Numbers, *, equal: bool = False) -> None:
    """Refuse what are not two numbers, the smaller first.

    Args:
        name: Of the setting.
        value: It.
        numbers: What each of the two may be.
        equal: Whether they may be the same.

    Raises:
        ConfigurationError: They are something else.
    """
    sound = isinstance(value, tuple | list) and len(value) == 2
    if sound and all(number in numbers for number in value):
        low, high = value
        if low < high or (equal and low == high):
            return
    raise ConfigurationError(
        f"{name} is {list(value) if isinstance(value, tuple) else value!r}; two of these are "
        f"wanted, the smaller first: {numbers}."
    )
