"""Several processes train one model: the first decides, all carry out the same decision."""

from __future__ import annotations

import sys
from typing import Any

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


def agree(value: Any) -> Any:
    """The first process's value, in every process; each waits for all, so all must call it."""
    distributed = _distributed()
    if distributed is None:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
