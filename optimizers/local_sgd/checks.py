"""Checks of values that several files here take."""

from __future__ import annotations

import math
import operator
from typing import Any

from ...core.errors import ConfigurationError


def whole(name: str, value: Any, also: str = "") -> int:
    """A whole number of at least 1, of any integer type.

    Args:
        name: What the value is called.
        value: What came.
        also: What is allowed besides, e.g. " or None".

    Raises:
        ConfigurationError: It is something else.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ConfigurationError(
            f"{name} is {value!r}; a whole number of at least 1{also} is wanted."
        )
    return number


def rate(learning_rate: float) -> float:
    """A learning rate that a schedule can follow.

    Raises:
        ConfigurationError: It is not finite, or below 0.
    """
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise ConfigurationError(
            f"The learning rate is {learning_rate}; a schedule that follows it needs a finite one "
            ">= 0. Check the scheduler, or use ConstantInterval, or PostLocal with a switch_step."
        )
    return learning_rate
