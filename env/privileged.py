"""What a critic may see while policies are trained, and no policy ever does.

A value function is thrown away after training, so it may know what would be cheating in an actor:
which task this is, how far off the hidden start was, what the tuned baseline reaches, and how a
run stands among its group. The better it predicts the end, the less of the reward's noise is left
in the advantages (asymmetric actor-critic: Pinto et al., 2018, arXiv:1710.06542).

What a learner is paid is a run's lead over the others of its group (`Sb3VecEnv`), and nothing about
a run alone tells that: without the last columns a critic explains some hundredths of its variance.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

from ..core.actions import COLUMN
from ..core.controls import CONTROLS
from ..core.features import BOUND
from ..core.types import FloatArray
from .config import EnvConfig
from .episode import Episode
from .frontier import Frontier
from .pool import TaskPool

#: Larger pools are told apart by family, hashed into `FAMILY_CODES` columns, not by task.
MAX_TASKS = 1024
FAMILY_CODES = 32
#: Budgets at which the baseline's curve is read.
BUDGETS = (0.25, 0.5, 1.0, 2.0)
#: Columns after code and starts: run length, slope, the budgets' losses, loss now, validation.
N_OTHERS = 1 + 1 + len(BUDGETS) + 1 + 1
#: Losses that are compared within a group: over the interval, over its last half, held out.
N_LEADS = 3
#: Examples of `outer_valid` for the last of them: as many as two chunks of an evaluation.
HELD_OUT_EXAMPLES = 128
#: Nats per octave that a loss is compared in, at least: a blunt frontier makes all leads large.
LEAST_SLOPE = 0.05
#: Of what the columns mean. 2: how a run stands among its group.
VERSION = 2


class PrivilegedView:
    """The privileged columns of an episode, `(K, size)` in [-3, 3].

    In order: which task (one-hot; of the family's hash if the pool is large); log10 of each hidden
    start relative to the optimizer's start (a logit shift / log 10 for those); log2 of the run's
    length, in units of 512 steps, halved; the frontier's slope in nats per octave; its log losses
    at `BUDGETS`, relative to the untrained loss, halved; whether the job reports a validation loss;
    log of the last train loss relative to the frontier's loss at budget 1; then, each minus the
    mean over the run's group (all runs, where there are no groups), the log train losses of the
    interval and of its last half and the log `outer_valid` loss of the averaged weights now, in
    octaves of the frontier's slope, and the values of what is steered, in `Control.distance`.

    Args:
        pool: Tasks that occur.
        config: The optimizer and where it starts.

    Attributes:
        size: Columns.
    """

    def __init__(self, pool: TaskPool, config: EnvConfig) -> None:
        names = [entry.name for entry in pool.entries]
        self._by_task = len(set(names)) <= MAX_TASKS
        self._index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self._n_codes = len(self._index) if self._by_task else FAMILY_CODES
        self._starts = {**config.steered.start, **config.start}
        self._curves = {(e.name, e.spec.steps): _curve(e.frontier) for e in pool.entries}
        self._controls = config.controls
        self._group = config.group_size
        self.size = self._n_codes + len(self._starts) + N_OTHERS + N_LEADS + len(self._controls)

    def of(self, episode: Episode) -> FloatArray:
        """The columns now; the last interval's train loss is the only one that changes in a run."""
        k, name = episode.n_runs, episode.task.name
        assert episode.frontier is not None
        assert episode.statistics is not None
        code = np.zeros((k, self._n_codes))
        code[:, self._code(name, episode.task.family)] = 1.0
        starts = [
            CONTROLS[control].distance(episode.start[:, COLUMN[control]], np.asarray(value))
            for control, value in self._starts.items()
        ]
        at_one = _log(episode.frontier.losses[episode.frontier.budgets.index(1.0)])
        with np.errstate(divide="ignore", invalid="ignore"):
            loss = np.log(episode.statistics["train_loss"]) - at_one
        constant = np.array(
            [
                0.5 * (np.log2(episode.steps) - 9.0),
                *self._curves[(name, episode.steps)],
                float(episode.drawn.reports_valid),
            ]
        )
        columns = np.concatenate(
            [
                code,
                np.stack(starts, axis=1) / np.log(10.0),
                np.tile(constant, (k, 1)),
                np.nan_to_num(loss, nan=BOUND, posinf=BOUND, neginf=-BOUND)[:, None],
                self._among_group(episode),
            ],
            axis=1,
        )
        return np.asarray(np.clip(columns, -BOUND, BOUND), np.float32)

    def _among_group(self, episode: Episode) -> FloatArray:
        """How far each run is from the mean of its group, `(K, N_LEADS + controls)`."""
        assert episode.statistics is not None
        slope = max(self._curves[(episode.task.name, episode.steps)][0], LEAST_SLOPE)
        held_out = episode.runs.evaluate("outer_valid", limit=HELD_OUT_EXAMPLES)
        losses = [episode.statistics["train_loss"], episode.statistics["train_loss_last"], held_out]
        # a broken run's loss is read as e ** 7, about the worst that any task begins with
        logs = [np.nan_to_num(_log(x), nan=7.0, posinf=7.0) / slope for x in losses]
        values = [
            control.distance(
                episode.values[:, COLUMN[control.name]], episode.start[0, COLUMN[control.name]]
            )
            for control in self._controls
        ]
        columns = np.nan_to_num(np.stack([*logs, *values], axis=1))
        groups = columns.reshape(-1, self._group or episode.n_runs, columns.shape[1])
        return np.asarray((groups - groups.mean(axis=1, keepdims=True)).reshape(columns.shape))

    def _code(self, name: str, family: str) -> int:
        return self._index[name] if self._by_task else crc32(family.encode()) % FAMILY_CODES


def _curve(frontier: Frontier) -> list[float]:
    """Slope in nats per octave, and log losses at `BUDGETS` below the untrained loss, halved."""
    octaves = np.log2(np.asarray(frontier.budgets))
    logs = np.minimum.accumulate(_log(np.asarray(frontier.losses)))
    read = np.interp(np.log2(np.asarray(BUDGETS)), octaves, logs)
    slope = (logs[0] - logs[-1]) / (octaves[-1] - octaves[0])
    return [float(slope), *(0.5 * (read - _log(frontier.untrained))).tolist()]


def _log(loss: FloatArray | float) -> FloatArray:
    return np.log(np.maximum(np.asarray(loss, np.float64), 1e-12))
