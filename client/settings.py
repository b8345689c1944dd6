"""Checks and choices at a Tuner's construction: the only time when it may raise."""

from __future__ import annotations

import logging
import math
import numbers
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..core.controls import CONTROLS
from ..core.errors import (
    ConfigurationError,
    ControlError,
    SchedulerConflict,
    UnknownNameError,
)
from ..policy import bundled
from ..policy.artifact import Policy
from . import ranks
from .backends import Backend, Embedded, Terms
from .hyperparameters import RATE, Hyperparameters

logger = logging.getLogger("lhopt")


def whole(name: str, value: Any, *, why: str) -> int:
    """A setting that must be a whole number > 0.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ConfigurationError(
            f"{name} is {value!r}; a whole number greater than 0 is wanted: {why}."
        )
    return int(value)


def seconds(name: str, value: Any) -> float:
    """A time limit: finite and > 0.

    Raises:
        ConfigurationError: It is not.
    """
    return positive(name, value, "a number of seconds")


def positive(name: str, value: Any, what: str = "a number") -> float:
    """A number that is finite and > 0.

    Raises:
        ConfigurationError: It is not.
    """
    # numpy's numbers too; its booleans are none
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} is {value!r}; {what} greater than 0 is wanted.")
    return float(value)


def check_validation(validate: Any) -> None:
    """Refuse what is no function, or would be called where several processes train the model.

    Raises:
        ConfigurationError: It is one of both.
    """
    if not callable(validate):
        raise ConfigurationError(
            f"validate is {validate!r}; a function without arguments that returns the loss on "
            "held-out data is wanted."
        )
    ranks.check_alone()


def check_averages(averages: Any, validate: Any) -> None:
    """Refuse averages that nothing could choose among.

    Raises:
        ConfigurationError: `averages` is no bool, or there is no `validate`.
    """
    if not isinstance(averages, bool):
        raise ConfigurationError(f"averages is {averages!r}; True or False is wanted.")
    if averages and validate is None:
        raise ConfigurationError(
            "averages=True without validate: the best of them is chosen by a held-out loss. Give "
            "validate too."
        )


def plan(total_steps: Any, decisions: Any, interval: Any) -> tuple[int, int]:
    """Total steps and steps per decision.

    Raises:
        ConfigurationError: A number makes no sense.
    """
    total = whole("total_steps", total_steps, why="the optimizer steps that this run will take")
    wanted = whole("decisions", decisions, why="24 to 40 is what policies are trained for")
    if interval is None:
        return total, -(-total // wanted)
    steps = whole("interval", interval, why="optimizer steps between two decisions")
    if steps > total:
        raise ConfigurationError(
            f"interval is {steps} and total_steps is {total}; an interval cannot be longer than "
            "the run. Leave it out for a sensible one."
        )
    return total, steps


def offered(
    hyperparameters: Hyperparameters,
    optimizer: str,
    controls: Sequence[str] | None,
    frozen: Collection[str],
) -> tuple[str, ...]:
    """The controls that may be steered.

    Raises:
        ControlError: One was asked for that the optimizer lacks, or none is left.
        UnknownNameError: `frozen` names no control.
    """
    have = hyperparameters.names
    for word, asked in (("controls", controls or ()), ("frozen", frozen)):
        if isinstance(asked, str):
            raise ControlError(f"{word} is the string {asked!r}; a list of names is wanted.")
    for name in frozen:  # one that is misspelt would be steered all the same
        if name not in CONTROLS:
            raise UnknownNameError("control", str(name), CONTROLS)
    missing = [name for name in controls or () if name not in have]
    if missing:
        raise ControlError(
            f"controls asks for {', '.join(map(repr, missing))}; {optimizer} with these settings "
            f"has {', '.join(have) or 'none'}. (A value of 0 cannot be scaled, so it is not "
            "steered: give it a small value first.)"
        )
    left = tuple(n for n in have if (controls is None or n in controls) and n not in frozen)
    if not left:
        raise ControlError(
            f"Nothing is left to steer: {optimizer} has {', '.join(have) or 'no control'}, "
            f"controls is {controls!r} and frozen is {tuple(frozen)!r}."
        )
    return left


def check_conflict(optimizer: Any, scheduler: Any, steered: Sequence[str]) -> None:
    """Refuse to share the learning rate with a scheduler that was not declared.

    ReduceLROnPlateau leaves no `initial_lr`, nor any other trace: `Steering.watch` sees it write.

    Raises:
        SchedulerConflict: One is attached to the optimizer, and we would steer the rate too.
    """
    attached = any("initial_lr" in group for group in optimizer.param_groups)
    if attached and scheduler is None and RATE in steered:
        raise SchedulerConflict(
            "A learning-rate scheduler is attached to this optimizer (its groups hold "
            "'initial_lr'), and the Tuner would set the learning rate too. Pass scheduler=... to "
            "let the Tuner multiply its values, or frozen={'learning_rate'} to leave the rate "
            "to it, or remove the scheduler."
        )


def find_policy(policy: str | Path | Policy | None, optimizer: str) -> Policy:
    """A policy by object, path or bundled name; by the optimizer's class if none is given."""
    if isinstance(policy, Policy):
        return policy
    if policy is None:
        found = bundled.for_optimizer(optimizer)
        if found.optimizer != optimizer:
            logger.warning(
                "lhopt: no policy was trained for %s; taking %r, trained for %s. Compare with a "
                "run without it.", optimizer, found.name, found.optimizer,
            )  # fmt: skip
        return found
    if bundled.is_path(policy):
        return bundled.find(policy)
    return bundled.bundled(str(policy))


def choose_backend(
    policy: str | Path | Policy | None,
    terms: Terms,
    *,
    url: str | None,
    api_key: str | None,
    timeout: float,
    client: Any,
) -> Backend:
    """The server if a URL or a client is given, else the policy in this process.

    Raises:
        ConfigurationError: A policy object or file together with a server, or no policy at all.
        ControlError: The policy steers nothing that the optimizer has.
    """
    if not isinstance(policy, str | Path | Policy | None):
        raise ConfigurationError(
            f"policy is of type {type(policy).__name__}; a name, a path or a Policy is wanted, or "
            "nothing for the optimizer's own."
        )
    # a path as a string too: no server knows it, and every decision would be a hold
    local = policy is not None and (isinstance(policy, Policy) or bundled.is_path(policy))
    if url is None and client is None and not local:
        url = os.environ.get("LHOPT_URL") or None
    if url is None and client is None:
        backend = Embedded(find_policy(policy, terms.optimizer), terms)
        if not backend.steered():
            raise ControlError(
                f"Policy {backend.policy.name!r} steers "
                f"{', '.join(c.name for c in backend.policy.controls)}; none of them is among "
                f"what this job offers: {', '.join(terms.controls)}."
            )
        return backend
    if local:
        raise ConfigurationError(
            "policy is an object or a file, and a server is given too; a server has its own "
            "policies. Pass the name of one of them, or leave url out to decide in process."
        )
    from .blocking import Client
    from .remote import Remote

    owned = client is None
    if client is None:
        client = Client(url, api_key, timeout=timeout)
    return Remote(client, None if policy is None else str(policy), terms, owns_client=owned)
