"""How much the batched engine saves: runs x steps per second against one run after another.

The rival is a plain loop with torch.optim.AdamW(fused=True) over the same task, one run at a time.
Both are timed in one process on one thread, in turns, in CPU time: what else the machine does
then moves both, or neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, BatchOrder, initial_params
from ..inner_tasks.registry import get_task
from ..optimizers.update import ADAMW, STEERABLE

WIDTHS = (1, 8, 32, 128)
#: Numbers of runs on an accelerator, and tasks: an MLP, a CNN and a recurrent net.
DEVICE_WIDTHS = (128, 1024, 8192)
DEVICE_CASES = ("digits-mlp", "digits-cnn", "char-gru")


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        label: For people.
        task: Name of the inner task.
        wanted: Ratio at the largest K that the engine must reach.
    """

    label: str
    task: str
    wanted: float


CASES: tuple[Case, ...] = (
    Case("MLP 64-32-10, batch 32", "digits-mlp", 5.0),
    Case("strided CNN 8-16, batch 32", "digits-cnn", 4.0),
)


@dataclass(frozen=True)
class Speed:
    """What one case came to.

    Attributes:
        case: Which.
        alone: Steps per CPU second of the plain loop, median.
        batched: Runs x steps per CPU second by K, median.
        ratios: By K, the median over rounds of the ratio within the round.
    """

    case: Case
    alone: float
    batched: dict[int, float]
    ratios: dict[int, float]

    @property
    def reached(self) -> bool:
        """Whether the ratio at the largest K is what it must be."""
        return self.ratios[max(self.ratios)] >= self.case.wanted


class Alone:
    """One run in a plain loop."""

    def __init__(self, task: InnerTask, seed: int = 0) -> None:
        self._task = task
        self._arrays = task.arrays("train")
        self._order = BatchOrder(seed, len(self._arrays[0]), task.batch_size)
        initial = initial_params(task, seed)
        self._params = {name: torch.nn.Parameter(p) for name, p in initial.items()}
        self._optimizer = torch.optim.AdamW(self._params.values(), lr=1e-3, fused=True)

    def advance(self, n_steps: int) -> None:
        """Train for so many steps."""
        for index in torch.from_numpy(self._order.take(n_steps)):
            batch = tuple(array.index_select(0, index) for array in self._arrays)
            self._optimizer.zero_grad()
            self._task.loss(self._params, batch).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()


def measure(
    case: Case,
    *,
    widths: Sequence[int] = WIDTHS,
    rounds: int = 7,
    steps: int = 40,
) -> Speed:
    """Time one case, in turns.

    Args:
        case: Which.
        widths: Numbers of runs K.
        rounds: Turns; the median counts.
        steps: Steps of the engine per turn; the plain loop takes five times as many.
    """
    task = get_task(case.task)
    alone = Alone(task)
    batches = {k: BatchedRuns(task, list(range(k))) for k in widths}
    alone.advance(5)
    for runs in batches.values():
        runs.advance(3)
    plain: list[float] = []
    rates: dict[int, list[float]] = {k: [] for k in widths}
    for _ in range(rounds):
        plain.append(5 * steps / _seconds(lambda: alone.advance(5 * steps)))
        for k, runs in batches.items():
            seconds = _seconds(lambda runs=runs: runs.advance(steps))  # type: ignore[misc]
            rates[k].append(k * steps / seconds)
    ratios = {
        k: float(np.median(np.array(values) / np.array(plain))) for k, values in rates.items()
    }
    medians = {k: float(np.median(values)) for k, values in rates.items()}
    return Speed(case, float(np.median(plain)), medians, ratios)


def lines(speed: Speed) -> Iterator[str]:
    """What is printed about a case."""
    yield f"{speed.case.label} ({speed.case.task})"
    yield f"  one at a time, AdamW(fused=True)  {speed.alone:>9,.0f} runs x steps/s"
    for k, rate in speed.batched.items():
        yield f"  engine, K = {k:<4}                   {rate:>9,.0f} runs x steps/s  " + (
            f"x{speed.ratios[k]:.1f}"
        )
    k, wanted = max(speed.ratios), speed.case.wanted
    ratio = speed.ratios[k]
    verdict = "reached" if speed.reached else f"MISSED by {1.0 - ratio / wanted:.0%}"
    yield f"  bar: x{wanted:g} at K = {k}: {verdict}"


def on_device(
    device: str,
    *,
    widths: Sequence[int] = DEVICE_WIDTHS,
    steps: int = 60,
    rounds: int = 3,
    cases: Sequence[str] = DEVICE_CASES,
) -> Iterator[str]:
    """Wall-clock rates of the engine on an accelerator, beside one CPU thread at its best K.

    In one process, in turns; medians. The rules are those that policies are trained on.

    Args:
        device: As torch names it.
        widths: Numbers of runs K on the device.
        steps: Steps per turn.
        rounds: Turns.
        cases: Names of tasks.
    """
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else device
    yield f"{name}: wall clock, AdamW and SteerableAdamW; x: against one CPU thread, K = 128\n"
    for case in cases:
        task = get_task(case)
        yield case
        for label, rule in (("AdamW", ADAMW), ("SteerableAdamW", STEERABLE)):
            rates: dict[str, list[float]] = {}
            cells = [("cpu", 128), *((device, k) for k in widths)]
            batches = [BatchedRuns(task, range(k), rule=rule, device=d) for d, k in cells]
            for batch in batches:
                batch.advance(3)
            for _ in range(rounds):
                for (d, k), batch in zip(cells, batches, strict=True):
                    began = time.perf_counter()
                    batch.advance(steps)  # waits for the losses of every step
                    rate = k * steps / (time.perf_counter() - began)
                    rates.setdefault(f"{d} {k}", []).append(rate)
            medians = {cell: float(np.median(found)) for cell, found in rates.items()}
            base = medians["cpu 128"]
            for cell, rate in medians.items():
                yield f"  {label:<15} {cell:<12} {rate:>12,.0f} runs x steps/s  x{rate / base:.1f}"


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
