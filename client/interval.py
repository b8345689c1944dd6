"""Everything measured since the last decision: sampled steps, losses, the move of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.adapters import Adapter
from ..core.sampling import measured_steps
from ..core.statistics import STEP_STATISTICS, Accumulator, Statistics, horizons
from ..core.types import FloatArray
from . import measurement
from .losses import Losses

#: Entries that all tensors together may sample: 16 MB a copy, and three copies live at a time.
MAX_TOTAL = 4 * 2**20
#: What each tensor may sample, however many there are.
MIN_ENTRIES = 256
#: What is measured of the held-out loss around the present weights.
_SHAPE = ("valid_slope", "valid_curvature")


class Interval:
    """Collects one interval's statistics through the optimizer's step hooks.

    Args:
        optimizer: Whose steps.
        adapter: How its values are read.
        length: Steps of an interval.
        every: Measure at most every so many-th step.
        max_entries: Entries of each tensor that are measured.
        epochs: Passes over the training data within an interval, if known.
        labels: Target values of the training data, if known.

    Attributes:
        offset: Steps of this interval that are done, AMP's skipped ones included until `settle`.
        losses: Losses reported in it.
        valid_loss: Latest validation value reported in it.
        valid_slope: Its slope along the weights' size, if that was measured.
        valid_curvature: Its curvature there.
    """

    def __init__(
        self,
        optimizer: Any,
        adapter: Adapter,
        length: int,
        every: int,
        max_entries: int,
        epochs: float | None = None,
        labels: float | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._adapter = adapter
        self._length, self._epochs, self._labels = length, epochs, labels
        self._measured = frozenset(measured_steps(length, every))
        n_params = sum(len(group["params"]) for group in optimizer.param_groups)
        fair = max(MIN_ENTRIES, MAX_TOTAL // max(1, n_params))
        self._max_entries = min(max_entries, fair)
        self.losses = Losses()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.offset = 0
        self.valid_loss: float | None = None
        self.valid_slope: float | None = None
        self.valid_curvature: float | None = None
        self.losses.clear()
        self._sums = Accumulator.empty(1)
        self._waiting: list[measurement.Measured] = []
        self._before: list[measurement.Before] | None = None
        self._skipped: Any = None
        self._moving: list[Any] | None = None
        self._start: list[Any] = []

    def before_step(self, *, closure: bool, measuring: bool) -> None:
        """Sample, if this step is one of those that are measured."""
        self._before = None
        if not measuring or self.offset not in self._measured:
            return
        self._before = measurement.before_step(
            self._optimizer, self._adapter, self._max_entries, closure=closure
        )
        if self._moving is None and self._before:
            self._moving = [row.param for row in self._before]
            self._start = [row.value for row in self._before]

    def after_step(self) -> None:
        """Count the step, and keep its moments if it was sampled."""
        self.offset += 1
        found_inf = getattr(self._optimizer, "found_inf", None)
        if found_inf is not None:
            # fused AMP: whether the step was skipped is known to the device alone; ask it later
            skipped = (found_inf.detach() != 0).sum()
            self._skipped = skipped if self._skipped is None else self._skipped + skipped
        rows, self._before = self._before, None
        if rows:
            measured = measurement.after_step(
                self._optimizer, self._adapter, rows, self._max_entries
            )
            if measured is not None:
                self._waiting.append(measured)

    def settle(self) -> int:
        """Steps of this interval that really happened; waits for the device if AMP skips there."""
        if self._skipped is not None:
            self.offset -= int(self._skipped)
            self._skipped = None
        return self.offset

    def finish(self) -> Statistics:
        """The interval's statistics.

        Raises:
            StatisticsError: No loss was reported.
        """
        self._resolve()
        losses = np.asarray(self.losses.resolve(), np.float64)
        sums = self._sums.add_losses(losses[:, None]) if losses.size else self._sums
        moved = measurement.log_displacement(self._moving or [], self._start, self._max_entries)
        valid = None if self.valid_loss is None else np.array([self.valid_loss])
        others = self._horizons()
        for name in _SHAPE:
            if (value := getattr(self, name)) is not None:
                others[name] = np.array([value])
        return sums.finish(log_displacement=moved, valid_loss=valid, others=others)

    def _horizons(self) -> dict[str, FloatArray]:
        """Of the parameter group with the most entries: the others are biases and the like."""
        groups = self._optimizer.param_groups
        sizes = [sum(p.numel() for p in group["params"]) for group in groups]
        group, n_params = groups[int(np.argmax(sizes))], sum(sizes)
        # a beta of 0 is an average over one step, whoever set it
        value = {name: s.read(group, moved=True) for name, s in self._adapter.slots.items()}

        def of(name: str) -> FloatArray:
            found = value.get(name)
            return np.array([np.nan if found is None else found])

        return horizons(
            self._length,
            learning_rate=of("learning_rate"),
            one_minus_beta1=of("one_minus_beta1"),
            one_minus_beta2=of("one_minus_beta2"),
            weight_decay=of("weight_decay"),
            epochs=self._epochs,
            params_per_label=None if self._labels is None else n_params / self._labels,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the interval stands, as plain numbers and tensors."""
        self._resolve()
        position = {id(p): i for i, p in enumerate(self._params())}
        return {
            "offset": self.offset,
            # not settled: which steps are measured goes by the offset, saved or not
            "skipped": None if self._skipped is None else int(self._skipped),
            "losses": list(self.losses.resolve()),
            "valid_loss": self.valid_loss,
            **{name: getattr(self, name) for name in _SHAPE},
            "sums": self._sums.sums[0].tolist(),
            "n_measured": self._sums.n_measured,
            "moving": None
            if self._moving is None
            else [position[id(p)] for p in self._moving if id(p) in position],
            "start": [
                start
                for p, start in zip(self._moving or [], self._start, strict=True)
                if id(p) in position
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.restart()
        self.offset = int(state["offset"])
        self._skipped = state.get("skipped")  # missing in a checkpoint of before: it was settled
        self.losses.restore(state["losses"])
        self.valid_loss = None if state["valid_loss"] is None else float(state["valid_loss"])
        for name in _SHAPE:
            found = state.get(name)  # missing in a checkpoint of before there was any
            setattr(self, name, None if found is None else float(found))
        sums = np.asarray(state["sums"], np.float64).reshape(1, len(STEP_STATISTICS))
        self._sums = Accumulator(sums, int(state["n_measured"]))
        if state["moving"] is not None:
            params = self._params()
            self._moving = [params[i] for i in state["moving"]]
            self._start = [
                start.to(p.device) for p, start in zip(self._moving, state["start"], strict=True)
            ]

    def _params(self) -> list[Any]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _resolve(self) -> None:
        waiting, self._waiting = self._waiting, []
        for measured in waiting:
            row = measured.resolve()
            if row is not None:
                self._sums = self._sums.add_step(row)
