"""What an inner task is: a small training problem that many runs share.

A task is written for ONE run: `init` gives one run's parameters, `loss` is a scalar function of
one run's parameters and one batch. The engine (`inner_tasks/engine.py`) stacks K runs and maps
`loss` over them with `torch.func.vmap`, so a task never sees the K.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Split = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Scoring = Literal["last", "best"]

Params = dict[str, Tensor]
Batch = tuple[Tensor, ...]


class InnerTask(ABC):
    """One training problem: data in four splits, an initialisation and a loss.

    The splits keep what each part may see apart: runs train on `train`; the policy may see losses
    on `inner_valid`; rewards and frontiers are losses on `outer_valid`; reports quote `test`, which
    chooses nothing.

    Attributes:
        name: Unique and stable, e.g. "digits-mlp/17"; it keys the frontier cache.
        family: The family's name, e.g. "digits-mlp".
        batch_size: Examples in one inner step.
        loss_scale: What `loss` is multiplied by and `evaluate` is not. A job reports both losses in
            one unit, so an environment multiplies what it reports of `inner_valid` by it.
        selection: Which `outer_valid` loss a bench scores a run by. "last": the one after the last
            step. "best": the lowest of those after every fiftieth of the run, as early stopping
            would keep; for tasks that overfit within their length, and then for every optimizer
            and the baseline alike. Nothing else reads it.
    """

    name: str
    family: str
    batch_size: int
    loss_scale: float = 1.0
    selection: Scoring = "last"

    def __getstate__(self) -> Any:
        """All but the gradients that engines keep here (`tracing.gradient`): a copy has its own."""
        state: Any = super().__getstate__()
        own, slots = state if isinstance(state, tuple) else (state, None)
        own = own and {key: value for key, value in own.items() if key != "_gradients"}
        return own if slots is None else (own, slots)

    @abstractmethod
    def init(self, generator: torch.Generator) -> Params:
        """One run's initial parameters, float32, in a fixed order; same generator, same values."""

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean loss of one run over one batch: a scalar.

        Must work under `torch.func.vmap(torch.func.grad(...))`: no `.item()`, no data-dependent
        control flow, no in-place writes to inputs, no random numbers. What it reads of the task
        must not change once a run has begun: engines record it (`tracing.py`).
        """

    @abstractmethod
    def arrays(self, split: Split) -> Batch:
        """The whole split, as tensors that share their first dimension N."""

    def evaluate(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Loss used on the three held-out splits: a scalar. `loss` unless a task has better.

        A task trained with label noise or a scaled loss evaluates without them; the noisy
        quadratic answers with its exact expectation.
        """
        return self.loss(params, batch)

    def epochs(self, steps: int) -> float:
        """Passes over `train` that so many steps make."""
        return steps * self.batch_size / len(self.arrays("train")[0])

    def n_labels(self) -> int:
        """Target values of `train`: its examples, or their tokens or entries if each has many."""
        return self.arrays("train")[-1].numel()

    def n_params(self) -> int:
        """Number of trained scalars in one run."""
        return sum(p.numel() for p in self.init(torch.Generator().manual_seed(0)).values())


class TaskFamily(ABC):
    """A distribution over inner tasks of one kind: same data and architecture family.

    Attributes:
        name: The family's name, e.g. "digits-mlp".
        dataset: The data's name, e.g. "digits"; the held-out rule compares it.
        architecture: The architecture family, e.g. "mlp"; the held-out rule compares it.
        data_files: Paths under `LHOPT_DATA` that must exist; empty where nothing is needed.
    """

    name: str
    dataset: str
    architecture: str
    data_files: tuple[str, ...] = ()

    @abstractmethod
    def sample(self, seed: int) -> InnerTask:
        """The task drawn with this seed; the same seed gives the same task on every machine."""

    def default(self) -> InnerTask:
        """The family's plain member: no label noise, unit gain and scale, middle width."""
        return self.sample(0)
