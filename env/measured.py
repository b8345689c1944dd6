"""What trainings of policies measure before they begin, and comparisons, as it ships.

A training with the defaults wants frontiers of some 300 tasks and good settings of 204 others, an
hour of two cores whose outcome does not depend on who does it. Files are found by the names that
the cache has for them, which hold a digest of everything that they depend on: whoever changes a
task, the protocol or an optimizer finds nothing here, and measures. So does whoever has a processor
that rounds the drawn data otherwise, or another Python whose texts differ.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from ..inner_tasks.registry import family_of

#: Name of a file in the cache to what it holds.
ARCHIVE = Path(__file__).parent / "measured.json.gz"
#: So many frontiers at least tell a family's noise.
FAMILY_TASKS = 4
#: Median of a normal deviate's size.
NORMAL_MEDIAN = NormalDist().inv_cdf(0.75)


@cache
def _archive(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def shipped(name: str) -> Any | None:
    """What the cache's file of this name holds, if it ships with the package."""
    return _archive(ARCHIVE).get(name)


@cache
def family_noise(family: str) -> float | None:
    """What one baseline run's log loss varies by, the family's middle task, from what ships.

    A frontier's own `noise` is of two runs, and as often a tenth of what it should be as not: their
    median over a family's tasks, divided by what it would be of a normal deviate of standard
    deviation 1, is steady, and not moved by a task that differs.

    Returns:
        Standard deviation; None where fewer than `FAMILY_TASKS` frontiers of the family ship.
    """
    found = [
        float(row["noise"])
        for row in _archive(ARCHIVE).values()
        if isinstance(row, dict) and "noise" in row and family_of(row["task"]) == family
    ]
    return median(found) / NORMAL_MEDIAN if len(found) >= FAMILY_TASKS else None


def pack(folder: Path, names: Iterable[str], archive: Path = ARCHIVE) -> int:
    """Write those files of a cache folder that exist, and return how many they are.

    The same files give the same bytes.

    Args:
        folder: A cache folder; what it lacks may be in the archive already.
        names: Of the files that a training reads.
        archive: Replaced.
    """
    before = _archive(archive)
    kept = {}
    for name in sorted(set(names)):
        path = folder / name
        if path.exists():
            kept[name] = json.loads(path.read_text())
        elif name in before:
            kept[name] = before[name]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    archive.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    _archive.cache_clear()
    return len(kept)
