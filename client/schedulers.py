"""Multiplying a declared learning-rate scheduler, so that the scheduler and we never fight.

Schedulers of torch come in two kinds: closed-form ones recompute the rate from `base_lrs`, and
recursive ones from the group's present rate. Scaling every rate that either kind reads by the same
factor multiplies all their later values by it (torch issues 21965, 22107).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.adapters import Group, set_value
from ..core.errors import ConfigurationError

#: Rates that schedulers keep in parameter groups.
GROUP_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr")
#: Rates, one per group, that schedulers keep themselves and do not change.
BASE_KEYS = ("base_lrs", "max_lrs", "min_lrs")
#: These and the one that follows the present rate.
LIST_KEYS = (*BASE_KEYS, "_last_lr")
#: Rates that schedulers keep themselves, one for all groups.
SCALAR_KEYS = ("eta_min",)


def check_scheduler(scheduler: Any, optimizer: Any) -> None:
    """Refuse what is no scheduler, or one of another optimizer.

    Raises:
        ConfigurationError: See above.
    """
    if isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        what = "class" if isinstance(scheduler, type) else type(scheduler).__name__
        raise ConfigurationError(f"scheduler is a {what}; pass the object whose step() you call.")
    for part in _parts(scheduler):
        if not _drives(part, optimizer):
            raise ConfigurationError(
                f"scheduler {type(part).__name__} drives another optimizer than the one given."
            )


def also_written(scheduler: Any) -> tuple[str, ...]:
    """Controls beside the learning rate that it writes: OneCycleLR cycles momentum by default."""
    cycles = any(getattr(part, "cycle_momentum", False) for part in _parts(scheduler))
    return ("one_minus_beta1",) if cycles else ()


def unknown(scheduler: Any) -> tuple[str, ...]:
    """Classes of those of its parts that keep their rates where `scale` does not find them."""
    return tuple(
        type(part).__name__
        for part in _parts(scheduler)
        if not _inner(part)
        and not hasattr(part, "base_lrs")
        and not any(cls.__module__.startswith("torch.optim.") for cls in type(part).__mro__)
    )


def scale(
    scheduler: Any,
    groups: Sequence[Group],
    factors: Sequence[float],
    saved: Sequence[Sequence[float]] | None = None,
) -> None:
    """Multiply the present and every later learning rate of each group by its factor.

    Args:
        scheduler: The declared one.
        groups: The optimizer's.
        factors: One per group.
        saved: What `bases` gave. The scheduler itself is then brought there, whatever the factors:
            of a checkpoint's optimizer and scheduler, one may have been loaded and not the other.
    """
    _scale_rate(groups, factors)
    for group, factor in zip(groups, factors, strict=True):
        for key in GROUP_KEYS:
            if group.get(key) is not None:
                group[key] = group[key] * factor
    parts = list(_parts(scheduler))
    if saved is None or len(saved) != len(parts):  # of before they were kept, or of another one
        for part in parts:
            _scale_part(part, factors)
        return
    for part, target in zip(parts, saved, strict=True):
        present = _base(part)
        if len(present) == len(target) == len(factors):
            ratios = [t / p if p else 1.0 for t, p in zip(target, present, strict=True)]
            _scale_part(part, ratios)


def bases(scheduler: Any) -> list[list[float]]:
    """Of each part the first of `BASE_KEYS` that it has, for a checkpoint; empty if it has none."""
    return [_base(part) for part in _parts(scheduler)]


def release(optimizer: Any, factors: Sequence[float]) -> bool:
    """Multiply the rate, and what undeclared schedulers took from it, by each group's factor.

    Schedulers of torch are found that were constructed with the present `initial_lr`; rates that
    they were given (`eta_min`) stay.

    Returns:
        Whether there is one. Nothing is changed if not.
    """
    from torch.optim.lr_scheduler import LRScheduler

    groups = optimizer.param_groups
    initial = [group.get("initial_lr") for group in groups]
    # an optimizer does not know its schedulers; a look at all objects takes some 0.1 s
    parts = [
        part
        for part in gc.get_objects()
        if issubclass(type(part), LRScheduler)
        and _drives(part, optimizer)
        and getattr(part, "base_lrs", None) == initial
    ]
    if parts:
        _scale_rate(groups, factors)
        for group, factor in zip(groups, factors, strict=True):
            group["initial_lr"] = group["initial_lr"] * factor
        for part in parts:
            _scale_lists(part, ("base_lrs", "_last_lr"), factors)
    return bool(parts)


def _drives(part: Any, optimizer: Any) -> bool:
    owner = getattr(part, "optimizer", optimizer)
    return owner is optimizer or getattr(owner, "optimizer", None) is optimizer


def _scale_rate(groups: Sequence[Group], factors: Sequence[float]) -> None:
    # read before any is written: groups may share one tensor
    rates = [float(group["lr"]) * f for group, f in zip(groups, factors, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        set_value(group, "lr", rate)


def _scale_part(part: Any, factors: Sequence[float]) -> None:
    _scale_lists(part, LIST_KEYS, factors)
    for key in SCALAR_KEYS:
        if isinstance(getattr(part, key, None), int | float):
            setattr(part, key, getattr(part, key) * factors[0])


def _scale_lists(part: Any, keys: Sequence[str], factors: Sequence[float]) -> None:
    for key in keys:
        values = getattr(part, key, None)
        if isinstance(values, list) and len(values) == len(factors):
            setattr(part, key, [v * f for v, f in zip(values, factors, strict=True)])


def _base(part: Any) -> list[float]:
    held = (getattr(part, key, None) for key in BASE_KEYS)
    return next(([float(v) for v in values] for values in held if isinstance(values, list)), [])


def _parts(scheduler: Any) -> Iterator[Any]:
    """The scheduler, those it chains, and the one it wraps (accelerate)."""
    yield scheduler
    for part in _inner(scheduler):
        yield from _parts(part)


def _inner(scheduler: Any) -> tuple[Any, ...]:
    wrapped = getattr(scheduler, "scheduler", None)
    return (*getattr(scheduler, "_schedulers", ()), *(() if wrapped is None else (wrapped,)))
