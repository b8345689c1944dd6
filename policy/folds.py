"""Leaving families out: how to judge a recipe by families that a policy of it never met.

The evaluation families are few. Of the training families there are many, so a recipe is judged by
training it several times, each time without a part of them, and reading each policy on its part
(cross-validation, Stone, 1974). What ships is then trained on all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from ..core.errors import ConfigurationError
from ..inner_tasks.registry import get_family

#: Data sets that are made of another's examples; they count as that one.
MADE_OF = {"glyph-halves": "glyphs", "noisy-waves": "waveforms"}


def source(family: str) -> str:
    """What a family's data are drawn from; families of one source are never apart."""
    dataset = get_family(family).dataset
    return MADE_OF.get(dataset, dataset)


def folds(families: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Families in `n` parts of about equal size, those that share their data in one part.

    Raises:
        ConfigurationError: Less than two parts, or more than there are data sets.
    """
    kin: dict[str, list[str]] = defaultdict(list)
    for family in families:
        kin[source(family)].append(family)
    if not 2 <= n <= len(kin):
        raise ConfigurationError(
            f"{n} folds; from 2 to {len(kin)} are possible, one for each data set at most."
        )
    parts: list[list[str]] = [[] for _ in range(n)]
    for _, group in sorted(kin.items(), key=lambda item: (-len(item[1]), item[0])):
        min(parts, key=len).extend(group)
    return [tuple(family for family in families if family in part) for part in parts]


def fold(families: Sequence[str], which: str) -> tuple[str, ...]:
    """The families of one part, e.g. "2/4": the second of four.

    Raises:
        ConfigurationError: No such part.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", which)
    if match:
        number, n = int(match[1]), int(match[2])
        parts = folds(families, n)
        if 1 <= number <= n:
            return parts[number - 1]
    raise ConfigurationError(f"fold is {which!r}; K/N with K from 1 to N is wanted, such as 2/4.")
