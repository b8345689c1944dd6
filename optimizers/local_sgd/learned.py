"""A trained policy as a communication schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ...core.errors import ConfigurationError, IncompatiblePolicyError
from ...core.types import FloatArray, IntArray
from .checks import rate
from .features import (
    BATCH_CHOICES,
    DECISIONS,
    INTERVAL_CHOICES,
    OBSERVATIONS,
    Sight,
    move_batch,
    move_interval,
    observe,
)
from .protocol import SyncState


class Actor(Protocol):
    """What decides: `lhopt.policy.small.SmallPolicy`, or whatever acts like one."""

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the columns it reads."""

    @property
    def actions(self) -> Mapping[str, tuple[float | int | str, ...]]:
        """What each choice means, by action."""

    def initial(self, n_runs: int = 1) -> Any:
        """The memory before the first observation, a dataclass with `hidden` and `cell`."""

    def act(self, observation: FloatArray, state: Any = None) -> tuple[IntArray, Any]:
        """Choices `(K, 2)` and the memory to keep."""


@dataclass(frozen=True)
class Turn:
    """What holds from a decision on.

    Attributes:
        step: Local step of the decision.
        ticks: Gradients of the first batch size computed until then.
        decisions: How many were taken, this one included.
        interval: Local steps between synchronisations.
        batch: Local batch, in units of the first.
        memory: Of the policy, after the decision.
    """

    step: int
    ticks: int
    decisions: int
    interval: int
    batch: int
    memory: Any


class LearnedInterval:
    """Intervals chosen by a policy that was trained in the environment `local-sgd`.

        policy = lhopt.policy.small.bundled("local-sgd")
        schedule = LearnedInterval(policy, total_steps=2000, price=0.002)
        optimizer = LocalSGD(SGD(model.parameters(), 0.1), schedule, ProcessGroup())

    A run is cut into 32 parts and the policy acts at the start of each, from what all workers know:
    drift, cosine and learning rate of the last synchronisation, progress, price. The rate is seen
    relative to the highest so far: policies were trained on rates that fall, and a warm-up, from 0
    too, looks to them as a constant rate. Decisions that fall between two synchronisations need
    nothing new, so they are taken beforehand, at the first of the two; one that says "sync now"
    ends the interval there. Features and moves are those of the environment, the same functions.
    All workers must run the same numpy on the same kind of machine, or a tie might be broken
    differently; `LocalSGD` notices and says so.

    The bundled policy was trained on runs of 512 to 2048 steps with 4 to 16 workers, on logistic
    regressions; what it does on much longer runs or on networks was not measured.

    Args:
        policy: Who decides.
        total_steps: Length of the run, in local steps at the first batch size; at least 32.
        price: What a round costs, in nats of excess loss: 0.01 means that one round must lower the
            excess loss by 1 percent to be worth it. Trained between 0.0002 and 0.03.
        steer_batch: Whether the policy may raise the local batch up to 8 times. Then read
            `local_batch(step)` before every step and compute the gradient on as much.

    Raises:
        ConfigurationError: A policy's name, `total_steps` below 32, or a price that is not
            positive.
        IncompatiblePolicyError: A policy of another environment, or of another version of it.
    """

    def __init__(
        self, policy: Actor, total_steps: int, price: float, *, steer_batch: bool = False
    ) -> None:
        if isinstance(policy, str):
            raise ConfigurationError(
                f"policy is {policy!r}, a name; pass lhopt.policy.small.bundled({policy!r})."
            )
        if total_steps < DECISIONS:
            raise ConfigurationError(
                f"total_steps={total_steps}; at least {DECISIONS}, one for each decision."
            )
        if not (math.isfinite(price) and price > 0):
            raise ConfigurationError(f"price={price}; it must be finite and > 0.")
        wanted = {"interval": INTERVAL_CHOICES, "local_batch": BATCH_CHOICES}
        if tuple(policy.observations) != OBSERVATIONS or dict(policy.actions) != wanted:
            raise IncompatiblePolicyError(
                f"The policy reads {', '.join(policy.observations)} and chooses "
                f"{dict(policy.actions)}; the environment local-sgd shows "
                f"{', '.join(OBSERVATIONS)} and takes {wanted}. Train it again with this version: "
                "lhopt train --env local-sgd"
            )
        self.policy, self.total_steps, self.price = policy, total_steps, price
        self.steer_batch = steer_batch
        self.period = total_steps // DECISIONS
        self._highest_rate = 0.0
        self._met_at = 0
        #: Decisions since the one that held at the last synchronisation, and the coming ones.
        self._turns: list[Turn] = []

    def next_interval(self, state: SyncState) -> int:
        """Local steps until the next synchronisation; see the class.

        Raises:
            ConfigurationError: The learning rate is not finite, or below 0.
        """
        self._highest_rate = max(self._highest_rate, rate(state.learning_rate))
        if not self._turns:
            self._met_at = state.step
            past = -(-state.step // self.period)
            self._turns = [
                Turn(state.step, state.step, past, self.period, 1, self.policy.initial(1))
            ]
        # whoever synchronised before we planned it has undone the decisions beyond
        kept = [turn for turn in self._turns if turn.step <= state.step]
        turn = kept[-1]
        self._turns = [turn]
        met, self._met_at = self._met_at, state.step
        step, ticks = state.step, turn.ticks + (state.step - turn.step) * turn.batch
        while ticks < self.total_steps:
            if ticks >= turn.decisions * self.period and turn.decisions < DECISIONS:
                turn, now = self._decide(turn, state, step, ticks, state.step - met)
                self._turns.append(turn)
                if step > state.step and (now or step - state.step >= turn.interval):
                    return step - state.step
            last = turn.decisions >= DECISIONS
            ahead = (self.total_steps if last else turn.decisions * self.period) - ticks
            steps = -(-ahead // turn.batch)
            if state.step + turn.interval <= step + steps:
                return turn.interval
            step, ticks = step + steps, ticks + steps * turn.batch
        # at the end of the run the workers meet; whoever trains on keeps the interval
        return step - state.step if step > state.step else turn.interval

    def local_batch(self, step: int) -> int:
        """Local batch at a local step from the last synchronisation on, in units of the first."""
        held = [turn.batch for turn in self._turns if turn.step <= step]
        return held[-1] if held else 1

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        return {
            "first_rate": self._highest_rate,
            "met_at": self._met_at,
            "turns": [
                {
                    "step": turn.step,
                    "ticks": turn.ticks,
                    "decisions": turn.decisions,
                    "interval": turn.interval,
                    "batch": turn.batch,
                    "hidden": turn.memory.hidden.tolist(),
                    "cell": turn.memory.cell.tolist(),
                }
                for turn in self._turns
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`; policy, length and price are those of this schedule."""
        highest = float(state["first_rate"])
        self._highest_rate = highest if math.isfinite(highest) else 0.0  # nan before the first step
        self._met_at = int(state["met_at"])
        self._turns = []
        for row in state["turns"]:
            numbers = {k: int(row[k]) for k in ("step", "ticks", "decisions", "interval", "batch")}
            memory = replace(
                self.policy.initial(1),
                hidden=np.asarray(row["hidden"], np.float32),
                cell=np.asarray(row["cell"], np.float32),
            )
            self._turns.append(Turn(**numbers, memory=memory))

    def _decide(
        self, turn: Turn, state: SyncState, step: int, ticks: int, last_interval: int
    ) -> tuple[Turn, bool]:
        """The policy's next decision, and whether it wants to meet at once."""

        def one(value: float) -> FloatArray:
            return np.array([value], np.float64)

        # before the first rate above 0 there is nothing to compare with
        moving = self._highest_rate > 0.0
        seen = observe(
            Sight(
                ticks=one(ticks),
                total=one(self.total_steps),
                interval=one(turn.interval),
                since=one(step - state.step),
                last_interval=one(last_interval),
                learning_rate=one(state.learning_rate if moving else 1.0),
                first_rate=one(self._highest_rate if moving else 1.0),
                drift=one(state.drift),
                cosine=one(state.cosine),
                price=one(self.price),
                workers=one(state.n_workers),
                batch=one(turn.batch),
                may_move_batch=np.array([self.steer_batch]),
            )
        )
        chosen, memory = self.policy.act(seen, turn.memory)
        interval, now = move_interval(np.array([turn.interval]), chosen[:, 0], self.total_steps)
        batch = move_batch(np.array([turn.batch]), chosen[:, 1], np.array([self.steer_batch]))
        after = Turn(step, ticks, turn.decisions + 1, int(interval[0]), int(batch[0]), memory)
        return after, bool(now[0])
