"""What one interval of a training job measured, as named scalars.

`measure` turns the moments of one inner step into statistics; an `Accumulator` averages them over
the steps of an interval; `finish` closes it. Statistics carry units (a loss is a loss): only
`core/features.py` makes them unitless, and only features reach a policy.

Source of the list: LHOPT (Almeida et al., 2021, arXiv:2106.00958), the thirteen statistics of its
released inner optimizer, plus losses and the move over an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .errors import StatisticsError, UnknownNameError
from .moments import MOMENTS
from .numerics import TINY, logit, normal_cdf
from .types import BoolArray, FloatArray

#: Averaged over tensors (each tensor counts once) and over the measured steps of an interval.
STEP_STATISTICS: tuple[str, ...] = (
    "clipped",  # 1 where the gradient was clipped; nan where the optimizer does not clip
    "adam_like",  # share of entries with sqrt(v) > eps
    "log_update_abs",  # mean log |u|; nan without a second moment
    "log_momentum_over_grad",  # log |m| / |g|
    "log_update_over_param",  # log |lr u| / |p|
    "log_noise_scale",  # log |m| / |m - g|
    "cos_grad_momentum",
    "cos_grad_param",
    "log_param_over_update",  # log |p| / |u|; nan without a second moment
    "cos_grad_update",
    "phi_cos_grad_momentum",  # logit of Phi(sqrt(d) cos): size-free
    "phi_cos_grad_update",  # logit of Phi(sqrt(d) cos)
    "phi_cos_grad_param",  # Phi(sqrt(d) cos)
    "log_grad_norm",  # log of the norm over all tensors
    "log_param_norm",  # log of the norm over all tensors
)
#: Measured once an interval.
INTERVAL_STATISTICS: tuple[str, ...] = (
    "log_displacement",  # log of |p_end - p_start| / |p_start| over the interval
    "train_loss",  # mean over the interval's steps
    "train_loss_std",  # standard deviation over the interval's steps
    "train_loss_sem",  # standard error of the mean
    "train_loss_last",  # mean over the last half of the interval's steps
    "valid_loss",  # on held-out data, if the job has it; nan if not
    "log_decay",  # log of lr * weight decay * steps: the share of the weights that decay takes
    "log_beta1_windows",  # log of (1 - beta1) * steps: averaging windows that fit into it
    "log_beta2_windows",  # log of (1 - beta2) * steps
    "log_epochs",  # log of the passes over the training data; nan if the job does not tell
    "log_params_per_label",  # log of trained scalars per target value; nan if it does not tell
    "valid_slope",  # share by which the held-out loss grows per share by which all weights grow
    "valid_curvature",  # by how much that slope grows, along the same way
)
#: By how much the weights are scaled, both ways, to see that slope.
SLOPE_STEP = 0.02
STATISTICS: tuple[str, ...] = STEP_STATISTICS + INTERVAL_STATISTICS
#: A report without these is refused; the others may be left out (read as nan).
REQUIRED: tuple[str, ...] = ("train_loss",)
INDEX: dict[str, int] = {name: i for i, name in enumerate(STATISTICS)}
#: Log-ratios of momentum to gradient are read this far. At a run's first step m equals g up to
#: rounding, and log |m| / |m - g| is a large number that says only how the rounding fell.
RATIO_BOUND = 5.0


def slope(shrunk: FloatArray, grown: FloatArray) -> FloatArray:
    """The held-out loss's slope along the weights' own size: d log L / d log |w|.

    The gradient of a held-out loss against the direction in which weight decay moves. Above 0
    smaller weights would generalise better at the moment, which suggests that the run decays too
    little. It is what a hypergradient of the decay is made of (Bengio, 2000; Baydin et al., 2018,
    arXiv:1703.04782, for the rate).

    Args:
        shrunk: `(K,)` held-out loss with all weights times 1 - `SLOPE_STEP`.
        grown: `(K,)` the same with 1 + `SLOPE_STEP`.

    Returns:
        `(K,)`, nan where a loss is not finite or both are 0.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        level = np.abs(shrunk) / 2.0 + np.abs(grown) / 2.0
        found = (grown - shrunk) / (2.0 * SLOPE_STEP) / level
    return np.where(np.isfinite(found), found, np.nan)


def curvature(shrunk: FloatArray, same: FloatArray, grown: FloatArray) -> FloatArray:
    """The held-out loss's second derivative by the weights' factor, over the loss.

    Args:
        shrunk: As for `slope`.
        same: `(K,)` held-out loss with the weights as they are.
        grown: As for `slope`.

    Returns:
        `(K,)`, nan where a loss is not finite or `same` is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        level = np.abs(same) * SLOPE_STEP**2
        found = ((grown - same) - (same - shrunk)) / level
    return np.where(np.isfinite(found), found, np.nan)


@dataclass(frozen=True)
class Statistics:
    """Statistics of K runs over one interval.

    Attributes:
        values: `(K, len(STATISTICS))` float64, in the order of `STATISTICS`; nan is "not measured".
    """

    values: FloatArray

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(STATISTICS):
            raise StatisticsError(
                f"Statistics have the shape {self.values.shape}; (K, {len(STATISTICS)}) is wanted, "
                "one column per name of lhopt.core.statistics.STATISTICS."
            )

    def __getitem__(self, name: str) -> FloatArray:
        """One statistic of every run: `(K,)`."""
        return self.values[:, INDEX[name]]

    @property
    def diverged(self) -> BoolArray:
        """`(K,)`: the train loss is nan or infinite."""
        return ~np.isfinite(self["train_loss"])

    @staticmethod
    def stack(rows: Sequence[Statistics]) -> Statistics:
        """Several batches as one, in order."""
        return Statistics(np.concatenate([row.values for row in rows]))

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> Statistics:
        """One run's statistics from names to numbers; what is not named is not measured.

        Raises:
            UnknownNameError: A name that no statistic has.
            StatisticsError: A required statistic is missing.
        """
        row = np.full((1, len(STATISTICS)), np.nan)
        for name, value in values.items():
            if name not in INDEX:
                raise UnknownNameError("statistic", name, STATISTICS)
            row[0, INDEX[name]] = value
        missing = [name for name in REQUIRED if name not in values]
        if missing:
            raise StatisticsError(
                f"Statistics without {', '.join(missing)} (came: {', '.join(values) or 'none'}). "
                f"Required: {', '.join(REQUIRED)}; the others may be left out."
            )
        return cls(row)

    def to_mapping(self, row: int = 0) -> dict[str, float]:
        """One run's measured statistics by name; what is nan is left out, but for losses.

        A loss of nan means divergence, so the required names are always there.
        """
        return {
            name: float(value)
            for name, value in zip(STATISTICS, self.values[row], strict=True)
            if name in REQUIRED or not np.isnan(value)
        }


def horizons(
    steps: int,
    *,
    learning_rate: FloatArray,
    one_minus_beta1: FloatArray,
    one_minus_beta2: FloatArray,
    weight_decay: FloatArray,
    epochs: float | None = None,
    params_per_label: float | None = None,
) -> dict[str, FloatArray]:
    """What an interval's length makes of hyperparameters, and what is told of data: `(K,)` each.

    A weight decay means nothing by itself: what counts is how often the weights are forgotten
    within a run, and betas likewise. Those are unitless, so that jobs may be compared by them.

    Args:
        steps: Of the interval.
        learning_rate: `(K,)`, the rate that its steps use.
        one_minus_beta1: `(K,)`; nan where the optimizer has none, as for the others.
        one_minus_beta2: `(K,)`.
        weight_decay: `(K,)`, decoupled: a step takes `learning_rate * weight_decay` of the weights.
        epochs: Passes over the training data within the interval; None if not known.
        params_per_label: Trained scalars by target values of the training data; None if not known.

    Source: Wang and Aitchison, 2024, arXiv:2405.13698, for decay as an average over epochs.
    """

    def log(value: FloatArray) -> FloatArray:
        return np.log(np.maximum(np.asarray(value, np.float64), 1e-30))

    found = {
        "log_decay": log(learning_rate) + log(weight_decay) + np.log(steps),
        "log_beta1_windows": log(one_minus_beta1) + np.log(steps),
        "log_beta2_windows": log(one_minus_beta2) + np.log(steps),
    }
    told = {"log_epochs": epochs, "log_params_per_label": params_per_label}
    for name, value in told.items():
        if value is not None:
            found[name] = np.full(len(found["log_decay"]), np.log(value))
    return found


def measure(
    moments: FloatArray, learning_rate: FloatArray, clipped: FloatArray | None = None
) -> FloatArray:
    """Statistics of one inner step: `(K, len(STEP_STATISTICS))`.

    Args:
        moments: `(K, tensors, len(MOMENTS))`, see `core/moments.py`.
        learning_rate: `(K,)` or `(K, tensors)`, the rate that the step used.
        clipped: `(K,)`, 1 where the gradient was clipped, or `None` where nothing clips.
    """
    moments = np.asarray(moments, np.float64)
    lr = np.asarray(learning_rate, np.float64)
    lr = lr[:, None] if lr.ndim == 1 else lr
    d, gg, mm, uu, pp, gm, gp, gu, nn, log_abs_u, adam_like = np.moveaxis(moments, -1, 0)
    # without a second moment the update carries the gradient's unit, and so the loss's: SGD's
    # size says nothing that one policy could read in every job
    unitless = ~np.isnan(adam_like)

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):

        def log_norm(square: FloatArray) -> FloatArray:
            return np.log(np.sqrt(square) + TINY)

        def cosine(product: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
            # gradients far below 1 are common: no absolute floor here, or their cosine vanishes
            scale = np.sqrt(a) * np.sqrt(b)
            return np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), 0.0).clip(-1, 1)

        cos_gm, cos_gp, cos_gu = cosine(gm, gg, mm), cosine(gp, gg, pp), cosine(gu, gg, uu)
        phi_gm, phi_gp, phi_gu = (normal_cdf(np.sqrt(d) * c) for c in (cos_gm, cos_gp, cos_gu))
        # in ratios the gradient's own unit must cancel, so these logs take no floor of 1e-8
        log_m_over_g = 0.5 * (np.log(np.maximum(mm, 1e-60)) - np.log(np.maximum(gg, 1e-60)))
        log_noise = 0.5 * (np.log(np.maximum(mm, 1e-60)) - np.log(np.maximum(nn, 1e-60)))
        per_tensor = {
            "adam_like": adam_like,
            "log_update_abs": np.where(unitless, log_abs_u, np.nan),
            "log_momentum_over_grad": np.clip(log_m_over_g, -RATIO_BOUND, RATIO_BOUND),
            "log_update_over_param": np.log(lr * np.sqrt(uu) + TINY) - log_norm(pp),
            "log_noise_scale": np.clip(log_noise, -RATIO_BOUND, RATIO_BOUND),
            "cos_grad_momentum": cos_gm,
            "cos_grad_param": cos_gp,
            "log_param_over_update": np.where(unitless, log_norm(pp) - log_norm(uu), np.nan),
            "cos_grad_update": cos_gu,
            "phi_cos_grad_momentum": logit(phi_gm),
            "phi_cos_grad_update": logit(phi_gu),
            "phi_cos_grad_param": phi_gp,
        }
        out = np.empty((moments.shape[0], len(STEP_STATISTICS)))
        for j, name in enumerate(STEP_STATISTICS):
            if name in per_tensor:
                out[:, j] = per_tensor[name].mean(axis=1)
        out[:, INDEX["clipped"]] = np.nan if clipped is None else clipped
        out[:, INDEX["log_grad_norm"]] = 0.5 * np.log(np.maximum(gg.sum(axis=1), 1e-60))
        out[:, INDEX["log_param_norm"]] = 0.5 * np.log(np.maximum(pp.sum(axis=1), 1e-60))
    return out


@dataclass(frozen=True)
class Accumulator:
    """Running sums of one interval; a value, replaced by each `add_*`.

    Attributes:
        sums: `(K, len(STEP_STATISTICS))` sum over measured steps.
        n_measured: Steps measured so far.
        losses: Per-step losses, each `(K,)`.
    """

    sums: FloatArray
    n_measured: int = 0
    losses: tuple[FloatArray, ...] = ()

    @classmethod
    def empty(cls, n_runs: int) -> Accumulator:
        """An interval in which nothing was measured yet."""
        return cls(np.zeros((n_runs, len(STEP_STATISTICS))))

    def add_step(self, step_statistics: FloatArray) -> Accumulator:
        """Add one measured step, `(K, len(STEP_STATISTICS))`."""
        return replace(self, sums=self.sums + step_statistics, n_measured=self.n_measured + 1)

    def add_losses(self, losses: FloatArray) -> Accumulator:
        """Add the losses of one step, `(K,)`, or of several, `(steps, K)`."""
        rows = np.atleast_2d(np.asarray(losses, np.float64))
        return replace(self, losses=(*self.losses, *rows))

    def finish(
        self,
        *,
        log_displacement: FloatArray | None = None,
        valid_loss: FloatArray | None = None,
        others: Mapping[str, FloatArray] | None = None,
    ) -> Statistics:
        """The interval's statistics.

        Args:
            log_displacement: `(K,)` log of |p_end - p_start| / |p_start|, if measured.
            valid_loss: `(K,)` held-out loss, if the job has one.
            others: Further statistics of the interval by name, as `horizons` gives them.

        Raises:
            StatisticsError: The interval has no loss: `train_loss` is required.
        """
        if not self.losses:
            raise StatisticsError("An interval without a loss; report at least one per interval.")
        values = np.full((self.sums.shape[0], len(STATISTICS)), np.nan)
        if self.n_measured:
            values[:, : len(STEP_STATISTICS)] = self.sums / self.n_measured
        losses = np.stack(self.losses)
        n = len(losses)
        with np.errstate(invalid="ignore", over="ignore"):
            # one bad micro-batch is no divergence; an interval that ends without a number is
            bad = ~np.isfinite(losses)
            recovered = np.asarray((~bad[n // 2 :]).any(axis=0))
            losses = np.where(bad & recovered, np.nan, losses)
            mean, std, count = _moments(losses, recovered)
            values[:, INDEX["train_loss"]] = mean
            values[:, INDEX["train_loss_std"]] = std
            values[:, INDEX["train_loss_sem"]] = std / np.sqrt(np.maximum(count - 1, 1))
            values[:, INDEX["train_loss_last"]] = _moments(losses[n // 2 :], recovered)[0]
        if log_displacement is not None:
            values[:, INDEX["log_displacement"]] = log_displacement
        if valid_loss is not None:
            values[:, INDEX["valid_loss"]] = valid_loss
        for name, value in (others or {}).items():
            values[:, INDEX[name]] = value
        return Statistics(values)


def _moments(losses: FloatArray, recovered: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, standard deviation and count over steps, `(K,)`; nan is left out where `recovered`."""
    used = ~np.isnan(losses) | ~recovered
    count = used.sum(axis=0)
    mean = np.where(used, losses, 0.0).sum(axis=0) / count
    std = np.sqrt(np.where(used, (losses - mean) ** 2, 0.0).sum(axis=0) / count)
    return mean, std, count


__all__ = [
    "INDEX",
    "INTERVAL_STATISTICS",
    "MOMENTS",
    "REQUIRED",
    "STATISTICS",
    "STEP_STATISTICS",
    "Accumulator",
    "Statistics",
    "horizons",
    "measure",
]
