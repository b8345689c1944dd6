"""Unitless features: the only thing that a policy reads.

No raw loss, no bare hyperparameter and no step count is among them: multiplying a job's loss or its
parameters' scale by a constant leaves (up to noise) the same observation, so one policy serves jobs
that it has never met. A length is shown by how often it fits into the run: that of a weight decay,
of a beta's average, of the data set.

Source: LHOPT (arXiv:2106.00958) section on features and its released configuration. The windows of
the CDF features are our reading of its `integral_cdf`: history at progress s has weight w s^(w-1).

Adding a feature: one function that returns `{name: (K,)}`, listed in `BLOCKS`. Old policies keep
working, because each names the features that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from .controls import CONTROL_NAMES, CONTROLS
from .feedback import DECAY
from .numerics import log_ratio, normal_cdf
from .statistics import INDEX, Statistics
from .types import BoolArray, FloatArray

#: Observations lie in [-BOUND, BOUND].
BOUND = 3.0
#: Widths of the CDF windows: with w, about the last 1/w of the run so far counts.
CDF_WIDTHS: tuple[float, ...] = (2.5, 5.0, 20.0)

#: Statistics shown as they are, as (value - centre) / scale. They are unitless already; centre and
#: scale are round numbers that bring usual values to order 1, fixed for good: no running
#: normaliser that would have to travel with a policy.
RAW: dict[str, tuple[float, float]] = {
    "clipped": (0.5, 0.5),
    "adam_like": (0.5, 0.5),
    "log_update_abs": (-2.0, 2.0),
    "log_momentum_over_grad": (-0.5, 0.5),
    "log_update_over_param": (-6.0, 2.0),
    "log_noise_scale": (0.0, 1.0),
    "cos_grad_momentum": (0.0, 0.5),
    "cos_grad_param": (0.0, 0.2),
    "log_param_over_update": (0.0, 2.0),
    "cos_grad_update": (0.0, 0.5),
    "phi_cos_grad_momentum": (0.0, 5.0),
    "phi_cos_grad_update": (0.0, 5.0),
    "phi_cos_grad_param": (0.5, 0.25),
    "log_displacement": (-3.0, 2.0),
}
#: Statistics ranked in their own history. Those with a unit (losses, norms) appear only here.
RANKED: tuple[str, ...] = (*RAW, "log_grad_norm", "log_param_norm", "train_loss", "valid_loss")
_RANKED_COLUMNS = np.array([INDEX[name] for name in RANKED])


@dataclass(frozen=True)
class FeatureState:
    """What the features remember of K runs. Every array has K rows; all are float64.

    Attributes:
        mean: `(K, len(RANKED), len(CDF_WIDTHS))` weighted mean of each statistic so far.
        var: Same shape, weighted variance.
        seen: `(K, len(RANKED))` how often each statistic was there.
        first_loss: `(K,)` train loss of the first interval; nan before.
        best_loss: `(K,)` lowest train loss so far.
        last_loss: `(K,)` train loss of the previous interval.
        last_sem: `(K,)` its standard error.
        last_valid: `(K,)` latest validation loss.
        last_norm: `(K,)` log parameter norm of the previous interval.
        last_delta: `(K, controls)` delta of the previous decision, schedule and feedback left out.
        feedback: `(K,)` log of the factor that feedback has put on the weight decay so far, which
            no feature shows (`core.feedback`).
        last_feedback: `(K,)` its part of the previous decision.
        expected: `(K,)` log of the weight decay over its start, as the previous decision should
            have left it; nan before.
    """

    mean: FloatArray
    var: FloatArray
    seen: FloatArray
    first_loss: FloatArray
    best_loss: FloatArray
    last_loss: FloatArray
    last_sem: FloatArray
    last_valid: FloatArray
    last_norm: FloatArray
    last_delta: FloatArray
    feedback: FloatArray
    last_feedback: FloatArray
    expected: FloatArray

    @classmethod
    def initial(cls, n_runs: int) -> FeatureState:
        """The state of runs that have reported nothing yet."""
        ranked, widths = len(RANKED), len(CDF_WIDTHS)
        nan = np.full(n_runs, np.nan)
        return cls(
            mean=np.zeros((n_runs, ranked, widths)),
            var=np.zeros((n_runs, ranked, widths)),
            seen=np.zeros((n_runs, ranked)),
            first_loss=nan,
            best_loss=nan,
            last_loss=nan,
            last_sem=nan,
            last_valid=nan,
            last_norm=nan,
            last_delta=np.zeros((n_runs, len(CONTROL_NAMES))),
            feedback=np.zeros(n_runs),
            last_feedback=np.zeros(n_runs),
            expected=nan,
        )

    def take(self, rows: FloatArray | slice) -> FeatureState:
        """The state of some of the runs."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @staticmethod
    def stack(states: list[FeatureState]) -> FeatureState:
        """Several batches as one, in order."""
        return FeatureState(
            *(np.concatenate([getattr(s, f.name) for s in states]) for f in fields(FeatureState))
        )


@dataclass(frozen=True)
class Situation:
    """Where K runs stand when they ask: all relative, all known to the job.

    Attributes:
        progress: `(K,)` fraction of the run done, in (0, 1].
        share: `(K,)` fraction of the run that one interval takes, in (0, 1].
        relative: `(K, controls)` delta of each control from its start, schedule included, in the
            order of `CONTROL_NAMES`; nan where the job does not steer it.
        schedule: `(K,)` log multiplier of the default schedule that the learning rate carries
            now, as set by the last decision that the job applied. The job hands it back, so
            that decisions which never reached it leave no trace.
    """

    progress: FloatArray
    share: FloatArray
    relative: FloatArray
    schedule: FloatArray


@dataclass(frozen=True)
class _Inputs:
    """What a block of features may look at: the state before, and after the ranks moved."""

    statistics: Statistics
    situation: Situation
    before: FeatureState
    after: FeatureState


def _clip(x: FloatArray) -> FloatArray:
    return np.nan_to_num(x, nan=0.0, posinf=BOUND, neginf=-BOUND).clip(-BOUND, BOUND)


def _time(x: _Inputs) -> dict[str, FloatArray]:
    situation = x.situation
    return {
        "progress": situation.progress * 2.0 - 1.0,
        # how much one decision weighs: 25 decisions a run read 0, 5 read 1, 125 read -1
        "decision_share": np.log(situation.share * 25.0) / np.log(5.0),
    }


def _raw(x: _Inputs) -> dict[str, FloatArray]:
    return {
        f"raw/{name}": (x.statistics[name] - centre) / scale
        for name, (centre, scale) in RAW.items()
    }


def _ranks(x: _Inputs) -> dict[str, FloatArray]:
    """CDF of each statistic in its own history: Phi((x - mean) / std), as -1..1; 0 is unknown."""
    values = x.statistics.values[:, _RANKED_COLUMNS][:, :, None]
    std = np.sqrt(x.after.var)
    # relative to the mean: a constant history has a std of rounding, whatever its unit
    known = (std > 1e-9 * np.abs(x.after.mean)) & (std > 1e-150) & np.isfinite(values)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        z = np.where(known, (values - x.after.mean) / np.where(known, std, 1.0), 0.0)
    rank = 2.0 * normal_cdf(z) - 1.0
    # a loss that is nan or inf is the highest ever seen, not an unknown one
    for name in ("train_loss", "valid_loss"):
        column = RANKED.index(name)
        bad = _diverged(x.statistics[name], x.before, name)
        rank[bad, column] = 1.0
    return {
        f"cdf{width:g}/{name}": rank[:, i, j]
        for j, width in enumerate(CDF_WIDTHS)
        for i, name in enumerate(RANKED)
    }


def _diverged(loss: FloatArray, before: FeatureState, name: str) -> BoolArray:
    """Whether a loss went bad; a validation loss that was never reported is only missing."""
    if name == "train_loss":
        return ~np.isfinite(loss)
    return np.isinf(loss) | (np.isnan(loss) & np.isfinite(before.last_valid))


def _shown(slope: FloatArray) -> FloatArray:
    """From 0.03, which is noise, to 5, a net that has learned its data by heart."""
    return np.asarray(np.arcsinh(5.0 * slope) / 2.0)


def _losses(x: _Inputs) -> dict[str, FloatArray]:
    s, before = x.statistics, x.before
    loss, valid, slope = s["train_loss"], s["valid_loss"], s["valid_slope"]
    first = np.isnan(before.last_loss)
    has_valid = np.isfinite(valid)

    def since(old: FloatArray) -> FloatArray:
        return np.where(first & np.isfinite(loss), 0.0, log_ratio(loss, old))

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # improvement in standard errors: tells a plateau from noise, whatever the loss's unit
        error = np.sqrt(s["train_loss_sem"] ** 2 + before.last_sem**2)
        z = (before.last_loss - loss) / np.maximum(error, 1e-12 * np.abs(loss) + 1e-300)
        within = (loss - s["train_loss_last"]) / np.maximum(
            s["train_loss_sem"], 1e-12 * np.abs(loss) + 1e-300
        )
        spread = np.log(np.maximum(s["train_loss_std"], 1e-300)) - np.log(
            np.maximum(np.abs(loss), 1e-300)
        )
    return {
        "loss/ratio_previous": np.tanh(4.0 * since(before.last_loss)),
        "loss/ratio_first": since(before.first_loss),
        "loss/ratio_best": np.tanh(4.0 * since(before.best_loss)),
        "loss/improvement_z": np.tanh(np.nan_to_num(z) / 4.0),
        "loss/improvement_within_z": np.tanh(np.nan_to_num(within) / 4.0),
        "loss/spread": (spread + 3.0) / 1.5,
        "loss/is_nan": np.isnan(loss).astype(np.float64),
        "loss/is_inf": np.isinf(loss).astype(np.float64),
        "valid/present": has_valid.astype(np.float64),
        "valid/ratio_train": np.where(has_valid, np.tanh(log_ratio(valid, loss)), 0.0),
        "valid/ratio_previous": np.where(
            has_valid & np.isfinite(before.last_valid),
            np.tanh(4.0 * log_ratio(valid, before.last_valid)),
            0.0,
        ),
        "valid/diverged": _diverged(valid, before, "valid_loss").astype(np.float64),
        "valid/slope_present": np.isfinite(slope).astype(np.float64),
        "valid/slope": np.where(np.isfinite(slope), _shown(slope), 0.0),
        "norm/ratio_previous": np.tanh(4.0 * (s["log_param_norm"] - before.last_norm)),
    }


def _controls(x: _Inputs) -> dict[str, FloatArray]:
    """Each control relative to its start, whether it is steered, and the last move."""
    out: dict[str, FloatArray] = {}
    for j, name in enumerate(CONTROL_NAMES):
        relative = x.situation.relative[:, j]
        unit = np.log(10.0) if CONTROLS[name].kind == "scale" else 2.0
        out[f"control/{name}"] = relative / unit
        out[f"steered/{name}"] = np.isfinite(relative).astype(np.float64)
        out[f"last/{name}"] = x.before.last_delta[:, j] / CONTROLS[name].max_delta
    return out


def _horizons(x: _Inputs) -> dict[str, FloatArray]:
    """Decay, averages and data within the whole run, at the present interval's pace."""
    s, per_run = x.statistics, -np.log(x.situation.share)
    epochs = s["log_epochs"] + per_run
    return {
        "run/decay": (s["log_decay"] + per_run + 1.0) / 2.0,
        # how much of the way that the weights went would be decay's
        "run/decay_over_move": (s["log_decay"] - s["log_displacement"] + 1.0) / 2.0,
        "run/beta1_windows": (s["log_beta1_windows"] + per_run - 4.0) / 1.5,
        "run/beta2_windows": (s["log_beta2_windows"] + per_run - 1.5) / 1.5,
        "run/epochs": (epochs - 1.5) / 1.5,
        "run/epochs_known": np.isfinite(epochs).astype(np.float64),
        "run/params_per_label": s["log_params_per_label"] / 2.0,
        "run/params_per_label_known": np.isfinite(s["log_params_per_label"]).astype(np.float64),
    }


BLOCKS: tuple[Callable[[_Inputs], dict[str, FloatArray]], ...] = (
    _time,
    _raw,
    _ranks,
    _losses,
    _controls,
    _horizons,
)


def update(
    state: FeatureState, statistics: Statistics, situation: Situation
) -> tuple[FeatureState, FloatArray]:
    """Take one interval's statistics into the history and return the observation.

    Args:
        state: Of the same K runs, after their previous interval.
        statistics: Of the interval that just ended.
        situation: Where the runs stand.

    Returns:
        The next state, and the observation `(K, len(FEATURES))`, float32, in [-3, 3] and finite
        whatever the statistics hold. `last_delta` and `feedback` of the next state are still the
        previous decision's: call `remember` with the new one.
    """
    relative, done = situation.relative[:, DECAY], _feedback_done(state, situation)
    statistics, situation = _without_feedback(done, statistics, situation)
    # statistics of 1e308 overflow on their way to the bound: not worth a warning to the job
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        after = _rank_update(state, statistics)
        inputs = _Inputs(statistics, situation, state, after)
        columns = [column for block in BLOCKS for column in block(inputs).values()]
    observation = _clip(np.stack(columns, axis=1)).astype(np.float32)
    loss, valid = statistics["train_loss"], statistics["valid_loss"]
    norm = statistics["log_param_norm"]
    finite = np.isfinite(loss)
    after = replace(
        after,
        first_loss=np.where(np.isnan(state.first_loss) & finite, loss, state.first_loss),
        best_loss=np.where(finite, np.fmin(state.best_loss, loss), state.best_loss),
        last_loss=np.where(finite, loss, state.last_loss),
        last_sem=np.where(finite, statistics["train_loss_sem"], state.last_sem),
        last_valid=np.where(np.isfinite(valid), valid, state.last_valid),
        last_norm=np.where(np.isfinite(norm), norm, state.last_norm),
        feedback=done,
        expected=relative,
    )
    return after, observation


def remember(
    state: FeatureState, delta: FloatArray, feedback: FloatArray | None = None
) -> FeatureState:
    """The state after a decision.

    Args:
        state: As `update` returned it.
        delta: `(K, controls)` what it moved in all, schedule left out.
        feedback: `(K,)` the part of the weight decay's that was feedback; none if not given.
    """
    own = np.array(delta, np.float64)
    expected = state.expected + own[:, DECAY]
    fed = np.zeros(len(own)) if feedback is None else np.asarray(feedback, np.float64)
    own[:, DECAY] -= fed
    return replace(
        state,
        last_delta=own,
        feedback=state.feedback + fed,
        last_feedback=fed,
        expected=expected,
    )


def _feedback_done(state: FeatureState, situation: Situation) -> FloatArray:
    """How far feedback has moved the decay, by where the job says that it is.

    A decision that never reached the job moved nothing, and one that met the decay's highest value
    less than it should have.
    """
    missing = state.expected - situation.relative[:, DECAY]
    missing = np.where(np.abs(missing) > 1e-6, missing, 0.0)  # nan, too, is nothing
    fed = state.last_feedback
    lost = np.abs(missing - state.last_delta[:, DECAY] - fed) < 1e-6
    undone = np.where(lost, fed, np.clip(missing, np.minimum(fed, 0.0), np.maximum(fed, 0.0)))
    return np.asarray(state.feedback - np.where(missing == 0.0, 0.0, undone))


def _without_feedback(
    moved: FloatArray, statistics: Statistics, situation: Situation
) -> tuple[Statistics, Situation]:
    """What runs would report if the weight decay had only moved as their policies chose."""
    # whoever took the decay into their own hands has the one that they set
    moved = np.where(np.isfinite(situation.relative[:, DECAY]), moved, 0.0)
    if not moved.any():
        return statistics, situation
    values, relative = statistics.values.copy(), situation.relative.copy()
    values[:, INDEX["log_decay"]] -= moved
    relative[:, DECAY] -= moved
    return replace(statistics, values=values), replace(situation, relative=relative)


def _rank_update(state: FeatureState, statistics: Statistics) -> FeatureState:
    """Move the weighted means and variances: alpha_t = w / (w + t), t from 0."""
    values = statistics.values[:, _RANKED_COLUMNS]
    finite = np.isfinite(values)
    widths = np.asarray(CDF_WIDTHS)
    alpha = np.where(finite[:, :, None], widths / (widths + state.seen[:, :, None]), 0.0)
    # huge but finite losses overflow when squared; beyond 1e100 only the order matters
    bounded = np.clip(np.where(finite, values, 0.0), -1e100, 1e100)[:, :, None]
    difference = bounded - state.mean
    return replace(
        state,
        mean=state.mean + alpha * difference,
        var=(1.0 - alpha) * (state.var + alpha * difference**2),
        seen=state.seen + finite,
    )


def _names() -> tuple[str, ...]:
    n_controls = len(CONTROL_NAMES)
    zero = Situation(np.ones(1), np.ones(1), np.zeros((1, n_controls)), np.zeros(1))
    statistics = Statistics(np.ones((1, len(INDEX))))
    state = FeatureState.initial(1)
    inputs = _Inputs(statistics, zero, state, _rank_update(state, statistics))
    return tuple(name for block in BLOCKS for name in block(inputs))


#: Names of the observation's columns, in order.
FEATURES: tuple[str, ...] = _names()
