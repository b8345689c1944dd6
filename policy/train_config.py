"""Everything that determines a policy, next to the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError, UnknownNameError
from ..env.config import EnvConfig
from ..env.privileged import VERSION as PRIVILEGED_VERSION
from ..inner_tasks.registry import FAMILIES
from .artifact import Selection, check_selection
from .families import GROUPS, TRAIN_FAMILIES, VALID_FAMILIES, named, weights_by_family
from .imitation import ImitationConfig
from .ppo import PPOConfig
from .ranges import (
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    Numbers,
    check_interval,
    check_ranges,
)

#: Octaves of speed that a run counts in an evaluation: a disaster, or a task that is won anyway, is
#: one run among many.
EVALUATION_BOUNDS: tuple[float, float] = (-2.0, 1.5)
#: Of a run's length: lengths are drawn in tens.
STEPS = Numbers(10, whole=True)
RANGES: dict[str, Numbers] = {
    "valid_per_family": COUNT_OR_NONE,
    "tasks_per_family": COUNT,
    "reward_floor": NOT_NEGATIVE,
    "steps_power": NOT_NEGATIVE,
    "cost_power": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class TrainConfig(PPOConfig):
    """Everything that determines a policy, next to the code.

    Attributes:
        optimizer: What is steered, a name in `env.config.OPTIMIZERS`.
        families: Training families, or groups of them (`policy.families.GROUPS`); those whose data
            is missing are left out, and said so.
        leave_out: Those of them that are not trained on, to judge the recipe by; see `folds`.
        valid_families: Families of the periodic evaluation.
        valid_per_family: Tasks drawn from each of them; without `keep_blunt` those with a
            blunt frontier fall out. Few
            mislead: with 3 each, an evaluation preferred another checkpoint than 18 tasks did.
        reward_bounds: Octaves of speed that a run can earn the learner, at least and at most,
            inside the environment's `speed_bounds`. Without the upper one, tasks that are won
            anyway are worth winning by more; where all runs of a group are below the lower one,
            nothing is learned. An evaluation reads no further than `EVALUATION_BOUNDS` either.
        reward_floor: See `Sb3VecEnv`'s `floor`, in octaves; 0 divides by nothing.
        family_weights: Sampling weights, relative to one another: a factor on how often a family,
            or each family of a group, is drawn; 1 for those that it does not name. A training that
            goes on from what knows most of its families may turn to the others.
        tasks_per_family: Tasks drawn from each.
        keep_blunt: See `build_pool`: train on, and evaluate with, tasks whose tuned baseline gains
            little by more steps too.
        steps: Shortest and longest run, in inner steps.
        steps_power: See `TaskPool`.
        cost_power: See `TaskPool`; the cost of each task is measured once, before the training.
        group_size: See `EnvConfig`; `runs_per_bucket` must be a multiple.
        privileged: See `EnvConfig`: the critic sees what the actor must not.
        n_buckets: Buckets of runs trained at once.
        runs_per_bucket: Runs per bucket.
        imitation: Sizes of the warm start (`ImitationConfig`); None starts PPO from the no-op.
        start: A policy file to begin from instead of imitating: `lhopt train --from`. Of the same
            controls and LSTM size; what it does not read of today's features weighs nothing at
            first, and the critic begins afresh. Or the folder of another training: what it
            exports, and its critic as it is now, so that `critic_warmup` may be 0; it may have
            had other tasks. Its checkpoint is unpickled: take folders from nobody that you would
            not take code from.
        selection: How the exported policy turns probabilities into decisions.
    """

    name: str = "adamw"
    optimizer: str = "torch.optim.AdamW"
    families: tuple[str, ...] = TRAIN_FAMILIES
    leave_out: tuple[str, ...] = ()
    valid_families: tuple[str, ...] = VALID_FAMILIES
    valid_per_family: int = 6
    reward_bounds: tuple[float, float] | None = EVALUATION_BOUNDS
    reward_floor: float = 0.0
    family_weights: Mapping[str, float] = field(default_factory=dict)
    tasks_per_family: int = 8
    keep_blunt: bool = False
    steps: tuple[int, int] = (150, 2000)
    steps_power: float = 1.0
    cost_power: float = 1.0
    group_size: int | None = 8
    privileged: bool = True
    n_buckets: int = 6
    batch_size: int = 1920
    runs_per_bucket: int = 32
    imitation: Mapping[str, Any] | None = field(default_factory=dict)
    start: str | None = None
    selection: Selection = "mean"
    env: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # before the base's: an update's transitions are counted by these
        check_ranges(self, {"n_buckets": COUNT, "runs_per_bucket": COUNT})
        super().__post_init__()
        check_selection(self.selection)
        check_ranges(self, RANGES)
        check_interval("steps", self.steps, STEPS, equal=True)
        if self.group_size and self.runs_per_bucket % self.group_size:
            raise ConfigurationError(
                f"runs_per_bucket is {self.runs_per_bucket}; a multiple of group_size, "
                f"{self.group_size}, is wanted."
            )
        for part in ("families", "leave_out", "valid_families"):
            object.__setattr__(self, part, named(getattr(self, part), part))
            for family in getattr(self, part):
                if family not in FAMILIES:
                    raise UnknownNameError("task family", family, (*FAMILIES, *GROUPS))
        wrong = set(self.leave_out) - set(self.families) or not self.trained
        if self.leave_out and (wrong or set(self.leave_out) & set(self.valid_families)):
            raise ConfigurationError(
                f"leave_out is {', '.join(map(str, self.leave_out))}; some of the training "
                "families are wanted, not all, and none that evaluates: "
                f"{', '.join(self.families)}."
            )
        if both := set(self.trained) & set(self.valid_families):
            raise ConfigurationError(
                f"{', '.join(sorted(both))} in families and in valid_families: a checkpoint that "
                "is chosen by what it was trained on is chosen for having learned it by heart."
            )
        weights_by_family(self.family_weights, self.trained, "family_weights")
        weights = {name: float(weight) for name, weight in self.family_weights.items()}
        object.__setattr__(self, "family_weights", weights)  # 1 and 1.0 are one setting
        self._check_bounds()
        if self.reward_floor and not self.baseline:
            raise ConfigurationError(
                f"reward_floor is {self.reward_floor} and baseline {self.baseline}; above 0 a "
                "baseline is wanted."
            )

    def _check_bounds(self) -> None:
        if self.reward_bounds is not None:
            check_interval("reward_bounds", self.reward_bounds, Numbers())
        bounds = self.env.get("speed_bounds", EnvConfig.speed_bounds)
        check_interval("speed_bounds in env", bounds, Numbers())
        low, high = bounds
        wanted = [EVALUATION_BOUNDS, *([self.reward_bounds] if self.reward_bounds else [])]
        if low > min(b[0] for b in wanted) or high < max(b[1] for b in wanted):
            raise ConfigurationError(
                f"The environment's speed_bounds are {[low, high]}, inside reward_bounds "
                f"({self.reward_bounds}) or {EVALUATION_BOUNDS}: what is paid or evaluated would "
                "be cut unseen. Give wider ones: --set 'env={\"speed_bounds\": [-8.0, 2.0]}'."
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """Families that are trained on."""
        return tuple(family for family in self.families if family not in self.leave_out)

    @property
    def runs(self) -> int:
        """Runs trained at once."""
        return self.n_buckets * self.runs_per_bucket

    def env_config(self) -> EnvConfig:
        """The environment's settings."""
        return EnvConfig(
            optimizer=self.optimizer,
            group_size=self.group_size,
            privileged=self.privileged,
            **self.env,
        )

    def fingerprint(self) -> str:
        """As the base's; the optimizer's rule and start are part of it, which live in the code."""
        steered = self.env_config().steered
        described = {
            "rule": asdict(steered.rule) | steered.rule.meaning(),
            "start": steered.start,
            "noise": steered.noise,
            "critic": PRIVILEGED_VERSION,
        }
        text = super().fingerprint() + json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        row = super().to_json()
        if self.imitation is not None:  # with its defaults: a manifest tells every setting
            row["imitation"] = asdict(ImitationConfig(**self.imitation))
        if not self.family_weights:
            del row["family_weights"]  # or no training from before this setting could be resumed
        # where a file lies on somebody's machine is nobody's business
        row["start"] = self.start and Path(self.start).name
        return row
