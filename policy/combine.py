"""Policies made of policies, without training: several as one, and one with feedback.

Several as one: their mean logits, from one network of the same format.

Where trainings err differently, their mean errs less (deep ensembles: Lakshminarayanan et al.,
2017, arXiv:1612.01474); policies of one descent hardly do (docs/training-log.md, entry 37). LSTMs
side by side are an LSTM whose matrices are blocks on a diagonal, so what serves one policy serves
the combination, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.controls import CONTROL_NAMES
from ..core.errors import ConfigurationError
from ..core.features import FEATURES
from ..core.feedback import DECAY, Feedback
from ..core.types import FloatArray
from .artifact import Policy


def combine(policies: Sequence[Policy], name: str) -> Policy:
    """One policy that answers with the mean of several policies' logits.

    Its LSTM is as wide as theirs together, and each remembers what it remembers alone. It reads
    what any of them reads.

    Args:
        policies: Two or more that steer the same controls by the same choices, under one schedule.
        name: The new policy's name.

    Raises:
        ConfigurationError: Fewer than two, one given twice, or they differ in controls, schedule,
            feedback, optimizer or selection.
    """
    digests = [policy.digest for policy in policies]
    if len(digests) < 2 or len(set(digests)) < len(digests):
        raise ConfigurationError(
            f"Got {', '.join(p.name for p in policies) or 'no policy'}; give two or more policies, "
            "each once."
        )
    first = policies[0]
    for policy in policies[1:]:
        differ = [
            part
            for part in ("controls", "schedule", "feedback", "optimizer", "selection")
            if getattr(policy, part) != getattr(first, part)
        ]
        if differ:
            told = (
                " `lhopt policies feedback` puts the one's under the other."
                if "feedback" in differ
                else ""
            )
            raise ConfigurationError(
                f"Policies {first.name!r} and {policy.name!r} differ in {', '.join(differ)}; "
                f"only policies that agree in them can be combined.{told}"
            )
    read = {feature for policy in policies for feature in policy.features}
    features = tuple(feature for feature in FEATURES if feature in read)
    parts = [policy.weights for policy in policies]
    weights = {
        "lstm.weight_ih": _gates([_columns(policy, features) for policy in policies]),
        "lstm.weight_hh": _gates([w["lstm.weight_hh"] for w in parts], diagonal=True),
        "lstm.bias": _gates([w["lstm.bias"] for w in parts]),
        "hidden.weight": _diagonal([w["hidden.weight"] for w in parts]),
        "hidden.bias": np.concatenate([w["hidden.bias"] for w in parts]),
        "head.weight": np.concatenate([w["head.weight"] for w in parts], axis=1) / len(parts),
        "head.bias": np.mean([w["head.bias"] for w in parts], axis=0),
    }
    return Policy(
        name=name,
        features=features,
        controls=first.controls,
        schedule=first.schedule,
        selection=first.selection,
        optimizer=first.optimizer,
        feedback=first.feedback,
        weights={key: value.astype(np.float32) for key, value in weights.items()},
        training={
            "combined": [
                {"name": p.name, "digest": p.digest, "training": dict(p.training)} for p in policies
            ]
        },
    )


def with_feedback(policy: Policy, feedback: Feedback | None, name: str | None = None) -> Policy:
    """The policy with that feedback under its decisions, or without the one that it has.

    It was not trained with it, and need not be: what feedback does is hidden from it. Taken away
    again, the policy is what it was, with the same digest.

    Args:
        policy: One without; one with, if `feedback` is None.
        feedback: What the slope of a held-out loss does to the weight decay.
        name: The new policy's; the policy's own if not given.

    Raises:
        ConfigurationError: It has feedback already, or has none to take away, or does not steer the
            weight decay.
    """
    if feedback is None:
        if policy.feedback is None:
            raise ConfigurationError(f"Policy {policy.name!r} has no feedback.")
        training = {k: v for k, v in policy.training.items() if k != "feedback_under"}
        return replace(policy, name=name or policy.name, feedback=None, training=training)
    if policy.feedback is not None:
        raise ConfigurationError(
            f"Policy {policy.name!r} has feedback already; take that away first (--none)."
        )
    if CONTROL_NAMES[DECAY] not in {control.name for control in policy.controls}:
        raise ConfigurationError(
            f"Policy {policy.name!r} does not steer the weight decay, which feedback moves."
        )
    under = {"name": policy.name, "digest": policy.digest}
    return replace(
        policy,
        name=name or policy.name,
        feedback=feedback,
        training={**policy.training, "feedback_under": under},
    )


def _columns(policy: Policy, features: tuple[str, ...]) -> FloatArray:
    """Its input weights `(4H, len(features))`, 0 for what it does not read."""
    narrow = policy.weights["lstm.weight_ih"]
    wide = np.zeros((len(narrow), len(features)), np.float32)
    wide[:, [features.index(feature) for feature in policy.features]] = narrow
    return wide


def _gates(arrays: Sequence[FloatArray], diagonal: bool = False) -> FloatArray:
    """Rows of several LSTMs as those of one: gate by gate, the LSTMs in order within a gate."""
    gates = zip(*(np.split(array, 4) for array in arrays), strict=True)
    join = _diagonal if diagonal else np.concatenate
    return np.concatenate([join(gate) for gate in gates])


def _diagonal(blocks: Sequence[FloatArray]) -> FloatArray:
    """A matrix with those on its diagonal and 0 elsewhere."""
    out = np.zeros(np.sum([block.shape for block in blocks], axis=0), np.float32)
    row = column = 0
    for block in blocks:
        rows, columns = block.shape
        out[row : row + rows, column : column + columns] = block
        row, column = row + rows, column + columns
    return out
