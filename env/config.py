"""Settings of an environment: which optimizer is steered, from where, and for how long."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..core.controls import CONTROLS, Control, get_controls
from ..core.errors import ConfigurationError, UnknownNameError
from ..core.feedback import Feedback
from ..core.schedules import Schedule
from ..optimizers.steerable_adamw import SteerableAdamW
from ..optimizers.update import ADAMW, STEERABLE, StepRule
from .frontier import SPEED_BOUNDS


@dataclass(frozen=True)
class SteeredOptimizer:
    """An optimizer as an environment trains with it.

    Attributes:
        name: As a Tuner names it, e.g. "torch.optim.AdamW"; a policy trained here carries it.
        rule: The update rule of the engine that equals it.
        start: Where runs start, before the hidden noise, by control.
        noise: Hidden start noise by control: half-width of a log-uniform factor, in decades
            (`scale`), or of a uniform logit shift (`logit_shift`).
        controls: What is steered.
    """

    name: str
    rule: StepRule
    start: Mapping[str, float]
    noise: Mapping[str, float]
    controls: tuple[str, ...]


def _steerable_start() -> dict[str, float]:
    """What `SteerableAdamW` takes when its owner names nothing, by control."""
    given = {n: p.default for n, p in inspect.signature(SteerableAdamW).parameters.items()}
    beta1, beta2 = given["betas"]
    return {
        "learning_rate": given["lr"],
        "one_minus_beta1": round(1.0 - beta1, 12),
        "one_minus_beta2": round(1.0 - beta2, 12),
        "eps": given["eps"],
        "weight_decay": given["weight_decay"],
        "clip_ratio": given["clip_ratio"],
    }


OPTIMIZERS: dict[str, SteeredOptimizer] = {
    row.name: row
    for row in (
        SteeredOptimizer(
            name="torch.optim.AdamW",
            rule=ADAMW,
            start={
                "learning_rate": 3e-3,
                "one_minus_beta1": 0.1,
                "one_minus_beta2": 1e-3,
                "eps": 1e-8,
                "weight_decay": 1e-2,
            },
            noise={
                "learning_rate": 2.0,
                "one_minus_beta1": 0.3,
                "one_minus_beta2": 0.5,
                "eps": 1.0,
                "weight_decay": 1.0,
            },
            controls=("learning_rate", "one_minus_beta1", "one_minus_beta2", "weight_decay"),
        ),
        SteeredOptimizer(
            name="lhopt.SteerableAdamW",
            rule=STEERABLE,
            start=_steerable_start(),
            noise={
                "learning_rate": 1.5,
                "one_minus_beta1": 0.3,
                "one_minus_beta2": 0.5,
                "eps": 1.0,
                "weight_decay": 1.0,
                "clip_ratio": 1.0,
            },
            controls=(
                "learning_rate",
                "one_minus_beta1",
                "one_minus_beta2",
                "weight_decay",
                "clip_ratio",
            ),
        ),
    )
}


def get_optimizer(name: str) -> SteeredOptimizer:
    """A steerable optimizer by name.

    Raises:
        UnknownNameError: No environment trains with it.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class EnvConfig:
    """How episodes are drawn.

    Attributes:
        optimizer: Name in `OPTIMIZERS`.
        schedule: The default shape under the decisions.
        feedback: What else moves under them, a `Feedback` or its fields; None is nothing.
        intervals: Smallest and largest number of intervals of a run (one more than decisions).
        noise_scale: Multiplies the hidden start noise; 0 starts every run at `start`.
        valid_share: Share of episodes whose job reports a validation loss.
        slope_share: Share of those whose job lets the Tuner measure that loss itself, with scaled
            weights too (`Tuner(validate=...)`), which tells its slope.
        epochs_share: Share of episodes whose job tells how often it passes over its data.
        labels_share: Share of episodes whose job tells how many target values its data have.
        valid_examples: Examples of `inner_valid` in such a report.
        averages: Whether a run that tells a slope ends with the best of its averages, chosen by the
            loss on all of `inner_valid` (`core.averages`), as a Tuner's `best_weights` does.
        start: Overrides of the optimizer's start, by control.
        group_size: So many neighbouring runs share seed, data order and hidden start, and differ
            in their decisions alone: common random numbers, so that the mean of the others of a
            group is a sharp baseline of a run's reward. None draws all for every run.
        privileged: Whether the vector environment appends what only a critic may see
            (`env/privileged.py`) to its observations.
        speed_bounds: Octaves of speed that an episode's reward is clipped to. A run that ends worse
            than the tuned baseline in an eighth of the time reads -3 by default, however bad; with
            a deeper bound a learner can tell bad from worse.
    """

    optimizer: str = "torch.optim.AdamW"
    schedule: Schedule = field(default_factory=Schedule)
    feedback: Feedback | None = None
    intervals: tuple[int, int] = (25, 40)
    noise_scale: float = 1.0
    valid_share: float = 0.5
    slope_share: float = 0.5
    epochs_share: float = 0.75
    labels_share: float = 0.75
    valid_examples: int = 128
    averages: bool = False
    start: Mapping[str, float] = field(default_factory=dict)
    group_size: int | None = None
    privileged: bool = False
    speed_bounds: tuple[float, float] = SPEED_BOUNDS

    def __post_init__(self) -> None:
        bounds = self.speed_bounds
        sound = isinstance(bounds, tuple | list) and len(bounds) == 2
        sound = sound and all(isinstance(x, int | float) for x in bounds)
        if not sound or not -np.inf < bounds[0] < bounds[1] < np.inf:
            raise ConfigurationError(
                f"speed_bounds is {bounds!r}; two finite numbers are wanted, the smaller first."
            )
        for name in ("valid_share", "slope_share", "epochs_share", "labels_share"):
            share = getattr(self, name)
            if not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
                raise ConfigurationError(
                    f"{name} is {share!r}; a share of the episodes is wanted, from 0 to 1."
                )
        if not isinstance(self.averages, bool):
            raise ConfigurationError(f"averages is {self.averages!r}; True or False is wanted.")
        if not _whole(self.valid_examples, 1):
            raise ConfigurationError(
                f"valid_examples is {self.valid_examples!r}; a whole number of at least 1 is "
                "wanted."
            )
        if not isinstance(self.noise_scale, int | float) or not 0.0 <= self.noise_scale < np.inf:
            raise ConfigurationError(
                f"noise_scale is {self.noise_scale!r}; a finite number of at least 0 is wanted."
            )
        pair = isinstance(self.intervals, tuple | list) and len(self.intervals) == 2
        if not (
            pair
            and all(_whole(n, 2) for n in self.intervals)
            and self.intervals[0] <= self.intervals[1] <= 129
        ):
            raise ConfigurationError(
                f"intervals is {self.intervals!r}; two whole numbers from 2 to 129 are wanted, the "
                "smaller first: a run has one decision fewer than intervals."
            )
        if self.group_size is not None and not _whole(self.group_size, 2):
            raise ConfigurationError(
                f"group_size is {self.group_size}; a group has at least 2 runs, or None draws each "
                "run by itself."
            )
        self._check_start()
        object.__setattr__(self, "feedback", Feedback.read(self.feedback))

    def _check_start(self) -> None:
        known = self.steered.start
        for name, value in self.start.items():
            if name not in known:
                raise ConfigurationError(
                    f"start has {name!r}, which {self.optimizer} does not start with. It does with "
                    f"{', '.join(known)}."
                )
            low, high = CONTROLS[name].low, CONTROLS[name].high
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigurationError(
                    f"start has {name} {value!r}; a number from {low:g} to {high:g} is wanted."
                )

    @property
    def steered(self) -> SteeredOptimizer:
        """The optimizer's description."""
        return get_optimizer(self.optimizer)

    @property
    def controls(self) -> tuple[Control, ...]:
        """What actions steer, in order."""
        return get_controls(self.steered.controls)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "controls": list(self.steered.controls)}
