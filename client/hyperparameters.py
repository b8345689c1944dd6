"""An optimizer's hyperparameters as we steer them: start, present value, moves, other writers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS, Decision
from ..core.adapters import Adapter, Group, Slot, to_float
from ..core.controls import CONTROLS
from ..core.errors import ResumeError
from ..core.types import FloatArray
from . import schedulers

RATE = "learning_rate"
#: Relative difference below which a value read back is the one we wrote (float32 tensors).
SAME = 1e-6


class Hyperparameters:
    """The steered values of every parameter group.

    Values are kept here in float64, start and present, so that repeated moves do not drift when the
    group holds float32 tensors. With a declared scheduler the learning rate kept here is its base
    value (`initial_lr`): our own factor without the scheduler's.
    """

    def __init__(self, optimizer: Any, adapter: Adapter, scheduler: Any = None) -> None:
        self._optimizer = optimizer
        # an optimizer may have controls that no policy knows (`MORE_CONTROLS`): not ours to watch
        self._slots = {name: slot for name, slot in adapter.slots.items() if name in CONTROLS}
        self.scheduler = scheduler
        self._keep_bases([])
        #: Controls that somebody else was seen to write; never touched again.
        self.lost: set[str] = set()
        self._start: dict[str, list[float | None]] = {}
        self._value: dict[str, list[float | None]] = {}
        self._written: dict[str, list[Any]] = {}
        for name in self._slots:
            values = [self._base(name, group) for group in self.groups]
            if any(value is not None for value in values):
                self._start[name], self._value[name] = values, list(values)
                self._written[name] = [self._slots[name].raw(group) for group in self.groups]
        self._remember()

    @property
    def groups(self) -> Sequence[Group]:
        """The optimizer's groups; read anew, because its `load_state_dict` replaces them."""
        groups: Sequence[Group] = self._optimizer.param_groups
        return groups

    @property
    def names(self) -> tuple[str, ...]:
        """Controls with a value that can be steered, in registry order."""
        return tuple(name for name in CONTROLS if name in self._start)

    def values(self) -> dict[str, float]:
        """What the first group that has it uses now, by control.

        0 where it had a value at the start: a scheduler's end.
        """
        out = {}
        for name in self.names:
            start = dict(enumerate(self._start[name]))
            read = (
                self._now(self._slots[name], group, moved=start.get(i) is not None)
                for i, group in enumerate(self.groups)
            )
            value = next((v for v in read if v is not None), None)
            if value is not None:
                out[name] = value
        return out

    @staticmethod
    def _now(slot: Slot, group: Group, *, moved: bool) -> float | None:
        value, raw = slot.read(group, moved=moved), slot.raw(group)
        if value is None and moved and raw is not None and to_float(raw) == 0.0:
            return 0.0  # nothing that a factor could move, and yet in force
        return value

    def relative(self, steered: Iterable[str]) -> FloatArray:
        """`(1, controls)` delta since the start; nan where not steered."""
        out = np.full((1, N_CONTROLS), np.nan)
        for name in set(steered) - self.lost:
            for value, start in zip(
                self._value.get(name, ()), self._start.get(name, ()), strict=True
            ):
                if value is not None and start is not None:
                    distance = CONTROLS[name].distance(np.asarray(value), np.asarray(start))
                    out[0, COLUMN[name]] = float(distance)
                    break
        return out

    def apply(self, decision: Decision) -> None:
        """Carry out one run's decision, group by group; ratios between groups stay."""
        self._meet_new_groups()
        for name in self.names:
            delta = decision.delta[0, COLUMN[name]]
            if delta != 0.0 and name not in self.lost:
                moved = [
                    None if v is None else float(CONTROLS[name].apply(np.asarray(v), delta))
                    for v in self._value[name]
                ]
                self._write(name, moved)
        self._remember()

    def foreign(self, names: Sequence[str] | None, *, tensors: bool) -> list[str]:
        """Controls that hold another value than the one we wrote; `tensors` asks devices too.

        A scheduler that was declared may write the learning rate; one that has begun since from the
        rate that we wrote will.
        """
        out = []
        for name in self._written if names is None else names:
            written = self._written.get(name, ())
            if name in self.lost or (name == RATE and self.scheduler is not None):
                continue
            if name == RATE and self._taken():
                out.append(name)
                continue
            slot = self._slots[name]
            for group, ours in zip(self.groups, written, strict=False):
                raw = slot.raw(group)
                # while the objects are the same, nobody assigned; tensors may change in place
                if hasattr(raw, "fill_"):
                    if not tensors or raw is None:
                        continue
                elif raw is ours:
                    continue
                if ours is not None and (raw is None or not _same(float(raw), float(ours))):
                    out.append(name)
                    break
        return out

    def factor(self, name: str) -> float:
        """What a control's value has been multiplied by, in the first group that has it."""
        pairs = zip(self._value[name], self._start[name], strict=True)
        return next((v / s for v, s in pairs if v is not None and s is not None), 1.0)

    def give_back(self) -> bool:
        """Take our factor out of the rate, and out of the scheduler that began from it.

        Returns:
            Whether a scheduler did that can be found; nothing is changed if not.
        """
        start, value = self._start[RATE], self._value[RATE]
        back = [s / v if s and v else 1.0 for s, v in zip(start, value, strict=True)]
        if not self._taken() or not schedulers.release(self._optimizer, back):
            return False
        self._value[RATE] = list(start)
        return True

    def _taken(self) -> bool:
        """Whether the rates that we wrote are what an undeclared scheduler began from."""
        ours = [
            (group.get("initial_lr"), value)
            for group, value in zip(self.groups, self._value.get(RATE, ()), strict=False)
            if value is not None
        ]
        return bool(ours) and all(
            initial is not None and _same(float(initial), value) for initial, value in ours
        )

    def state_dict(self) -> dict[str, Any]:
        """Start and present values of every group there is now, for a checkpoint."""
        # groups added since the last decision, as `_meet_new_groups` will find them
        new = {
            name: [self._base(name, group) for group in self.groups[len(values) :]]
            for name, values in self._value.items()
        }
        return {
            "start": {name: [*values, *new[name]] for name, values in self._start.items()},
            "value": {name: [*values, *new[name]] for name, values in self._value.items()},
            "lost": sorted(self.lost),
            "bases": [] if self.scheduler is None else schedulers.bases(self.scheduler),
        }

    def load_state_dict(self, state: dict[str, Any], steered: Collection[str]) -> None:
        """Take the saved values and write them, whether or not the optimizer was restored.

        What is not steered is the optimizer's own, and stays what it holds.

        Raises:
            ResumeError: They are of another number of parameter groups; nothing was taken then.
        """
        for values in state["value"].values():
            if len(values) != len(self.groups):
                raise ResumeError(
                    f"The checkpoint has the values of {len(values)} parameter groups; this "
                    f"optimizer has {len(self.groups)}. Give it the same groups as when the "
                    "checkpoint was saved, in the same order, before loading the Tuner's state."
                )
        self.lost = set(state["lost"])
        for name, values in state["value"].items():
            if name not in self._slots:
                continue
            if name == RATE:
                self._keep_bases(values)
            # what a group holds now, not what we thought: the optimizer may have been restored
            self._value[name] = [self._base(name, group) for group in self.groups]
            self._start[name] = list(state["start"][name])
            if name not in steered:
                continue
            if name not in self.lost:
                self._write(name, list(values), state.get("bases"))
            self._value[name] = list(values)
        self._remember()

    def _base(self, name: str, group: Group) -> float | None:
        if name == RATE and self.scheduler is not None and group.get("initial_lr") is not None:
            return Slot("initial_lr").read(group)
        return self._slots[name].read(group)

    def _keep_bases(self, values: Sequence[float | None]) -> None:
        """See that each group has the base of its rate, which then rides in the optimizer's state.

        ReduceLROnPlateau keeps none, and the present rate has its reductions in it. `values` are
        what a checkpoint has: its optimizer, if of before bases were kept, is at them.
        """
        if self.scheduler is None:
            return
        for i, group in enumerate(self.groups):
            value = values[i] if i < len(values) else None
            if "lr" in group:
                group.setdefault("initial_lr", float(group["lr"]) if value is None else value)

    def _write(
        self,
        name: str,
        moved: list[float | None],
        saved: Sequence[Sequence[float]] | None = None,
    ) -> None:
        if name == RATE and self.scheduler is not None:
            ratios = [
                1.0 if new is None or not old else new / old
                for new, old in zip(moved, self._value[name], strict=True)
            ]
            factors = [1.0 if _same(ratio, 1.0) else ratio for ratio in ratios]
            schedulers.scale(self.scheduler, self.groups, factors, saved)
        else:
            for group, value in zip(self.groups, moved, strict=True):
                if value is not None:
                    self._slots[name].write(group, value)
        self._value[name] = moved

    def _meet_new_groups(self) -> None:
        """Groups added during the run are steered from the value they came with."""
        self._keep_bases(self._value.get(RATE, ()))
        for name, values in self._value.items():
            for group in self.groups[len(values) :]:
                base = self._base(name, group)
                values.append(base)
                self._start[name].append(base)

    def _remember(self) -> None:
        for name in self._written:
            slot = self._slots[name]
            self._written[name] = [
                float(raw) if hasattr(raw := slot.raw(group), "fill_") else raw
                for group in self.groups
            ]


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * max(abs(a), abs(b))
