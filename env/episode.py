"""Episodes: K runs of one task that are steered together, and the reward at their end.

The environment's half of the one line: statistics come from the engine, features, actions and
bounds from `core/` and `policy/runtime` as everywhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from ..core import features
from ..core.actions import COLUMN, N_CONTROLS, Decision
from ..core.controls import CONTROL_NAMES, CONTROLS
from ..core.errors import ConfigurationError, UnknownNameError
from ..core.features import FeatureState, Situation
from ..core.sampling import measured_steps
from ..core.statistics import Accumulator, Statistics, horizons, measure
from ..core.types import BoolArray, FloatArray
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, Settings
from ..optimizers.update import MatrixFactors, StepRule
from ..policy.runtime import bounded, opening
from .config import EnvConfig
from .denormals import denormals_flushed
from .frontier import Frontier


@dataclass(frozen=True)
class Draw:
    """What an episode draws besides its task.

    Attributes:
        seeds: One per run: weights and data order; runs of a group have the same.
        start: `(K, controls)` starting values, nan where the optimizer lacks the control.
        n_intervals: Intervals of the run; decisions are one fewer.
        reports_valid: Whether the job reports a validation loss.
        tells_epochs: Whether the job tells how often it passes over its data.
        tells_labels: Whether it tells how many target values they have.
        tells_slope: Whether the validation loss, if there is one, comes with its slope.
    """

    seeds: tuple[int, ...]
    start: FloatArray
    n_intervals: int
    reports_valid: bool
    tells_epochs: bool = False
    tells_labels: bool = False
    tells_slope: bool = False


#: Matrices of a net that have a name: the first and the last, in the order of its parameters.
MATRICES = {"first": 0, "last": -1}
#: What a single matrix may have other than the rest.
OF_MATRICES = ("learning_rate", "weight_decay")


@dataclass(frozen=True)
class MatrixChange:
    """One matrix whose rate or decay is another than that of the rest.

    Attributes:
        matrix: A name in `MATRICES`.
        control: A name in `OF_MATRICES`; as in a parameter group of its own, the rate's factor
            counts for the decay too, which is times the rate.
        factor: Above 0, and no further from 1 than a run may move the control.

    Raises:
        UnknownNameError: No matrix, or no control of one, has that name.
        ConfigurationError: The factor is none of that kind.
    """

    matrix: str
    control: str
    factor: float

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise UnknownNameError("matrix", self.matrix, tuple(MATRICES))
        if self.control not in OF_MATRICES:
            raise UnknownNameError("control of a matrix", self.control, OF_MATRICES)
        most = np.exp(CONTROLS[self.control].max_total)
        if not 1.0 / most <= self.factor <= most:
            raise ConfigurationError(
                f"A factor of {self.factor:g} on a matrix's {self.control}; from {1.0 / most:.0e} "
                f"to {most:.0e} is what it may be moved by."
            )


@dataclass(frozen=True)
class Perturbation:
    """What runs are changed in beside their controller's decisions, unseen by it.

    Their features tell the values that the controller decided on; what the change does to losses,
    gradients and weights they tell like anything else that happens in a run.

    Attributes:
        shifts: Delta of a control, by name: log of a factor, or a logit shift, on top of whatever
            value was decided on, within the control's bounds.
        after: It begins with the first interval that begins at or after this share of the run's
            steps, from 0 to below 1.
        rule: Fields of the optimizer's `StepRule` that are others, for the whole run.
        matrices: What single matrices have other than the rest, likewise from `after` on.
    """

    shifts: Mapping[str, float] = field(default_factory=dict)
    after: float = 0.0
    rule: Mapping[str, Any] = field(default_factory=dict)
    matrices: tuple[MatrixChange, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.after < 1.0:
            raise ConfigurationError(
                f"A perturbation after {self.after} of a run; a share from 0 to below 1 is wanted."
            )
        known = {field.name for field in fields(StepRule)}
        if unknown := set(self.rule) - known:
            raise UnknownNameError("field of the update rule", min(unknown), sorted(known))


def draw(config: EnvConfig, rng: np.random.Generator, n_runs: int) -> Draw:
    """Draw an episode: seeds, hidden start noise, number of decisions.

    Raises:
        ConfigurationError: The runs cannot be parted into groups of `config.group_size`.
    """
    size = config.group_size or 1
    if n_runs % size:
        raise ConfigurationError(
            f"{n_runs} runs cannot be parted into groups of group_size={size}; give a multiple of "
            "it, or group_size=None."
        )
    n_groups = n_runs // size
    steered = config.steered
    start = np.full((n_groups, N_CONTROLS), np.nan)
    for name, value in {**steered.start, **config.start}.items():
        width = steered.noise.get(name, 0.0) * config.noise_scale
        shift = rng.uniform(-width, width, n_groups)
        control = CONTROLS[name]
        delta = shift * np.log(10.0) if control.kind == "scale" else shift
        start[:, COLUMN[name]] = control.apply(np.full(n_groups, value), delta)
    low, high = config.intervals
    return Draw(
        seeds=tuple(int(s) for s in rng.integers(0, 2**31 - 1, n_groups).repeat(size)),
        start=start.repeat(size, axis=0),
        n_intervals=int(rng.integers(low, high + 1)),
        reports_valid=bool(rng.random() < config.valid_share),
        tells_epochs=bool(rng.random() < config.epochs_share),
        tells_labels=bool(rng.random() < config.labels_share),
        tells_slope=bool(rng.random() < config.slope_share),
    )


class Episode:
    """K steered runs of one task, from first interval to reward.

    Args:
        task: What is trained.
        steps: Inner steps of a run.
        config: Which optimizer, schedule and controls.
        drawn: Seeds and hidden starts.
        frontier: The task's yardstick; without one there is no reward (nan).
        device: Where the runs live.
        perturbation: What is changed beside the decisions; None is nothing.

    Raises:
        ConfigurationError: A perturbation of what the optimizer does not have.

    Attributes:
        observation: `(K, len(FEATURES))` after the latest interval.
        statistics: Of the latest interval.
        decision: The latest decision, as carried out; None before the first.
        reward: `(K,)` log2 speed, set when `finished`.
        final_loss: `(K,)` `outer_valid` loss, set when `finished`.
        unchosen: `(K,)` what the reward would be if no average had been chosen.
    """

    def __init__(
        self,
        task: InnerTask,
        steps: int,
        config: EnvConfig,
        drawn: Draw,
        frontier: Frontier | None = None,
        *,
        device: str = "cpu",
        perturbation: Perturbation | None = None,
    ) -> None:
        self.task, self.steps, self.config, self.drawn = task, steps, config, drawn
        self.frontier, self.done = frontier, 0
        self.n_runs = len(drawn.seeds)
        self.interval = -(-steps // drawn.n_intervals)
        self.share = np.full(self.n_runs, self.interval / steps)
        self._steered = np.zeros(N_CONTROLS, bool)
        for control in config.controls:
            self._steered[COLUMN[control.name]] = True
        self.start, self.values = drawn.start, drawn.start.copy()
        self.perturbation = perturbation or Perturbation()
        of_matrices = (change.control for change in self.perturbation.matrices)
        for name in (*self.perturbation.shifts, *of_matrices):
            if name not in COLUMN or np.isnan(self.start[:, COLUMN[name]]).any():
                raise ConfigurationError(
                    f"A perturbation of {name!r}; {config.optimizer} has "
                    f"{', '.join(config.steered.start)}."
                )
        self.runs = self._new_runs(device)
        self._params_per_label = task.n_params() / task.n_labels() if drawn.tells_labels else None
        self._state = FeatureState.initial(self.n_runs)
        self.reward: FloatArray = np.full(self.n_runs, np.nan)
        self.final_loss: FloatArray = np.full(self.n_runs, np.nan)
        self.unchosen: FloatArray = np.full(self.n_runs, np.nan)
        self.statistics: Statistics | None = None
        self.decision: Decision | None = None
        steered = np.tile(self._steered, (self.n_runs, 1))
        first = opening(config.schedule, self.share, steered)
        self._schedule = first.schedule
        self._apply(first.delta)
        self.observation = self._run_interval()

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, picklable; task and frontier are not in it."""
        skipped = ("task", "config", "frontier", "runs")
        own = {k: v for k, v in self.__dict__.items() if k not in skipped}
        return {"own": copy.deepcopy(own), "runs": self.runs.state()}

    @classmethod
    def restore(
        cls,
        task: InnerTask,
        config: EnvConfig,
        frontier: Frontier | None,
        state: dict[str, Any],
        *,
        device: str = "cpu",
    ) -> Episode:
        """The episode that `state` was taken of."""
        episode = cls.__new__(cls)
        episode.perturbation = Perturbation()  # states of before there was one lack it
        episode.__dict__.update(copy.deepcopy(state["own"]))
        episode.task, episode.config, episode.frontier = task, config, frontier
        episode.runs = episode._new_runs(device)
        episode.runs.set(episode.runs.settings, episode._matrix_factors())
        episode.runs.load_state(copy.deepcopy(state["runs"]))
        return episode

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.steps

    @property
    def n_decisions(self) -> int:
        """Decisions of the whole run."""
        return -(-self.steps // self.interval) - 1

    @property
    def alive(self) -> BoolArray:
        """`(K,)`: which runs still train; one that broke at its very last step is among them."""
        return self.runs.alive

    @property
    def diverged(self) -> BoolArray:
        """`(K,)`: which runs were frozen, or finished with a loss that is not finite."""
        return ~self.alive | np.isinf(self.final_loss)  # nan until the end

    @property
    def fed(self) -> FloatArray:
        """`(K,)` log of the factor that feedback, and not the policy, has put on the decay."""
        return self._state.feedback.copy()

    def situation(self) -> Situation:
        """Where the runs stand now."""
        relative = np.full((self.n_runs, N_CONTROLS), np.nan)
        for j in np.flatnonzero(self._steered):
            control = CONTROLS[CONTROL_NAMES[j]]
            relative[:, j] = control.distance(self.values[:, j], self.start[:, j])
        progress = np.full(self.n_runs, min(self.done / self.steps, 1.0))
        return Situation(progress, self.share, relative, self._schedule)

    def step(self, chosen: FloatArray) -> FloatArray:
        """Carry out the policy's deltas `(K, all controls)` and run one interval.

        Returns:
            The next observation, `(K, len(FEATURES))`.
        """
        assert not self.finished
        assert self.statistics is not None
        decision, fed = bounded(
            self.config.schedule,
            self.config.feedback,
            chosen,
            self.statistics,
            self.situation(),
            moved=self._state.feedback,
        )
        self.decision = decision
        self._state = features.remember(self._state, decision.action_delta, fed)
        self._schedule = decision.schedule
        self._apply(decision.delta)
        self.observation = self._run_interval()
        return self.observation

    def _apply(self, delta: FloatArray) -> None:
        for j in np.flatnonzero(self._steered):
            control = CONTROLS[CONTROL_NAMES[j]]
            self.values[:, j] = control.apply(self.values[:, j], delta[:, j])
        self.runs.set(self._settings(), self._matrix_factors())

    @property
    def _chooses(self) -> bool:
        return self.config.averages and self.drawn.reports_valid and self.drawn.tells_slope

    def _new_runs(self, device: str) -> BatchedRuns:
        return BatchedRuns(
            self.task,
            self.drawn.seeds,
            self._settings(),
            rule=replace(self.config.steered.rule, **self.perturbation.rule),
            device=device,
            averages_over=self.steps if self._chooses else None,
        )

    @property
    def _perturbed(self) -> bool:
        """Whether what begins after a share of the run has begun."""
        return self.done >= self.perturbation.after * self.steps

    def _matrix_factors(self) -> MatrixFactors | None:
        """What single matrices have other than the rest, for the next interval."""
        n = self.runs.n_matrices
        if not self.perturbation.matrices or not self._perturbed or not n:
            return None
        ones = torch.ones(self.n_runs, n, device=self.runs.device)
        named = {"learning_rate": ones, "weight_decay": ones.clone()}
        for change in self.perturbation.matrices:
            named[change.control][:, MATRICES[change.matrix]] *= change.factor
        return MatrixFactors(named["learning_rate"], named["weight_decay"])

    def _settings(self) -> Settings:
        named = dict(zip(CONTROL_NAMES, self.values.T, strict=True))
        if self._perturbed:
            for name, shift in self.perturbation.shifts.items():
                named[name] = CONTROLS[name].apply(named[name], np.asarray(shift))
        given = {k: v.copy() for k, v in named.items() if not np.isnan(v).all()}
        return replace(Settings(), **given)

    @denormals_flushed()
    def _run_interval(self) -> FloatArray:
        n = min(self.interval, self.steps - self.done)
        before = self.runs.flat.clone()
        # the rule sees the nominal interval, as in the client: the last one may be shorter
        offsets = [i for i in measured_steps(self.interval) if i < n]
        seen = self.runs.advance(n, offsets)
        self.done += n
        moved = (self.runs.flat - before).square().sum(1).double().numpy(force=True)
        base = before.square().sum(1).double().numpy(force=True)
        with np.errstate(invalid="ignore"):  # their squares overflow: nan
            displacement = 0.5 * (
                np.log(np.maximum(moved, 1e-60)) - np.log(np.maximum(base, 1e-60))
            )
        accumulated = Accumulator.empty(self.n_runs).add_losses(seen.losses)
        rate = self.values[:, COLUMN["learning_rate"]]
        for moments, clipped in zip(seen.moments, seen.clipped, strict=True):
            accumulated = accumulated.add_step(measure(moments, rate, clipped))
        valid, others, drawn = None, self._horizons(), self.drawn
        if drawn.reports_valid:
            # in the unit of the train loss, as a job's: their ratio tells a run that overfits
            n = self.config.valid_examples
            valid = self.task.loss_scale * self.runs.evaluate("inner_valid", limit=n)
            if drawn.tells_slope:
                sloped, curved = self.runs.slope_and_curvature("inner_valid", limit=n)
                others |= {"valid_slope": sloped, "valid_curvature": curved}
        self.statistics = accumulated.finish(
            log_displacement=displacement, valid_loss=valid, others=others
        )
        self._state, observation = features.update(self._state, self.statistics, self.situation())
        if self.finished:
            self._score()
        return observation

    def _horizons(self) -> dict[str, FloatArray]:
        drawn, task = self.drawn, self.task
        names = ("learning_rate", "one_minus_beta1", "one_minus_beta2", "weight_decay")
        now = {name: self.values[:, COLUMN[name]] for name in names}
        return horizons(
            self.interval,
            **now,
            epochs=task.epochs(self.interval) if drawn.tells_epochs else None,
            params_per_label=self._params_per_label,
        )

    def _score(self) -> None:
        self.final_loss = self.runs.evaluate("outer_valid")
        self.reward = self.unchosen = self._speed()
        if self._chooses:
            self.runs.choose("inner_valid")
            self.final_loss = self.runs.evaluate("outer_valid")
            self.reward = self._speed()

    def _speed(self) -> FloatArray:
        if self.frontier is None:
            return np.full(self.n_runs, np.nan)
        bounds = self.config.speed_bounds
        speed = self.frontier.log2_speed(self.final_loss, bounds)
        return np.where(self.alive, speed, bounds[0])
