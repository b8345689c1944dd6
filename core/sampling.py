"""Which steps and which entries a job measures; everyone who measures follows these two rules.

A policy is trained on statistics that were taken this way, so a job must take them this way too.
"""

from __future__ import annotations

#: Steps measured in one interval, at most.
MAX_MEASURED = 4
#: Measure no oftener than every this many steps.
MEASURE_EVERY = 4
#: Entries of one tensor that are measured, at most.
MAX_ENTRIES = 65_536


def measured_steps(interval: int, every: int = MEASURE_EVERY) -> tuple[int, ...]:
    """Offsets in `[0, interval)` of the steps that are measured: spread evenly, the first is 0.

    At least `every` steps lie between two of them, and there are at most `MAX_MEASURED`.

    >>> measured_steps(100), measured_steps(9), measured_steps(3)
    ((0, 25, 50, 75), (0, 4), (0,))
    """
    n = max(1, min(MAX_MEASURED, interval // every))
    return tuple(k * interval // n for k in range(n))


def stride(numel: int, max_entries: int = MAX_ENTRIES) -> int:
    """Take every so many-th entry of a flattened tensor, so that at most `max_entries` are taken.

    Never even, unless it is 1: widths are mostly powers of two, and an even stride would then see
    a few columns of a matrix only.

    >>> stride(1000), stride(1_000_000)
    (1, 17)
    """
    step = -(-numel // max_entries)
    return 1 if step <= 1 else step | 1
