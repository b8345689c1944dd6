"""The arms of the bench, each on the same tasks, initial weights, data order and length.

A steered arm starts a decade above and a decade below its optimizer's best rate, which is the best
of a scan with the no-op policy on the tuning seeds. The policy itself is run by the real `Tuner` in
a real loop; what stands in for it (no-op, random, replay, imitation) by the batched environment,
which a test holds to the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ..core.errors import UnknownNameError
from .records import Row as Row

ADAMW, STEERABLE = "torch.optim.AdamW", "lhopt.SteerableAdamW"
#: Decades from the best rate at which steered arms start.
OFFSETS = (-1, 1)
#: AdamW that nobody tuned.
UNTUNED: Mapping[str, float] = {
    "learning_rate": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "weight_decay": 0.01,
}
#: AdamW's one setting that did best on the training tasks.
TRANSFERRED_FILE = Path(__file__).parent / "transferred.json"
#: The policy's weights after imitation alone, if they ship.
IMITATION_FILE = Path(__file__).parent / "policies" / "imitation.json"

#: "tuner", "http" and "killed": the policy in a real loop, here, over HTTP, and over HTTP to a
#: server that dies half-way; "hold", "random", "replay" and "imitation": what stands in for it;
#: "default": the optimizer's default under the default schedule; "cosine": AdamW at one setting;
#: "library": `loop_arms.LIBRARY`; "tuned": the baseline's own runs.
Kind = Literal[
    "tuner", "http", "killed", "hold", "random", "replay", "imitation",
    "default", "cosine", "library", "tuned",
]  # fmt: skip
SERVED: tuple[Kind, ...] = ("http", "killed")
STEERED: tuple[Kind, ...] = ("tuner", *SERVED, "hold", "random", "replay", "imitation")


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: Stable, in the raw rows.
        label: For people.
        optimizer: What trains.
        kind: How it is run.
        at_default: Whether it starts at its optimizer's default rate, not decades off the best.
        validates: Whether the Tuner is given `validate`, a loss on `inner_valid`.
        averages: Whether it keeps averages too, and the weights used are its `best_weights`.
    """

    name: str
    label: str
    optimizer: str
    kind: Kind
    at_default: bool = False
    validates: bool = False
    averages: bool = False

    @property
    def wants_policy(self) -> bool:
        """Whether its numbers depend on the policy's weights or schedule."""
        return self.kind in STEERED or self.kind == "default"

    @property
    def offsets(self) -> tuple[int | None, ...]:
        """Starts in decades from the best rate; None where there is nothing to start off."""
        return OFFSETS if self.kind in STEERED and not self.at_default else (None,)

    @property
    def has_twin(self) -> bool:
        """Whether the batched engine can train it."""
        return self.kind in ("hold", "random", "replay", "imitation", "default", "cosine")


ARMS: tuple[Arm, ...] = (
    Arm("steerable-policy", "SteerableAdamW + policy (Tuner)", STEERABLE, "tuner"),
    Arm(
        "steerable-policy-default-rate",
        "the same, started at the default rate",
        STEERABLE,
        "tuner",
        at_default=True,
    ),
    Arm(
        "steerable-policy-validated",
        "the first, given validate=: held-out loss and slope",
        STEERABLE,
        "tuner",
        validates=True,
    ),
    Arm(
        "steerable-policy-averaged",
        "that with averages=True: the best weights by the held-out loss",
        STEERABLE,
        "tuner",
        validates=True,
        averages=True,
    ),
    Arm("steerable-policy-http", "the first over HTTP", STEERABLE, "http"),
    Arm("steerable-policy-killed", "the same, server killed half-way", STEERABLE, "killed"),
    Arm("steerable-noop", "SteerableAdamW + no-op policy", STEERABLE, "hold"),
    Arm("steerable-random", "SteerableAdamW + random policy", STEERABLE, "random"),
    Arm("steerable-replay", "SteerableAdamW + replay of the median path", STEERABLE, "replay"),
    Arm("steerable-imitation", "SteerableAdamW + imitation alone", STEERABLE, "imitation"),
    Arm("steerable-default", "SteerableAdamW at its default, no policy", STEERABLE, "default"),
    Arm("adamw-policy", "AdamW + its policy (Tuner)", ADAMW, "tuner"),
    Arm("adamw-noop", "AdamW + no-op policy", ADAMW, "hold"),
    Arm("adamw-transferred", "AdamW cosine, best of the training tasks", ADAMW, "cosine"),
    Arm("adamw-1e-3", "AdamW 1e-3 cosine", ADAMW, "cosine"),
    Arm("schedule-free", "Schedule-Free AdamW 2.5e-3", "schedulefree", "library"),
    Arm("prodigy", "Prodigy, cosine", "prodigyopt", "library"),
    Arm("momo-adam", "MomoAdam 1e-2", "momo", "library"),
    Arm("muon", "Muon 0.02 + AdamW 3e-4, linear", "torch.optim.Muon", "library"),
    Arm("adamw-tuned", "AdamW cosine, tuned (the baseline itself)", ADAMW, "tuned"),
)


@dataclass(frozen=True)
class Tier:
    """Tasks that are run and reported together; `frontier_files.tasks_of` has which.

    Attributes:
        name: On the command line and in rows.
        seeds: Runs per task and start, by arm; an arm that is not here is not run.
        quick: What `--quick` brings these counts down to.
        loops: Whether every arm runs in a real loop, for its CPU time.
    """

    name: str
    seeds: Mapping[str, int]
    quick: int
    loops: bool = False


_NAMES = tuple(arm.name for arm in ARMS)
_ALL = {arm.name: 3 if arm.kind in SERVED else 10 for arm in ARMS}
# what stands in for the policy says nothing about CPU time, which is the point of these tiers
_REAL = dict.fromkeys(
    (
        "steerable-policy", "steerable-policy-default-rate", "steerable-policy-validated",
        "steerable-policy-averaged", "steerable-noop", "steerable-default", "adamw-transferred",
        "adamw-1e-3", "schedule-free", "prodigy", "momo-adam", "muon", "adamw-tuned",
    ),
    3,
)  # fmt: skip
_SMOKE = dict.fromkeys(
    ("steerable-policy", "steerable-noop", "steerable-default", "adamw-1e-3", "adamw-tuned"), 2
)
#: Runs per task and start, by tier and arm.
SEEDS: Mapping[str, Mapping[str, int]] = {
    "small": _ALL,
    "long": _ALL,
    "real": _REAL,
    "real-long": _REAL,
    "smoke": _SMOKE,
}
TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("small", SEEDS["small"], quick=3),
        Tier("long", SEEDS["long"], quick=3),
        Tier("real", SEEDS["real"], quick=1, loops=True),
        Tier("real-long", SEEDS["real-long"], quick=1, loops=True),
        Tier("smoke", SEEDS["smoke"], quick=2),
    )
}


def get_tier(name: str) -> Tier:
    """A tier by name.

    Raises:
        UnknownNameError: There is no such tier.
    """
    if name not in TIERS:
        raise UnknownNameError("tier", name, TIERS)
    return TIERS[name]


def get_arm(name: str) -> Arm:
    """An arm by name.

    Raises:
        UnknownNameError: There is no such arm.
    """
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise UnknownNameError("arm", name, _NAMES)


@cache
def transferred() -> Mapping[str, float]:
    """AdamW's one setting that was chosen on the training tasks."""
    row = json.loads(TRANSFERRED_FILE.read_text())
    return {name: float(row["setting"][name]) for name in UNTUNED}


def adamw_setting(arm: Arm) -> Mapping[str, float]:
    """The setting of an arm of kind "cosine"."""
    return transferred() if arm.name == "adamw-transferred" else UNTUNED
