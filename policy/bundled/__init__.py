"""The policies that ship with lhopt, one per optimizer they were trained to steer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ...core.errors import UnknownNameError
from ..artifact import Policy, load

FOLDER = Path(__file__).parent
#: Taken when an optimizer has no policy of its own: plain Adam's controls are the common ones.
DEFAULT = "adamw"


def names() -> tuple[str, ...]:
    """Names of the bundled policies."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


@cache
def bundled(name: str = DEFAULT) -> Policy:
    """A bundled policy by name; read once per process.

    Raises:
        UnknownNameError: No bundled policy has this name.
    """
    if name not in names():
        raise UnknownNameError("bundled policy", name, names())
    return load(FOLDER / name)


def for_optimizer(optimizer: str) -> Policy:
    """The policy trained for an optimizer, e.g. "torch.optim.AdamW"; else `DEFAULT`."""
    for name in names():
        policy = bundled(name)
        if policy.optimizer == optimizer:
            return policy
    return bundled(DEFAULT)
