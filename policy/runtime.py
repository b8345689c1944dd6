"""Policy inference in numpy, and the whole decision around it.

`decide` is the one path from statistics to a decision: the server and the embedded client call it,
and the environment runs the same pieces with the network replaced by the learner's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from ..core import features, safety
from ..core.actions import COLUMN, N_CONTROLS, Decision
from ..core.errors import IncompatiblePolicyError
from ..core.features import CDF_WIDTHS, RANKED, FeatureState, Situation
from ..core.feedback import DECAY, Feedback
from ..core.numerics import sigmoid
from ..core.schedules import Schedule
from ..core.statistics import Statistics
from ..core.types import BoolArray, FloatArray, IntArray
from .artifact import Policy

#: What `FeatureState` has at its end that a state which was saved before there was feedback lacks.
LATER = ("feedback", "last_feedback", "expected")
#: Rows per matrix product. BLAS takes other kernels for other row counts, and their last bits
#: differ; with blocks of one fixed size a run gets the same decision alone or among a hundred.
BLOCK = 8


@dataclass(frozen=True)
class State:
    """What is remembered of K runs between decisions; a value, replaced by each `decide`.

    Attributes:
        features: Histories behind the features.
        hidden: `(K, H)` float32, the LSTM's output.
        cell: `(K, H)` float32, the LSTM's cell.
    """

    features: FeatureState
    hidden: FloatArray
    cell: FloatArray

    @classmethod
    def initial(cls, policy: Policy, n_runs: int = 1) -> State:
        """Before the first decision."""
        zero = np.zeros((n_runs, policy.hidden_size), np.float32)
        return cls(FeatureState.initial(n_runs), zero, zero)

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """Several batches as one, in order."""
        return State(
            FeatureState.stack([s.features for s in states]),
            np.concatenate([s.hidden for s in states]),
            np.concatenate([s.cell for s in states]),
        )

    def row(self, i: int) -> State:
        """One run's state."""
        rows = slice(i, i + 1)
        return State(self.features.take(rows), self.hidden[rows], self.cell[rows])

    def to_bytes(self) -> bytes:
        """One run's state as bytes, exact; see `from_bytes`."""
        arrays = [getattr(self.features, f.name) for f in fields(self.features)]
        flat = np.concatenate([np.ravel(a) for a in arrays]).astype("<f8")
        lstm = np.concatenate([np.ravel(self.hidden), np.ravel(self.cell)]).astype("<f4")
        return flat.tobytes() + lstm.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, policy: Policy) -> State:
        """The state that `to_bytes` wrote, for the same policy.

        Raises:
            IncompatiblePolicyError: The bytes are of another policy's or version's state.
        """
        like = FeatureState.initial(1)
        shapes = [getattr(like, f.name).shape for f in fields(like)]
        sizes = [int(np.prod(shape)) for shape in shapes]
        h = policy.hidden_size
        if len(data) == 8 * (sum(sizes) - len(LATER)) + 8 * h:  # of before there was feedback
            later = np.concatenate([np.ravel(getattr(like, name)) for name in LATER])
            data = data[: -8 * h] + later.astype("<f8").tobytes() + data[-8 * h :]
        if len(data) != 8 * sum(sizes) + 8 * h:
            raise IncompatiblePolicyError(
                f"A saved state of {len(data)} bytes; policy {policy.name!r} with {len(RANKED)} "
                f"ranked statistics in {len(CDF_WIDTHS)} windows has "
                f"{8 * sum(sizes) + 8 * h}. It was saved by another version or policy."
            )
        flat = np.frombuffer(data[: 8 * sum(sizes)], "<f8")
        lstm = np.frombuffer(data[8 * sum(sizes) :], "<f4").astype(np.float32)
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return cls(
            FeatureState(*(p.reshape(s) for p, s in zip(parts, shapes, strict=True))),
            lstm[None, :h].copy(),
            lstm[None, h:].copy(),
        )


class Network(Protocol):
    """Whatever holds the tensors that `forward` reads; see `artifact.Policy.weights`."""

    @property
    def weights(self) -> Mapping[str, FloatArray]:
        """Float32 tensors by name."""


def forward(
    policy: Network, hidden: FloatArray, cell: FloatArray, observation: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """One step of the network.

    Args:
        policy: Whose weights.
        hidden: `(K, H)`.
        cell: `(K, H)`.
        observation: `(K, F)` float32, one column per input of the network.

    Returns:
        Next hidden and cell state, `(K, H)`, and logits `(K, sum of choices)`, float32.
    """
    k, w = len(observation), policy.weights
    padded = -k % BLOCK

    def pad(x: FloatArray) -> FloatArray:
        return np.concatenate([x, np.zeros((padded, x.shape[1]), x.dtype)]) if padded else x

    # one memory order: picked columns come transposed, and BLAS rounds that otherwise
    x, h, c = (
        np.ascontiguousarray(pad(np.asarray(a, np.float32))) for a in (observation, hidden, cell)
    )
    gates = _product(x, w["lstm.weight_ih"]) + _product(h, w["lstm.weight_hh"]) + w["lstm.bias"]
    i, f, g, o = np.split(gates, 4, axis=1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    m = np.tanh(_product(h, w["hidden.weight"]) + w["hidden.bias"])
    logits = _product(m, w["head.weight"]) + w["head.bias"]
    return h[:k], c[:k], logits[:k]


def choose(
    policy: Policy, logits: FloatArray, seeds: Sequence[Sequence[int]] | None = None
) -> tuple[IntArray, FloatArray]:
    """Chosen index and delta of each control the policy steers.

    Args:
        policy: Whose controls and selection.
        logits: `(K, sum of choices)`.
        seeds: One seed per run, wanted by "sample"; the same seed gives the same draw.

    Returns:
        Indices `(K, len(policy.controls))`, and deltas `(K, all controls)`. With the selection
        "mean" the index is the likeliest choice, for display; the delta is the mean.
    """
    k = len(logits)
    index = np.zeros((k, len(policy.controls)), np.int64)
    delta = np.zeros((k, N_CONTROLS))
    draws = np.zeros((k, len(policy.controls)))
    if policy.selection == "sample":
        if seeds is None:
            raise ValueError("a policy with the selection 'sample' needs one seed per run")
        draws = np.stack([np.random.default_rng(s).random(len(policy.controls)) for s in seeds])
    for j, (control, part) in enumerate(zip(policy.controls, policy.slices, strict=True)):
        scores = logits[:, part].astype(np.float64)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        if policy.selection == "sample":
            index[:, j] = (
                (p.cumsum(axis=1) < draws[:, j : j + 1])
                .sum(axis=1)
                .clip(max=len(control.choices) - 1)
            )
        else:
            index[:, j] = p.argmax(axis=1)
        column = COLUMN[control.name]
        if policy.selection == "mean":
            delta[:, column] = (p * control.deltas).sum(axis=1)
        else:
            delta[:, column] = control.deltas[index[:, j]]
    return index, delta


def opening(
    schedule: Schedule, share: FloatArray, steered: BoolArray, scheduled: BoolArray | None = None
) -> Decision:
    """The decision for the first interval, before anything is measured: the schedule alone.

    Args:
        schedule: The policy's.
        share: `(K,)` fraction of the run that one interval takes.
        steered: `(K, controls)` which controls the job lets us steer.
        scheduled: `(K,)` False where the job brings its own schedule; all True if not given.
    """
    share = np.asarray(share, np.float64)
    multiplier = schedule.log_multiplier(np.zeros_like(share), share)
    on = steered[:, COLUMN["learning_rate"]]
    multiplier = np.where(on if scheduled is None else on & scheduled, multiplier, 0.0)
    delta = np.zeros((len(share), N_CONTROLS))
    delta[:, COLUMN["learning_rate"]] = multiplier
    return Decision(delta, np.zeros_like(delta), multiplier, ((),) * len(share))


def decide(
    policy: Policy,
    state: State,
    statistics: Statistics,
    situation: Situation,
    *,
    scheduled: BoolArray | None = None,
    seeds: Sequence[Sequence[int]] | None = None,
) -> tuple[State, Decision]:
    """Statistics in, decision out, for K runs that the same policy steers.

    Args:
        policy: Who decides.
        state: Of these runs, after their previous decision.
        statistics: Of the interval that just ended.
        situation: Where the runs stand.
        scheduled: `(K,)` False where the job brings its own schedule; all True if not given.
        seeds: See `choose`.

    Returns:
        The state to keep, and the decision for the next interval.
    """
    remembered, observation = features.update(state.features, statistics, situation)
    hidden, cell, logits = forward(policy, state.hidden, state.cell, observation[:, policy.columns])
    _, chosen = choose(policy, logits, seeds)
    decision, fed = bounded(
        policy.schedule,
        policy.feedback,
        chosen,
        statistics,
        situation,
        scheduled,
        moved=remembered.feedback,
    )
    remembered = features.remember(remembered, decision.action_delta, fed)
    return State(remembered, hidden, cell), decision


def bounded(
    schedule: Schedule,
    feedback: Feedback | None,
    chosen: FloatArray,
    statistics: Statistics,
    situation: Situation,
    scheduled: BoolArray | None = None,
    *,
    moved: FloatArray,
) -> tuple[Decision, FloatArray | None]:
    """A policy's deltas `(K, controls)`, schedule and feedback added, and the safety bounds kept.

    Args:
        schedule: The policy's.
        feedback: The policy's.
        chosen: What it chose.
        statistics: Of the interval that just ended.
        situation: Where the runs stand.
        scheduled: See `decide`.
        moved: `(K,)` `FeatureState.feedback`: how far feedback has moved the decay so far.

    Returns:
        The decision, and of its move of the weight decay the part that is feedback's, `(K,)`; None
        without feedback.
    """
    own = np.asarray(chosen, np.float64)[:, DECAY]
    own = np.where(np.isfinite(own), own, 0.0)  # what is no number is held, feedback or not
    move = None if feedback is None else feedback.move(statistics, situation.share, moved)
    if move is not None:
        # who does not steer the decay is not told that it was to be moved
        move = np.where(np.isfinite(situation.relative[:, DECAY]), move, 0.0)
        chosen = np.array(chosen, np.float64)
        chosen[:, DECAY] = own + move
    schedule_next = schedule.log_multiplier(situation.progress, situation.share)
    on = np.isfinite(situation.relative[:, COLUMN["learning_rate"]])
    on = on if scheduled is None else on & scheduled
    decision = safety.bound(
        chosen,
        relative=situation.relative,
        statistics=statistics,
        schedule_now=situation.schedule,
        schedule_next=np.where(on, schedule_next, situation.schedule),
    )
    if move is None:
        return decision, None
    # where a bound cut, or a loss that is not finite held everything, less of it was done
    done = decision.action_delta[:, DECAY] - own
    done = np.clip(done, np.minimum(move, 0.0), np.maximum(move, 0.0))
    return decision, np.where(statistics.diverged, 0.0, done)


def _sigmoid(x: FloatArray) -> FloatArray:
    return sigmoid(x).astype(np.float32)


def _product(x: FloatArray, weight: FloatArray) -> FloatArray:
    """X @ weight.T in blocks of `BLOCK` rows."""
    out = np.empty((len(x), len(weight)), np.float32)
    for start in range(0, len(x), BLOCK):
        out[start : start + BLOCK] = x[start : start + BLOCK] @ weight.T
    return out
