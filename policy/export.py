"""From the learner's torch modules to a policy file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.controls import Control
from ..core.features import FEATURES
from ..core.feedback import Feedback
from ..core.schedules import Schedule
from ..core.types import FloatArray, IntArray
from .artifact import Policy, Selection


def export(
    state: Mapping[str, Tensor],
    *,
    name: str,
    controls: tuple[Control, ...],
    schedule: Schedule,
    optimizer: str,
    selection: Selection = "mean",
    feedback: Feedback | None = None,
    training: Mapping[str, Any] | None = None,
) -> Policy:
    """The actor of a `HyperparameterPolicy` as numpy weights.

    Args:
        state: `policy.state_dict()`, or an average of several.
        name: The policy's name.
        controls: What its heads steer, in order.
        schedule: The default shape that it was trained on.
        optimizer: What it was trained to steer.
        selection: How choices become decisions.
        feedback: What moved under its decisions in training.
        training: The training report.
    """
    return Policy(
        name=name,
        features=FEATURES,
        controls=controls,
        schedule=schedule,
        selection=selection,
        optimizer=optimizer,
        feedback=feedback,
        weights=weights(state),
        training=training or {},
    )


def weights(state: Mapping[str, Tensor]) -> dict[str, FloatArray]:
    """The actor's tensors under the names that `artifact.Policy.weights` lists."""

    def array(key: str) -> FloatArray:
        return state[key].detach().cpu().float().numpy().copy()

    return {
        "lstm.weight_ih": array("lstm_actor.weight_ih_l0"),
        "lstm.weight_hh": array("lstm_actor.weight_hh_l0"),
        "lstm.bias": array("lstm_actor.bias_ih_l0") + array("lstm_actor.bias_hh_l0"),
        "hidden.weight": array("mlp_extractor.policy_net.0.weight"),
        "hidden.bias": array("mlp_extractor.policy_net.0.bias"),
        "head.weight": array("action_net.weight"),
        "head.bias": array("action_net.bias"),
    }


def restore(weights: Mapping[str, FloatArray], columns: IntArray) -> dict[str, Tensor]:
    """The actor's part of a `HyperparameterPolicy.state_dict()`: what `weights` was given.

    torch's LSTM has two biases that are only ever added; the second becomes 0.

    Args:
        weights: As `weights` gives them.
        columns: `(inputs,)`, where its inputs are among `FEATURES` (`Policy.columns`). If it reads
            some of them alone, the others weigh nothing to begin with: it answers as before.
    """

    def tensor(key: str) -> Tensor:
        return torch.from_numpy(np.array(weights[key], np.float32))

    bias, narrow = tensor("lstm.bias"), tensor("lstm.weight_ih")
    inputs = narrow.new_zeros(len(narrow), len(FEATURES))
    inputs[:, torch.from_numpy(columns)] = narrow
    return {
        "lstm_actor.weight_ih_l0": inputs,
        "lstm_actor.weight_hh_l0": tensor("lstm.weight_hh"),
        "lstm_actor.bias_ih_l0": bias,
        "lstm_actor.bias_hh_l0": torch.zeros_like(bias),
        "mlp_extractor.policy_net.0.weight": tensor("hidden.weight"),
        "mlp_extractor.policy_net.0.bias": tensor("hidden.bias"),
        "action_net.weight": tensor("head.weight"),
        "action_net.bias": tensor("head.bias"),
    }
