"""Which steps and which entries are measured: one rule for the environment and the client."""

from __future__ import annotations

#: Measurements per interval: more steady nothing but the noise, and each costs time.
MAX_PER_INTERVAL = 4
#: Entries of one tensor that are measured; larger tensors are sampled at an even stride.
MAX_ENTRIES = 65_536


def measured_steps(interval: int, every: int = 4) -> tuple[int, ...]:
    """Offsets, from 0, of the inner steps of an interval at which statistics are taken.

    At most every `every`-th step and at most `MAX_PER_INTERVAL` an interval, spread evenly; the
    first step of an interval is always among them, so that an interval of any length has some.

    >>> measured_steps(10), measured_steps(100)
    ((0, 4, 8), (0, 25, 50, 75))
    """
    gap = max(every, -(-interval // MAX_PER_INTERVAL))
    return tuple(range(0, interval, gap))


def stride(numel: int, max_entries: int = MAX_ENTRIES) -> int:
    """Stride at which a tensor of `numel` entries is read, so that at most `max_entries` are."""
    return max(1, -(-numel // max_entries))
