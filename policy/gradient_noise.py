"""How much of a policy gradient is signal, and how much of the signal all tasks have in common.

The gradient noise scale says from how many samples on a gradient is more signal than noise
(McCandlish et al., 2018, arXiv:1812.06162). Here samples come in visits to tasks, and so there are
three parts: the gradient that all tasks have in common, which more updates follow; what a task has
beside that, which other tasks undo; and the noise of single runs. Means of inner products tell the
parts apart without bias: between visits to different tasks the first is left, between groups of
runs of one visit the first two. What a visit draws for all its groups, its number of decisions and
what its runs tell, counts as the task's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.errors import ConfigurationError
from ..core.types import FloatArray

#: Draws of tasks behind a standard error.
RESAMPLES = 1000
#: Fewer tasks than this hardly tell how much tasks differ.
FEWEST_TASKS = 5
#: Columns that are multiplied at once: in double precision, which all together would fill memory.
_COLUMNS = 4096


@dataclass(frozen=True)
class Estimate:
    """An estimate of a squared norm: by chance it may be below 0.

    Attributes:
        value: The estimate.
        error: Its standard error over tasks.
    """

    value: float
    error: float

    @property
    def told_apart(self) -> bool:
        """Whether it is more than two standard errors above 0."""
        return self.value > 2.0 * self.error


@dataclass(frozen=True)
class GradientNoise:
    """The parts of a policy gradient, as squared norms of the gradient of one visit.

    Attributes:
        common: Of what all tasks have in common.
        task: Of a task's whole signal: `common`, and what is its own.
        noise: Of the noise of one run.
        runs_per_visit: Runs of a visit.
    """

    common: Estimate
    task: Estimate
    noise: Estimate
    runs_per_visit: int

    @property
    def scatter(self) -> float:
        """Squared distance of one visit's gradient from the common one, expected; at least 0."""
        own = max(0.0, self.task.value - self.common.value)
        return own + max(0.0, self.noise.value) / self.runs_per_visit

    def signal_to_noise(self, visits: float) -> float:
        """Squared common signal over the expected squared error of a mean over so many visits.

        Returns:
            `common` / (`noise` / runs + own signal / visits); nan where nothing scatters.
        """
        scatter = self.scatter
        return self.common.value * visits / scatter if scatter else np.nan

    def visits_needed(self) -> float:
        """Visits whose mean has a signal-to-noise of 1; nan unless `common` is told apart from 0.

        With `runs_per_visit` runs each, the noise scale of McCandlish et al., section 2.2.
        """
        return self.scatter / self.common.value if self.common.told_apart else np.nan


@dataclass(frozen=True)
class Products:
    """Inner products of gradients: all that is read from them.

    Attributes:
        tasks: `(visits,)`, names.
        across: `(visits, visits)`, between the visits' means over their groups.
        within: `(visits,)`, mean over pairs of different groups of the visit.
        square: `(visits,)`, mean squared norm of a group's.
        groups: Groups of runs of a visit.
        group_size: Runs of a group.
    """

    tasks: tuple[str, ...]
    across: FloatArray
    within: FloatArray
    square: FloatArray
    groups: int
    group_size: int

    @classmethod
    def of(cls, gradients: FloatArray, tasks: Sequence[str], group_size: int) -> Products:
        """Multiply them.

        Args:
            gradients: `(visits, groups, parameters)`, each the mean over a group's runs. Groups of
                a visit share task and episode, and neither seed nor start.
            tasks: `(visits,)`, the name of each visit's task. Visits of one name are one task.
            group_size: Runs of a group.

        Raises:
            ConfigurationError: Shapes do not fit, a visit has one group, a number is not finite, or
                there are fewer than `FEWEST_TASKS` tasks.
        """
        if gradients.ndim != 3 or len(gradients) != len(tasks) or group_size < 1:
            raise ConfigurationError(
                f"Gradients have the shape {gradients.shape}, with {len(tasks)} tasks and groups "
                f"of {group_size} runs; (visits, groups, parameters) is wanted, a task for each "
                "visit, and at least one run."
            )
        visits, groups, width = gradients.shape
        if groups < 2:
            raise ConfigurationError(
                "One group of runs per visit cannot tell a task's signal from noise; two or more "
                "are wanted."
            )
        if (n := len(set(tasks))) < FEWEST_TASKS:
            raise ConfigurationError(
                f"{n} different tasks were met in {visits} visits; at least {FEWEST_TASKS} are "
                "wanted to tell what tasks have in common. Collect more updates."
            )
        if not np.isfinite(gradients).all():
            named = sorted(
                {task for task, g in zip(tasks, gradients, strict=True) if not np.isfinite(g).all()}
            )
            raise ConfigurationError(
                f"A gradient of {', '.join(named)} is not finite; leave such visits out."
            )
        flat = gradients.reshape(visits * groups, width)
        gram = np.zeros((len(flat), len(flat)))
        for first in range(0, width, _COLUMNS):
            part = flat[:, first : first + _COLUMNS].astype(np.float64)
            gram += part @ part.T
        blocks = gram.reshape(visits, groups, visits, groups)
        diagonal = np.arange(visits)
        own = blocks[diagonal, :, diagonal]  # (visits, groups, groups)
        trace = np.trace(own, axis1=1, axis2=2)
        return cls(
            tasks=tuple(tasks),
            across=blocks.mean(axis=(1, 3)),
            within=(own.sum(axis=(1, 2)) - trace) / (groups * (groups - 1)),
            square=trace / groups,
            groups=groups,
            group_size=group_size,
        )

    def alike(self) -> Products:
        """The same with every visit scaled to one norm, the median, so that none dominates.

        The norm is that of all its groups' gradients in a row. It holds noise too, so visits with
        more noise, not only those with more signal, count for less than they did. The scale comes
        from the gradients that it scales, so a task's part is read somewhat too small where
        gradients have few entries: by a fifth with three, by a fiftieth with sixty.
        """
        norms = np.sqrt(self.square * self.groups)
        scale = np.divide(np.median(norms), norms, out=np.zeros_like(norms), where=norms > 0.0)
        return replace(
            self,
            across=self.across * np.outer(scale, scale),
            within=self.within * scale**2,
            square=self.square * scale**2,
        )

    def read(self, *, seed: int = 0) -> GradientNoise:
        """The parts and their standard errors over tasks.

        Two visits to one task tell of that task twice, so they count as one draw. A task's part and
        the noise are means over visits, and get their errors by a bootstrap over tasks.

        Args:
            seed: Of the bootstrap's draws.
        """
        _, index = np.unique(np.array(self.tasks), return_inverse=True)
        n_tasks = int(index.max()) + 1
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(n_tasks, np.full(n_tasks, 1.0 / n_tasks), RESAMPLES)
        found = self._means(np.ones((1, len(index))))[:, 0]
        errors = self._means(drawn[:, index].astype(np.float64)).std(axis=1)
        task, noise = (
            Estimate(float(value), float(error)) for value, error in zip(found, errors, strict=True)
        )
        common = self._common(np.eye(n_tasks)[index])
        return GradientNoise(common, task, noise, self.groups * self.group_size)

    def _means(self, counts: FloatArray) -> FloatArray:
        """A task's part and the noise, `(2, draws)`; `counts` is `(draws, visits)`."""
        visits = counts.sum(axis=1)
        task = counts @ self.within / visits
        return np.stack([task, self.group_size * (counts @ self.square / visits - task)])

    def _common(self, member: FloatArray) -> Estimate:
        """The mean product of visits to different tasks, which is a U-statistic over tasks.

        A bootstrap would not do: with nothing in common the statistic is degenerate, and draws of
        one task twice make its spread nearly twice too large, just where it decides.

        Args:
            member: `(visits, tasks)`, 1 where the visit is to the task.

        Source: of its variance: Hoeffding, 1948, "A class of statistics with asymptotically normal
            distribution", estimated without bias by products of pairs without a common task; where
            that is less, the variance that it has when it is degenerate.
        """
        visits, n = member.sum(axis=0), member.shape[1]
        pairs, products = np.outer(visits, visits), member.T @ self.across @ member
        np.fill_diagonal(pairs, 0.0)
        np.fill_diagonal(products, 0.0)
        weight = pairs.sum()
        value = products.sum() / weight
        apart = products - value * pairs
        squares, rows = np.square(apart).sum(), np.square(apart.sum(axis=1)).sum()
        disjoint = n * (n - 1) * (n - 2) * (n - 3)
        unbiased = (4.0 * rows - 2.0 * squares) / disjoint * (n * (n - 1) / weight) ** 2
        error = np.sqrt(max(unbiased, 2.0 * squares / weight**2))
        return Estimate(float(value), float(error))
