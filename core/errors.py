"""Every error that lhopt raises on purpose.

    LhoptError
    +-- ConfigurationError      a setting is missing, contradictory or out of range (ValueError)
    |   +-- UnknownNameError    a name that nothing is registered under; lists the nearest, few: all
    |   +-- ControlError        a control asked for does not exist or cannot be steered
    |   +-- SchedulerConflict   a scheduler and a Tuner would both set the learning rate
    +-- MissingDataError        a data set's file is not where it should be (FileNotFoundError)
    +-- MissingExtraError       an optional package is not installed (ImportError)
    +-- StatisticsError         unknown, missing or misshapen statistics (ValueError)
    +-- ArtifactError           a policy file that is truncated, oversized or of another format
    |   +-- IncompatiblePolicyError   a sound file, made for other features or controls
    +-- TaskContractError       an inner task that breaks the contract of `check_inner_task`
    +-- OptimizerContractError  an optimizer that breaks the contract of `check_optimizer`
    +-- FrontierError           a frontier that cannot be read, or does not cover what is asked
    +-- ResumeError             `--resume` with a checkpoint of another configuration
    +-- EnvWorkerError          a process of an environment failed or is gone
    +-- WorkerLostError         a process of Local SGD is gone or silent (ConnectionError)
    +-- ProtocolError           the server speaks another wire version; retrying cannot help

Messages say what came, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: So many names are listed in full, whichever of them are near.
FEW = 8


class LhoptError(Exception):
    """Base of every error that lhopt raises on purpose."""


class ConfigurationError(LhoptError, ValueError):
    """A setting is missing, contradictory or out of range."""


class UnknownNameError(ConfigurationError):
    """A name that nothing is registered under.

    Args:
        kind: What was looked for, as a reader would say it ("inner task", "policy").
        name: The name that came.
        known: Every name that would have worked.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.4)
        hints = [f"Nearest: {', '.join(near)}."] if near else []
        if not near or (len(names) <= FEW and len(near) < len(names)):
            hints.append(f"Known: {', '.join(names)}.")
        super().__init__(f"Unknown {kind} {name!r}. {' '.join(hints)}")
        self.name = name
        self.nearest = near


class ControlError(ConfigurationError):
    """A control asked for does not exist, or this optimizer does not have it."""


class SchedulerConflict(ConfigurationError):
    """A learning-rate scheduler and a Tuner would both set the rate."""


class MissingDataError(LhoptError, FileNotFoundError):
    """A data set's file is not where it should be; the message names file and folder."""


class MissingExtraError(LhoptError, ImportError):
    """An optional package is not installed.

    Args:
        package: The import that failed.
        extra: The extra of lhopt that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Run: pip install 'lhopt[{extra}]'")


class StatisticsError(LhoptError, ValueError):
    """Statistics that are unknown, missing or of the wrong shape."""


class ArtifactError(LhoptError):
    """A policy file that cannot be trusted: truncated, oversized or of another format."""


class IncompatiblePolicyError(ArtifactError):
    """A sound policy file that was made for other features, controls or versions."""


class TaskContractError(LhoptError, AssertionError):
    """An inner task breaks the contract that `check_inner_task` checks."""


class OptimizerContractError(LhoptError, AssertionError):
    """An optimizer breaks the contract that `check_optimizer` checks."""


class FrontierError(LhoptError):
    """A frontier that cannot be read, or does not cover what is asked."""


class ResumeError(LhoptError):
    """A checkpoint of another configuration than the one asked for."""


class EnvWorkerError(LhoptError):
    """A process that works for an environment or a training failed, or is gone."""


class WorkerLostError(LhoptError, ConnectionError):
    """A process that takes part in Local SGD is gone, or silent for longer than allowed.

    Args:
        message: What happened and what to do.
        rank: The rank that noticed.
        round: Synchronisations done before this one.
        missing: Ranks that did not answer; empty if all did, and the connection itself broke.
    """

    def __init__(self, message: str, *, rank: int, round: int, missing: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rank = rank
        self.round = round
        self.missing = missing


class ProtocolError(LhoptError):
    """The server speaks another wire version; retrying cannot help."""
