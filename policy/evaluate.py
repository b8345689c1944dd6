"""Run a policy, or something that stands in for one, on a task and read its speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS
from ..core.controls import Control
from ..core.types import BoolArray, FloatArray
from ..env.config import EnvConfig
from ..env.episode import Draw, Episode, Perturbation
from ..env.pool import Entry
from .artifact import Policy
from .runtime import choose, forward

#: Observation and decision index in, deltas `(K, all controls)` out.
Controller = Callable[[FloatArray, int], FloatArray]


def hold(observation: FloatArray, index: int) -> FloatArray:
    """The no-op policy: the default schedule alone."""
    return np.zeros((len(observation), N_CONTROLS))


def random_choices(controls: Sequence[Control], seed: int = 0) -> Controller:
    """Every choice equally likely."""
    rng = np.random.default_rng(seed)

    def decide(observation: FloatArray, index: int) -> FloatArray:
        out = np.zeros((len(observation), N_CONTROLS))
        for control in controls:
            drawn = rng.integers(0, len(control.choices), len(observation))
            out[:, COLUMN[control.name]] = control.deltas[drawn]
        return out

    return decide


def closed_loop(policy: Policy, n_runs: int) -> Controller:
    """The policy itself, its memory kept here."""
    hidden = np.zeros((n_runs, policy.hidden_size), np.float32)
    cell = hidden.copy()

    def decide(observation: FloatArray, index: int) -> FloatArray:
        nonlocal hidden, cell
        hidden, cell, logits = forward(policy, hidden, cell, observation[:, policy.columns])
        seeds = [[index, i] for i in range(n_runs)]
        _, delta = choose(policy, logits, seeds)
        return delta

    return decide


def open_loop(progress: FloatArray, path: FloatArray, n_decisions: int) -> Controller:
    """Replay of a recorded path, blind to the run.

    Args:
        progress: `(n,)` ascending, where the path was recorded.
        path: `(n, all controls)` summed deltas at those points.
        n_decisions: Decisions of the run to be steered.
    """

    def at(fraction: float) -> FloatArray:
        return np.array([np.interp(fraction, progress, column) for column in path.T])

    def decide(observation: FloatArray, index: int) -> FloatArray:
        n = n_decisions + 1
        step = at((index + 1) / n) - (at(index / n) if index else np.zeros(path.shape[1]))
        return np.tile(step, (len(observation), 1))

    return decide


def spread(
    entry: Entry,
    config: EnvConfig,
    make: Callable[[Episode], Controller],
    *,
    first_seed: int,
    n_runs: int,
    decades: float,
    reports_valid: bool = False,
    tells_slope: bool = False,
    perturbation: Perturbation | None = None,
) -> Result:
    """Train runs whose starting rates are spread around the default.

    Args:
        entry: Task, length and frontier.
        config: Optimizer, schedule, controls.
        make: Gives the controller for an episode.
        first_seed: Of the runs, which have a seed and a start each.
        n_runs: Runs.
        decades: How far the starts lie below and above the default rate, evenly.
        reports_valid: Whether the policy sees a validation loss.
        tells_slope: Whether that loss comes with its slope along the weights' size.
        perturbation: What is held beside the controller, unseen by it.
    """
    base = config.steered.start["learning_rate"]
    return run(
        entry,
        config,
        make,
        seeds=range(first_seed, first_seed + n_runs),
        starts={"learning_rate": base * 10.0 ** np.linspace(-decades, decades, n_runs)},
        reports_valid=reports_valid,
        tells_slope=tells_slope,
        perturbation=perturbation,
    )


@dataclass(frozen=True)
class Result:
    """What K runs came to.

    Attributes:
        log2_speed: `(K,)`.
        unchosen: `(K,)` the same, if no average had been chosen (`EnvConfig.averages`).
        final_loss: `(K,)` `outer_valid`.
        diverged: `(K,)` whether `final_loss` is infinite.
        actions: `(decisions, K, controls)` the policy's own deltas, as chosen.
    """

    log2_speed: FloatArray
    unchosen: FloatArray
    final_loss: FloatArray
    diverged: BoolArray
    actions: FloatArray


def run(
    entry: Entry,
    config: EnvConfig,
    make: Callable[[Episode], Controller],
    *,
    seeds: Sequence[int],
    starts: Mapping[str, FloatArray] | None = None,
    n_intervals: int = 32,
    reports_valid: bool = False,
    tells_slope: bool = False,
    tells_data: bool = True,
    perturbation: Perturbation | None = None,
) -> Result:
    """Train K runs of one task under a controller.

    Args:
        entry: Task, length and frontier.
        config: Optimizer, schedule, controls.
        make: Gives the controller for an episode.
        seeds: One per run.
        starts: `(K,)` starting values by control; the configuration's where not given.
        n_intervals: Intervals of a run.
        reports_valid: Whether the policy sees a validation loss.
        tells_slope: Whether that loss comes with its slope along the weights' size.
        tells_data: Whether it is told of the data: passes over them, and target values.
        perturbation: What is held beside the controller, unseen by it.
    """
    start = np.full((len(seeds), N_CONTROLS), np.nan)
    for name, value in {**config.steered.start, **config.start, **(starts or {})}.items():
        start[:, COLUMN[name]] = value
    drawn = Draw(
        tuple(seeds),
        start,
        n_intervals,
        reports_valid,
        tells_epochs=tells_data,
        tells_labels=tells_data,
        tells_slope=tells_slope,
    )
    episode = Episode(
        entry.task, entry.spec.steps, config, drawn, entry.frontier, perturbation=perturbation
    )
    controller = make(episode)
    actions: list[FloatArray] = []
    while not episode.finished:
        chosen = controller(episode.observation, len(actions))
        actions.append(chosen)
        episode.step(chosen)
    return Result(
        episode.reward,
        episode.unchosen,
        episode.final_loss,
        episode.diverged,
        np.stack(actions),
    )
