"""Arms that the batched engine trains, all runs of a task at once.

What a run comes to here is what it comes to in a real loop (`real.py`) with the same optimizer and
schedule; tests hold them to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.actions import COLUMN, N_CONTROLS
from ..core.schedules import Schedule
from ..core.types import FloatArray
from ..env.config import EnvConfig
from ..env.episode import Draw, Episode
from ..env.frontier import cosine
from ..inner_tasks.base import InnerTask
from ..inner_tasks.engine import BatchedRuns, Measured, Settings
from ..optimizers.update import ADAMW as ADAMW_RULE
from ..optimizers.update import StepRule
from ..policy.evaluate import Controller
from . import real
from .real import DECISIONS
from .records import evaluation_steps

#: Makes a controller for an episode.
MakeController = Callable[[Episode], Controller]


@dataclass(frozen=True)
class Losses:
    """What K runs came to.

    Attributes:
        loss: `(K,)` the loss that the task is scored by; infinite if the run diverged.
        test_loss: `(K,)` on `test`, at the same step.
        curve: `(K, evaluations)` `outer_valid` losses along the runs.
    """

    loss: FloatArray
    test_loss: FloatArray
    curve: FloatArray


class CurvedRuns(BatchedRuns):
    """Runs that are evaluated on their way, whatever the pieces they are advanced in.

    Args:
        task: What is trained.
        seeds: One per run.
        settings: Hyperparameters at the start.
        steps: Length of the runs.
        rule: The update rule.
    """

    def __init__(
        self,
        task: InnerTask,
        seeds: Sequence[int],
        settings: Settings,
        *,
        steps: int,
        rule: StepRule = ADAMW_RULE,
    ) -> None:
        super().__init__(task, seeds, settings, rule=rule)
        self._marks = evaluation_steps(steps)
        self._curve: list[FloatArray] = []
        self._tests: list[FloatArray] = []

    def advance(
        self,
        n_steps: int,
        measured: Sequence[int] = (),
        *,
        learning_rates: FloatArray | None = None,
    ) -> Measured:
        """As `BatchedRuns.advance`, with an evaluation at each mark."""
        parts: list[Measured] = []
        done = 0
        while done < n_steps:
            left = self._marks[len(self._curve)] - self.step
            n = min(n_steps - done, left)
            seen = [i - done for i in measured if done <= i < done + n]
            rates = None if learning_rates is None else learning_rates[done : done + n]
            parts.append(super().advance(n, seen, learning_rates=rates))
            done += n
            self._note()
        return Measured(
            np.concatenate([part.losses for part in parts]),
            np.concatenate([part.moments for part in parts]),
            np.concatenate([part.clipped for part in parts]),
        )

    def _note(self) -> None:
        here = self._marks.count(self.step)  # a run shorter than its curve has marks in common
        if not here:
            return
        self._curve += here * [self.evaluate("outer_valid")]
        if self.task.selection == "best" or self.step == self._marks[-1]:
            self._tests += here * [self.evaluate("test")]

    def losses(self) -> Losses:
        """What the finished runs came to."""
        curve, tests = np.stack(self._curve, axis=1), np.stack(self._tests, axis=1)
        at = np.array([real.scored(self.task, line) for line in curve])
        if self.task.selection == "last":
            tests = np.repeat(tests[:, -1:], curve.shape[1], axis=1)
        row = np.arange(len(curve))
        # a run that broke on its way is lost, however good it was before
        whole = np.isfinite(curve[:, -1])
        return Losses(
            np.where(whole, curve[row, at], np.inf), np.where(whole, tests[row, at], np.inf), curve
        )


class _CurvedEpisode(Episode):
    """An episode whose runs are evaluated on their way."""

    runs: BatchedRuns

    def _run_interval(self) -> FloatArray:
        if self.done == 0:
            self.runs = CurvedRuns(
                self.task,
                self.drawn.seeds,
                self._settings(),
                steps=self.steps,
                rule=self.config.steered.rule,
            )
        return super()._run_interval()


def steered(
    task: InnerTask,
    steps: int,
    optimizer: str,
    schedule: Schedule,
    make: MakeController,
    seeds: Sequence[int],
    rates: FloatArray,
) -> Losses:
    """Runs under a controller, in the environment that policies are trained in.

    Every value but the learning rate starts where the torch optimizer's default stands.
    """
    start = np.full((len(seeds), N_CONTROLS), np.nan)
    for name, value in real.default_values(optimizer).items():
        start[:, COLUMN[name]] = value
    start[:, COLUMN["learning_rate"]] = rates
    drawn = Draw(
        tuple(seeds), start, DECISIONS, reports_valid=False, tells_epochs=True, tells_labels=True
    )
    config = EnvConfig(optimizer=optimizer, schedule=schedule)
    episode = _CurvedEpisode(task, steps, config, drawn)
    controller = make(episode)
    index = 0
    while not episode.finished:
        episode.step(controller(episode.observation, index))
        index += 1
    assert isinstance(episode.runs, CurvedRuns)
    return episode.runs.losses()


def adamw_cosine(
    task: InnerTask, steps: int, seeds: Sequence[int], setting: Mapping[str, float]
) -> Losses:
    """AdamW with 5% of warm-up and a cosine to 0.

    Args:
        task: What is trained.
        steps: Length of the runs.
        seeds: One per run.
        setting: "learning_rate", "beta1", "beta2" and "weight_decay".
    """
    settings = Settings(
        learning_rate=setting["learning_rate"],
        one_minus_beta1=1.0 - setting["beta1"],
        one_minus_beta2=1.0 - setting["beta2"],
        weight_decay=setting["weight_decay"],
    )
    runs = CurvedRuns(task, seeds, settings, steps=steps)
    peak, total = np.full(len(seeds), setting["learning_rate"]), np.full(len(seeds), steps)
    for start in range(0, steps, 256):
        stop = min(start + 256, steps)
        runs.advance(stop - start, learning_rates=cosine(peak, total, start, stop))
    return runs.losses()
