"""The batched engine: K runs of one inner task at once, each with its own seed and settings.

Parameters of all runs are one flat `(K, P)` tensor; gradients come from `torch.func`, recorded
(`tracing.py`), updates from `optimizers/update.py`. On one core this is several times the rate of
one run after another (`lhopt bench engine` prints it); buckets should hold 32 runs or more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ..core.averages import LAST, LONG, MIXES, OWN, SHORT, Mix, pick, share, stride
from ..core.controls import CONTROL_NAMES
from ..core.errors import ConfigurationError
from ..core.moments import MOMENTS, tensor_moments
from ..core.statistics import SLOPE_STEP, curvature, slope
from ..core.types import BoolArray, FloatArray, IntArray
from ..optimizers.blocks import Scratch, matrices
from ..optimizers.numbers import cast
from ..optimizers.update import (
    ADAMW,
    Hyperparameters,
    MatrixFactors,
    RunState,
    StepRule,
    begin_step,
    corrections,
    update_block,
)
from .base import Batch, InnerTask, Split
from .tracing import gradient

#: Rows that are evaluated at once.
CHUNK = 64


@dataclass
class Settings:
    """Hyperparameters of K runs as numpy arrays `(K,)`, float64; scalars stand for all runs."""

    learning_rate: FloatArray | float = 1e-3
    one_minus_beta1: FloatArray | float = 0.1
    one_minus_beta2: FloatArray | float = 1e-3
    eps: FloatArray | float = 1e-8
    weight_decay: FloatArray | float = 1e-2
    clip_ratio: FloatArray | float = 0.8

    def array(self, name: str, n_runs: int) -> FloatArray:
        """One setting of every run, `(K,)`."""
        return np.broadcast_to(np.asarray(getattr(self, name), np.float64), (n_runs,))


@dataclass(frozen=True)
class Measured:
    """What `advance` saw.

    Attributes:
        losses: `(steps, K)` train losses; nan from the step at which a run diverged.
        moments: `(measured, K, tensors, len(MOMENTS))`.
        clipped: `(measured, K)`, nan where nothing clips.
    """

    losses: FloatArray
    moments: FloatArray
    clipped: FloatArray


class BatchOrder:
    """Which training examples a run sees, step by step: a function of its seed alone.

    Draws are with replacement and do not depend on how steps are chunked, on K or on the
    neighbours, so any arm of a comparison can be given the same data in the same order.
    """

    def __init__(self, seed: int, n_examples: int, batch_size: int) -> None:
        self._rng = np.random.default_rng([seed, crc32(b"batch-order")])
        self._n, self._batch = n_examples, batch_size

    def take(self, n_steps: int) -> IntArray:
        """Row numbers of the next steps, `(n_steps, batch_size)`."""
        return (self._rng.random((n_steps, self._batch)) * self._n).astype(np.int64)


def checked_device(name: str) -> torch.device:
    """A device that is there; float32 then means float32 on it, not TF32.

    Raises:
        ConfigurationError: torch does not know the name, or the device is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device is {name!r}; give cpu, or cuda, or cuda:1.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError(f"device is {name!r}, but torch sees no CUDA device here.")
        # matrix products of ten bits of mantissa are another training than the CPU's
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


def initial_params(task: InnerTask, seed: int) -> dict[str, Tensor]:
    """One run's initial parameters: a function of task and seed."""
    generator = torch.Generator().manual_seed(seed * 2654435761 % 2**63 + 1)
    return task.init(generator)


class BatchedRuns:
    """K runs of one task, advanced together.

    A run whose loss stops being finite is frozen: its weights are set to zero and never move
    again, its losses read nan, its neighbours go on at the same speed with the same numbers.

    Args:
        task: What is trained.
        seeds: One per run: initial weights and data order.
        settings: Hyperparameters at the start.
        rule: The update rule.
        device: Where the tensors live; the CPU is the reference.
        averages_over: Steps of the whole run, whose averages are then kept for `choose`; None
            keeps none beside the rule's own.

    Raises:
        ConfigurationError: No seeds, or a device that is not there.
    """

    def __init__(
        self,
        task: InnerTask,
        seeds: Sequence[int],
        settings: Settings | None = None,
        *,
        rule: StepRule = ADAMW,
        device: str = "cpu",
        averages_over: int | None = None,
    ) -> None:
        if not seeds:
            raise ConfigurationError("BatchedRuns got no seeds; give one per run, at least one.")
        self.task, self.rule, self.n_runs = task, rule, len(seeds)
        self.device = checked_device(device)
        inits = [initial_params(task, seed) for seed in seeds]
        self.names = tuple(inits[0])
        self.shapes = tuple(tuple(inits[0][name].shape) for name in self.names)
        self.sizes = tuple(inits[0][name].numel() for name in self.names)
        self.bounds = np.concatenate([[0], np.cumsum(self.sizes)]).tolist()
        flat = torch.stack([torch.cat([p[n].reshape(-1) for n in self.names]) for p in inits])
        self.flat = flat.to(self.device)
        self._momentum = torch.zeros_like(self.flat)
        self._second = torch.zeros_like(self.flat)
        self._average = self.flat.clone() if rule.average else None
        # by horizon; the rule's own average is the short one where it has one, whatever its horizon
        wanted = () if averages_over is None else (LONG,) if rule.average else (SHORT, LONG)
        self._kept = {horizon: self.flat.clone() for horizon in wanted}
        self._stride = stride(averages_over or 1)
        self._chosen: Tensor | None = None
        self._state = RunState.initial(self.flat, self.n_runs)
        self._scratch = Scratch()
        self._matrices = matrices(self.shapes)
        self._train = tuple(a.to(self.device) for a in task.arrays("train"))
        n_examples = len(self._train[0])
        self._orders = [BatchOrder(seed, n_examples, task.batch_size) for seed in seeds]
        self._gradient = gradient(task, self.n_runs, self.device)
        self._evaluate = vmap(task.evaluate, in_dims=(0, None))
        self.alive: BoolArray = np.ones(self.n_runs, bool)
        self._eval_arrays: dict[tuple[Split, int | None], Batch] = {}
        self.set(settings or Settings())

    @property
    def step(self) -> int:
        """Inner steps taken."""
        return self._state.step

    @property
    def n_matrices(self) -> int:
        """Parameters that are matrices to a rule that tells them apart, in their order."""
        return len(self._matrices)

    def set(self, settings: Settings, matrix_factors: MatrixFactors | None = None) -> None:
        """Take new hyperparameters from the next step on.

        Args:
            settings: Of all parameters.
            matrix_factors: Of single matrices, `(K, n_matrices)` each; None is none.
        """
        self.settings, self._matrix_factors = settings, matrix_factors

        def column(name: str) -> Tensor:
            values = settings.array(name, self.n_runs)[:, None].copy()
            return torch.from_numpy(values).to(self.device)

        self._hyper = Hyperparameters(
            lr=column("learning_rate"),
            one_minus_beta1=column("one_minus_beta1"),
            one_minus_beta2=column("one_minus_beta2"),
            eps=column("eps"),
            weight_decay=column("weight_decay"),
            clip_ratio=column("clip_ratio"),
        )

    def params(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Views of the parameters by name, `(K, *shape)` each."""
        flat = self.flat if flat is None else flat
        return {
            name: flat[:, a:b].view(len(flat), *shape)
            for name, shape, a, b in zip(
                self.names, self.shapes, self.bounds, self.bounds[1:], strict=False
            )
        }

    def advance(
        self,
        n_steps: int,
        measured: Sequence[int] = (),
        *,
        learning_rates: FloatArray | None = None,
    ) -> Measured:
        """Train every run for `n_steps`.

        Args:
            n_steps: How many inner steps.
            measured: Offsets, from 0, of the steps at which moments are taken.
            learning_rates: `(n_steps, K)` rates to use instead of the setting, for schedules that
                move every step.
        """
        wanted = set(measured)
        self._chosen = None
        rates, setting = None, self._hyper.lr
        if learning_rates is not None:
            rates = torch.from_numpy(np.array(learning_rates, np.float64)).to(self.device)
        rows = np.stack([order.take(n_steps) for order in self._orders], axis=1)
        index = torch.from_numpy(rows).to(self.device)
        losses = np.full((n_steps, self.n_runs), np.nan)
        moments: list[FloatArray] = []
        clips: list[FloatArray] = []
        for i in range(n_steps):
            batch = self._gather(index[i])
            gradients, loss = self._gradient(self.params(), batch)
            g = torch.cat([gradients[name].reshape(self.n_runs, -1) for name in self.names], 1)
            losses[i] = loss.numpy(force=True)
            self._freeze(~np.isfinite(losses[i]), g)
            losses[i][~self.alive] = np.nan
            if rates is not None:
                self._hyper.lr = rates[i, :, None]
            square = g.square().sum(1, keepdim=True)
            clip, clipped = begin_step(
                self.rule, self._state, self._hyper, square, self.flat.shape[1]
            )
            before = self.flat.clone() if i in wanted else None
            update_block(
                self.rule, self._state, self._hyper, self.flat, g,
                self._momentum, self._second, self._average, self._matrices, clip,
                self._scratch, self._matrix_factors,
            )  # fmt: skip
            if self._kept and self.step % self._stride == 0:
                for horizon, kept in self._kept.items():
                    kept.lerp_(self.flat, share(horizon, self.step // self._stride))
            if before is not None:
                moments.append(self._moments(g, before))
                clips.append(
                    clipped.squeeze(1).numpy(force=True).astype(np.float64)
                    if isinstance(clipped, Tensor)
                    else np.full(self.n_runs, np.nan)
                )
        self._hyper.lr = setting
        n_tensors = len(self.names)
        return Measured(
            losses,
            np.stack(moments) if moments else np.empty((0, self.n_runs, n_tensors, len(MOMENTS))),
            np.stack(clips) if clips else np.empty((0, self.n_runs)),
        )

    def evaluate(
        self,
        split: Split = "outer_valid",
        *,
        limit: int | None = None,
        averaged: bool = True,
        rows: IntArray | None = None,
    ) -> FloatArray:
        """Mean loss of every run on a split, `(K,)`; infinite for diverged runs.

        Args:
            split: Which data.
            limit: Only the first so many examples.
            averaged: Use the averaged weights where the rule keeps them, or what `choose` chose.
            rows: Only these runs, in this order.
        """
        key = (split, limit)
        if key not in self._eval_arrays:
            arrays = self.task.arrays(split)
            self._eval_arrays[key] = tuple(a[:limit].to(self.device) for a in arrays)
        batch = self._eval_arrays[key]
        held = self._average if self._chosen is None else self._chosen
        flat = held if averaged and held is not None else self.flat
        picked = np.arange(self.n_runs) if rows is None else np.asarray(rows)
        if rows is not None:
            flat = flat[torch.from_numpy(picked).to(self.device)]
        total, n = torch.zeros(len(picked), dtype=torch.float64), len(batch[0])
        with torch.no_grad():
            # small enough that the activations of K runs stay in cache; the same on every device,
            # because a net with batch norm takes the statistics of the rows it is given
            for start in range(0, n, CHUNK):
                part = tuple(a[start : start + CHUNK] for a in batch)
                loss: Tensor = self._evaluate(self.params(flat), part)
                total += loss.double().cpu() * len(part[0])
        out = (total / n).numpy()
        return np.where(self.alive[picked] & np.isfinite(out), out, np.inf)

    def slope_and_curvature(
        self, split: Split, *, limit: int | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Slope and curvature of every run's loss along its weights' size, `(K,)` each.

        See `core.statistics.slope` and `curvature`. Of the raw weights, which weight decay acts on,
        not of their average.
        """
        weights, losses = self.flat, []
        try:
            for factor in (1.0 - SLOPE_STEP, 1.0, 1.0 + SLOPE_STEP):
                self.flat = weights * factor
                losses.append(self.evaluate(split, limit=limit, averaged=False))
        finally:
            self.flat = weights
        shrunk, same, grown = losses
        return slope(shrunk, grown), curvature(shrunk, same, grown)

    def choose(self, split: Split, *, limit: int | None = None) -> IntArray:
        """Choose each run's weights among the mixes of its averages; `evaluate` reads them then.

        Until the next step: see `core.averages`.

        Returns:
            `(K,)` positions in `MIXES`.

        Raises:
            ConfigurationError: No averages are kept.
        """
        if not self._kept:
            raise ConfigurationError(
                "choose() of runs that keep no averages; construct them with averages_over."
            )
        losses = np.empty((len(MIXES), self.n_runs))
        for i, mix in enumerate(MIXES):
            self._chosen = self._mixed(mix)
            losses[i] = self.evaluate(split, limit=limit)
        best = pick(losses, OWN if self.rule.average else LAST)
        self._chosen = self.flat.clone()
        for i in np.unique(best):
            rows = torch.from_numpy(np.flatnonzero(best == i)).to(self.device)
            self._chosen[rows] = self._mixed(MIXES[i])[rows]
        return best

    def _mixed(self, mix: Mix) -> Tensor:
        taken = self.step >= self._stride  # before, the averages are those of no step
        long = self._kept[LONG] if taken else self.flat
        short = self._average
        if short is None:
            short = self._kept[SHORT] if taken else self.flat
        # what has no share is not asked: weights that are not finite spoil no other mix
        parts = [s * w for s, w in zip(mix, (self.flat, short, long), strict=True) if s]
        return torch.stack(parts).sum(0)

    def keep(self, rows: IntArray | BoolArray) -> None:
        """Go on with some of the runs only; the others are dropped."""
        index = np.arange(self.n_runs)[rows]
        picked = torch.from_numpy(index).to(self.device)
        self.flat = self.flat[picked]
        self._momentum, self._second = self._momentum[picked], self._second[picked]
        self._average = None if self._average is None else self._average[picked]
        self._kept = {horizon: kept[picked] for horizon, kept in self._kept.items()}
        self._chosen = None if self._chosen is None else self._chosen[picked]
        self._state = self._state.each(lambda t: t[picked])
        self._orders = [self._orders[i] for i in index]
        self.alive = self.alive[index]
        settings = {
            name: self.settings.array(name, self.n_runs)[index].copy() for name in CONTROL_NAMES
        }
        self.n_runs = len(index)
        self._gradient = gradient(self.task, self.n_runs, self.device)
        held = self._matrix_factors
        kept = held and MatrixFactors(held.lr[picked], held.weight_decay[picked])
        self.set(Settings(**settings), kept)

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, next to task, seeds and settings; copied."""

        def held(tensor: Tensor) -> Tensor:
            return tensor.to("cpu", copy=True)

        return {
            "flat": held(self.flat),
            "momentum": held(self._momentum),
            "second": held(self._second),
            "average": None if self._average is None else held(self._average),
            "kept": {horizon: held(kept) for horizon, kept in self._kept.items()},
            "run": self._state.each(held),
            "orders": copy.deepcopy(self._orders),
            "alive": self.alive.copy(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, with the same task, number of runs and rule."""
        self.flat, self._momentum, self._second = (
            state[name].to(self.device) for name in ("flat", "momentum", "second")
        )
        average = state["average"]
        self._average = None if average is None else average.to(self.device)
        self._kept = {h: kept.to(self.device) for h, kept in state.get("kept", {}).items()}
        self._chosen = None
        self._state = state["run"].each(lambda t: t.to(self.device))
        self._orders, self.alive = state["orders"], state["alive"]

    def _gather(self, index: Tensor) -> Batch:
        """Rows of the training arrays: index `(K, B)` to `(K, B, ...)`."""
        # index_select on flat rows: 13 times as fast as fancy indexing
        flat = index.reshape(-1)
        shape = tuple(index.shape)
        return tuple(a.index_select(0, flat).view(*shape, *a.shape[1:]) for a in self._train)

    def _freeze(self, bad: BoolArray, gradient: Tensor) -> None:
        """Stop runs whose loss is not finite, before they touch anything."""
        newly = bad & self.alive
        if newly.any():
            self.alive = self.alive & ~bad
            rows = torch.from_numpy(np.flatnonzero(newly)).to(self.device)
            held = (self.flat, self._momentum, self._second, self._average)
            for tensor in (*held, *self._kept.values()):
                if tensor is not None:
                    tensor[rows] = 0.0
            for part in (self._state.max_norm, self._state.mean_square):
                if isinstance(part, Tensor):  # what has overflowed would stay so
                    part[rows] = 0.0
        if not self.alive.all():
            gradient[torch.from_numpy(~self.alive).to(self.device)] = 0.0

    def _moments(self, gradient: Tensor, before: Tensor) -> FloatArray:
        """Moments of every tensor: `(K, tensors, len(MOMENTS))`."""
        c1, c2 = corrections(self.rule, self._state, self._hyper)
        momentum = self._momentum / cast(c1, before.dtype)
        update = (before - self.flat) / cast(self._hyper.lr, before.dtype)
        adam_like = (self._second / cast(c2, before.dtype)).sqrt() > (
            self._hyper.eps * self._state.gradient_rms
        )
        columns: list[Tensor] = []
        for a, b in zip(self.bounds, self.bounds[1:], strict=False):
            part = slice(a, b)
            columns += tensor_moments(
                gradient[:, part], momentum[:, part], update[:, part], before[:, part],
                adam_like[:, part],
            )  # fmt: skip
        values = torch.stack(columns, 1).double().numpy(force=True)
        values = values.reshape(self.n_runs, len(self.names), len(MOMENTS) - 1)
        numel = np.broadcast_to(
            np.asarray(self.sizes, np.float64)[None, :, None], (*values.shape[:2], 1)
        )
        return np.concatenate([numel, values], axis=2)


def split_params(runs: BatchedRuns, row: int) -> Mapping[str, Tensor]:
    """One run's parameters by name, copied."""
    return {name: value[row].clone() for name, value in runs.params().items()}
