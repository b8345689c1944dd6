"""A policy put before another optimizer, without training: where one for that may begin.

Policies read unitless features and answer with relative moves, and what they have learned of a job
(how far it is, whether it overfits, how the loss answers to the rate) is not all about one
optimizer. `lhopt train --from` goes on from what comes of this.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..core.controls import get_controls
from ..core.errors import ConfigurationError
from ..env.config import get_optimizer
from .artifact import Policy
from .learner import initial_bias

#: Probability that a control which the policy never steered is held.
HOLD = 0.7


def transferred(policy: Policy, optimizer: str, name: str) -> Policy:
    """The policy with the controls of another optimizer.

    Heads of controls that both have are the policy's own; those that the new optimizer lacks are
    gone; one that the policy never steered holds its control, for the most part. It was trained
    on no run of that optimizer: it wants comparing, or training.

    Args:
        policy: Any.
        optimizer: As an environment names it, e.g. "torch.optim.AdamW".
        name: The new policy's.

    Raises:
        UnknownNameError: No environment trains with that optimizer.
        ConfigurationError: The policy steers that optimizer already.
    """
    if policy.optimizer == optimizer:
        raise ConfigurationError(
            f"Policy {policy.name!r} steers {optimizer} already; name another optimizer."
        )
    controls = get_controls(get_optimizer(optimizer).controls)
    ends = np.cumsum([len(control.choices) for control in policy.controls])[:-1]
    heads = {
        control.name: (weight, bias)
        for control, weight, bias in zip(
            policy.controls,
            np.split(policy.weights["head.weight"], ends),
            np.split(policy.weights["head.bias"], ends),
            strict=True,
        )
    }
    width = policy.weights["head.weight"].shape[1]
    for control in controls:
        if control.name not in heads:
            zero = np.zeros((len(control.choices), width), np.float32)
            heads[control.name] = (zero, initial_bias((control,), HOLD).numpy())
    own = {control.name: control for control in policy.controls}
    # as the policy knows a control: its choices are what its head is for
    steered = tuple(own.get(control.name, control) for control in controls)
    weights = {
        **policy.weights,
        "head.weight": np.concatenate([heads[control.name][0] for control in controls]),
        "head.bias": np.concatenate([heads[control.name][1] for control in controls]),
    }
    before = {
        "name": policy.name,
        "digest": policy.digest,
        "optimizer": policy.optimizer,
        "training": dict(policy.training),
    }
    return replace(
        policy,
        name=name,
        optimizer=optimizer,
        controls=steered,
        weights=weights,
        training={"transferred": before},
    )
