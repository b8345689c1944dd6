"""The policies that ship with lhopt, one per optimizer they were trained to steer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ...core.errors import ConfigurationError, UnknownNameError
from ..artifact import Policy, load

FOLDER = Path(__file__).parent
_SUFFIXES = (".json", ".safetensors")
#: Taken when an optimizer has no policy of its own: plain Adam's controls are the common ones.
DEFAULT = "adamw"
#: Optimizers that `DEFAULT` must not be taken for unasked, and why; `lhopt bench suited` measures
#: it on training tasks.
UNSUITED: dict[str, str] = {
    "torch.optim.Adadelta": "its rate is a unitless 1, and lowering it as the default policy does "
    "did worse than nothing",
    "prodigyopt.Prodigy": "its rate is a factor on a step size that it finds by itself",
    "lhopt.LARS": "its rate is a thousand times a relative change, and with the default policy on "
    "top it did worse than alone",
}


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


def is_path(policy: str | Path) -> bool:
    """Whether a policy is named by where its files lie, and not by a name that somebody serves."""
    path = Path(policy)
    return isinstance(policy, Path) or path.name != policy or path.suffix in _SUFFIXES


def find(policy: str | Path) -> Policy:
    """A bundled policy by name, or any by the path of its NAME.json or NAME.safetensors.

    Read anew each time.

    Raises:
        UnknownNameError: No bundled policy has this name, and it is no path.
        ConfigurationError: It is a folder.
        ArtifactError, IncompatiblePolicyError: As `artifact.load`.
    """
    if isinstance(policy, str) and policy in names():
        return load(FOLDER / policy)
    path = Path(policy)
    if path.is_dir() and not Path(f"{policy}.json").exists():
        held = sorted(file.with_suffix(".json").name for file in path.glob("*.safetensors"))
        raise ConfigurationError(
            f"{policy} is a folder; name one of its policies: {', '.join(held) or 'it has none'}."
        )
    if is_path(policy) or path.exists():
        return load(path)
    raise UnknownNameError("bundled policy", str(policy), names())


def for_optimizer(optimizer: str) -> Policy:
    """The policy trained for an optimizer, e.g. "torch.optim.AdamW"; else `DEFAULT`.

    Raises:
        ConfigurationError: None was trained for it and `DEFAULT` is known to do harm there.
    """
    for name in names():
        policy = bundled(name)
        if policy.optimizer == optimizer:
            return policy
    check_suited(optimizer)
    return bundled(DEFAULT)


def check_suited(optimizer: str) -> None:
    """Refuse to take `DEFAULT` for an optimizer that it does harm to.

    Raises:
        ConfigurationError: See `UNSUITED`.
    """
    if optimizer in UNSUITED:
        raise ConfigurationError(
            f"No policy was trained for {optimizer}: {UNSUITED[optimizer]}. Use another optimizer, "
            f"a policy trained for it, or ask for policy={DEFAULT!r} by name to take it anyway."
        )
