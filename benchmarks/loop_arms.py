"""Optimizers of the arms that a real loop trains, each as its own documentation recommends it.

Nothing here was chosen by a result on any task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from ..core.errors import MissingExtraError
from ..core.schedules import Schedule
from ..core.types import FloatArray
from ..env.frontier import WARMUP, cosine
from ..inner_tasks.base import InnerTask
from ..optimizers.catalogue import get_entry
from ..optimizers.together import Together
from ..policy.artifact import Policy
from .real import DECISIONS, Recipe, Weights, recipe

#: Muon's rate and momentum, and AdamW's settings for the rest, as the authors' README has them:
#: https://github.com/KellerJordan/Muon
MUON_RATE, MUON_MOMENTUM, MUON_REST = 0.02, 0.95, 3e-4
MUON_BETAS, MUON_DECAY = (0.9, 0.95), 0.01
#: Schedule-Free's, Prodigy's and MomoAdam's rates, as their READMEs have them.
SCHEDULE_FREE_RATE, PRODIGY_RATE, MOMO_RATE = 2.5e-3, 1.0, 1e-2
#: All that the numbers of these arms depend on besides the library's version.
RECIPES: Mapping[str, tuple[Any, ...]] = {
    "schedule-free": (SCHEDULE_FREE_RATE, WARMUP),
    "prodigy": (PRODIGY_RATE, "cosine"),
    "momo-adam": (MOMO_RATE,),
    "muon": (MUON_RATE, MUON_MOMENTUM, MUON_REST, *MUON_BETAS, MUON_DECAY, "linear"),
}


def warm_cosine(steps: int) -> FloatArray:
    """The baseline's own shape: 5% of linear warm-up, cosine to 0."""
    return cosine(np.ones(1), np.array([steps]), 0, steps)[:, 0]


def plain_cosine(steps: int) -> FloatArray:
    """Cosine to 0 without a warm-up: Prodigy finds its own."""
    return np.asarray(0.5 * (1.0 + np.cos(np.pi * np.arange(steps) / steps)))


def linear(steps: int) -> FloatArray:
    """A straight line to 0."""
    return np.asarray(1.0 - np.arange(steps) / steps)


def scheduled(schedule: Schedule, steps: int) -> FloatArray:
    """A default schedule alone, held from decision to decision as a Tuner would."""
    interval = -(-steps // DECISIONS)
    begins = np.arange(0, steps, interval)
    shares = np.full(len(begins), interval / steps)
    return np.exp(np.repeat(schedule.log_multiplier(begins / steps, shares), interval)[:steps])


def adamw_cosine(setting: Mapping[str, float]) -> Recipe:
    """The twin of `batched_arms.adamw_cosine`."""
    return Recipe(
        make=lambda _task, weights, _steps: torch.optim.AdamW(
            weights.values(),
            lr=setting["learning_rate"],
            betas=(setting["beta1"], setting["beta2"]),
            weight_decay=setting["weight_decay"],
        ),
        factors=warm_cosine,
    )


def steerable_default(name: str, schedule: Schedule) -> Recipe:
    """An optimizer at its own default under a default schedule, without a Tuner."""
    return replace(recipe(name), factors=lambda steps: scheduled(schedule, steps))


def _schedule_free() -> Recipe:
    def make(task: InnerTask, weights: Weights, steps: int) -> Optimizer:
        from ..optimizers.libraries import ScheduleFreeAdamW

        warmup = math.ceil(WARMUP * steps)
        optimizer: Optimizer = ScheduleFreeAdamW(
            weights.values(), lr=SCHEDULE_FREE_RATE, warmup_steps=warmup
        )
        return optimizer

    return Recipe(make=make, deployed=get_entry("schedule-free").deployed)


def _prodigy() -> Recipe:
    def make(task: InnerTask, weights: Weights, steps: int) -> Optimizer:
        from ..optimizers.libraries import Prodigy

        optimizer: Optimizer = Prodigy(weights.values(), lr=PRODIGY_RATE)
        return optimizer

    return Recipe(make=make, factors=plain_cosine)


def _momo_adam() -> Recipe:
    def make(task: InnerTask, weights: Weights, steps: int) -> Optimizer:
        try:
            from momo import MomoAdam
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "momo", "optimizers") from error
        optimizer: Optimizer = MomoAdam(list(weights.values()), lr=MOMO_RATE)
        return optimizer

    return Recipe(make=make, takes_loss=True)


def _muon() -> Recipe:
    def make(task: InnerTask, weights: Weights, steps: int) -> Optimizer:
        hidden = hidden_matrices(task, weights)
        children: list[Optimizer] = []
        if hidden:
            children.append(
                torch.optim.Muon(
                    [weights[name] for name in hidden],
                    lr=MUON_RATE,
                    momentum=MUON_MOMENTUM,
                    weight_decay=MUON_DECAY,
                )
            )
        rest = [p for name, p in weights.items() if name not in hidden]
        children.append(
            torch.optim.AdamW(rest, lr=MUON_REST, betas=MUON_BETAS, weight_decay=MUON_DECAY)
        )
        return Together(*children)

    return Recipe(make=make, factors=linear, filters_as_matrices=True)


#: Arms of other libraries, by name.
LIBRARY: Mapping[str, Callable[[], Recipe]] = {
    "schedule-free": _schedule_free,
    "prodigy": _prodigy,
    "momo-adam": _momo_adam,
    "muon": _muon,
}
#: What they are called in the package index, and what they are imported as.
PACKAGES: Mapping[str, str] = {
    "schedule-free": "schedulefree",
    "prodigy": "prodigyopt",
    "momo-adam": "momo-opt",
}
NEEDS: Mapping[str, str] = {
    "schedule-free": "schedulefree",
    "prodigy": "prodigyopt",
    "momo-adam": "momo",
}


def missing(arm: str) -> str | None:
    """The package that an arm needs and that is not installed; None if it can run."""
    module = NEEDS.get(arm)
    return module if module is not None and find_spec(module) is None else None


def hidden_matrices(task: InnerTask, weights: Weights) -> tuple[str, ...]:
    """Names of the weights that Muon is meant for.

    Those of linear layers and convolutions (their filters as matrices), but not of an embedding
    and not of the layer that the forward pass ends with.
    """
    full = task.init(torch.Generator().manual_seed(0))
    shaped = {name: p.view(full[name].shape) for name, p in weights.items()}
    seen = _Order({id(p): name for name, p in shaped.items()})
    rows = tuple(array[:2] for array in task.arrays("train"))
    with torch.no_grad(), seen:
        task.loss(shaped, rows)
    used = list(dict.fromkeys(seen.order))
    return tuple(name for name in used[:-1] if "embed" not in name)


class _Order(TorchFunctionMode):
    """Notes which weights go through a linear layer or a convolution, in their order."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.order: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (F.linear, F.conv2d) and id(args[1]) in self.names:
            self.order.append(self.names[id(args[1])])
        return func(*args, **(kwargs or {}))


def holding(policy: Policy) -> Policy:
    """The same policy with a head that always chooses "hold": the no-op as a Tuner runs it."""
    bias = np.concatenate(
        [
            np.where(control.deltas == 0.0, 1e4, 0.0).astype(np.float32)
            for control in policy.controls
        ]
    )
    weights = {
        **policy.weights,
        "head.weight": np.zeros_like(policy.weights["head.weight"]),
        "head.bias": bias,
    }
    return replace(policy, name="hold", weights=weights)
