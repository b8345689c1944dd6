"""Several processes train one model: the first decides, all carry out the same decision."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..core.actions import Decision
from ..core.errors import ConfigurationError


def _distributed() -> Any | None:
    """`torch.distributed`, if this process is one of several."""
    torch = sys.modules.get("torch")
    distributed = None if torch is None else getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_world_size() > 1 else None


def alone() -> bool:
    """Whether no other process trains the same model."""
    return _distributed() is None


def check_alone() -> None:
    """Refuse a validation while several processes train one model.

    Raises:
        ConfigurationError: They do.
    """
    if not alone():
        raise ConfigurationError(
            "validate= is for one process: with several, each would scale its part of the weights, "
            "and a model that speaks to the others could wait for good. Call "
            "tuner.report_validation(loss) instead."
        )


def decides() -> bool:
    """Whether this process asks for decisions; it does if it is alone."""
    distributed = _distributed()
    return distributed is None or distributed.get_rank() == 0


def agree(decision: Decision, source: str) -> tuple[Decision, str]:
    """The first process's decision and its source, in every process."""
    distributed = _distributed()
    if distributed is None:
        return decision, source
    box: list[Any] = [
        {
            "delta": decision.delta.tolist(),
            "action": decision.action_delta.tolist(),
            "schedule": decision.schedule.tolist(),
            "reasons": list(decision.reasons[0]),
            "source": source,
        }
    ]
    distributed.broadcast_object_list(box, src=0)
    first = box[0]
    return (
        Decision(
            np.asarray(first["delta"]),
            np.asarray(first["action"]),
            np.asarray(first["schedule"]),
            (tuple(first["reasons"]),),
        ),
        str(first["source"]),
    )
