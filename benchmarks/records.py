"""What the bench keeps: one row per finished run, in a file that an interrupted run reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Evaluations on `outer_valid` in a run's curve, evenly spread, the last one at its end.
CURVE = 50


@dataclass(frozen=True)
class Row:
    """One finished run; a line of the raw results.

    Attributes:
        arm: Name of the arm.
        tier: Name of the tier.
        task: Name of the task.
        steps: Length of the run.
        seed: Of weights and data order.
        offset: Decades from the best rate at the start; None where the arm has no such start.
        rate: Starting learning rate; None where there is none to speak of.
        loss: Final `outer_valid` loss; for a task with selection "best" the lowest of the curve.
            None if the run diverged.
        test_loss: On `test`, at the same step as `loss`.
        curve: `outer_valid` loss after every `steps / CURVE` steps; None where not finite.
        cpu_ms: CPU milliseconds per step, the policy's share and waiting server's calls included.
        plain_ms: The same of torch.optim.AdamW on this task, measured just before.
        stamp: Of everything that the row depends on; rows of another stamp are made anew.
    """

    arm: str
    tier: str
    task: str
    steps: int
    seed: int
    offset: int | None
    rate: float | None
    loss: float | None
    test_loss: float | None
    curve: tuple[float | None, ...]
    cpu_ms: float | None
    plain_ms: float | None
    stamp: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "curve": list(self.curve)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        """The row that `to_json` wrote."""
        return cls(**{**value, "curve": tuple(value["curve"])})


class Results:
    """Raw rows in a JSONL file, one line per finished run, read back when a bench goes on.

    Args:
        path: The file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, Any] = {}
        self._cut = False
        if path.exists():
            text = path.read_text()
            self._cut = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    row = json.loads(line)
                    self._lines[row["id"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line that was cut when a bench was stopped: that run is made again

    def get(self, name: str) -> Any | None:
        """What was put under this name."""
        return self._lines.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value; it is on disk when this returns."""
        self._lines[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"id": name, "value": value}, allow_nan=False) + "\n"
        with self.path.open("a") as file:
            file.write("\n" + line if self._cut else line)
        self._cut = False


def evaluation_steps(steps: int) -> tuple[int, ...]:
    """Steps after which a run is evaluated: `CURVE` of them, the last one its end.

    A run shorter than `CURVE` steps is evaluated several times at the same step.
    """
    return tuple(max(1, round(steps * (i + 1) / CURVE)) for i in range(CURVE))
