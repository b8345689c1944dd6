from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lhopt.core.actions import COLUMN, N_CONTROLS
from lhopt.core.controls import get_controls
from lhopt.core.errors import IncompatiblePolicyError
from lhopt.core.features import FEATURES, Situation
from lhopt.core.schedules import Schedule
from lhopt.core.statistics import STATISTICS, Statistics
from lhopt.core.types import FloatArray
from lhopt.policy.artifact import Policy
from lhopt.policy.export import export
from lhopt.policy.learner import HyperparameterPolicy, PaddedCategorical
from lhopt.policy.runtime import State, choose, decide, forward, opening

K = 64
ROUNDS = 5


def inputs(round_: int) -> tuple[Statistics, Situation]:
    rng = np.random.default_rng(round_)
    relative = rng.normal(size=(K, N_CONTROLS))
    relative[rng.random((K, N_CONTROLS)) < 0.3] = np.nan
    values = rng.normal(size=(K, len(STATISTICS)))
    values[rng.random(values.shape) < 0.05] = np.nan
    return Statistics(values), Situation(
        np.full(K, (round_ + 1) / 10), np.full(K, 0.1), relative, -rng.random(K)
    )


def part(rows: slice, statistics: Statistics, s: Situation) -> tuple[Statistics, Situation]:
    situation = Situation(s.progress[rows], s.share[rows], s.relative[rows], s.schedule[rows])
    return Statistics(statistics.values[rows]), situation


@pytest.mark.parametrize("selection", ["mean", "mode", "sample"])
def test_decisions_do_not_depend_on_who_else_asks(
    make: Callable[..., Policy], selection: str
) -> None:
    policy = make(selection=selection)
    seeds = [[7, i] for i in range(K)]
    results: dict[int, tuple[list[FloatArray], list[bytes]]] = {}
    for size in (1, 7, 64):
        deltas: list[FloatArray] = [np.empty((K, N_CONTROLS)) for _ in range(ROUNDS)]
        states: list[bytes] = []
        for start in range(0, K, size):
            rows = slice(start, min(start + size, K))
            state = State.initial(policy, rows.stop - start)
            for i in range(ROUNDS):
                statistics, situation = part(rows, *inputs(i))
                state, decision = decide(policy, state, statistics, situation, seeds=seeds[rows])
                deltas[i][rows] = decision.delta
            states += [state.row(j).to_bytes() for j in range(rows.stop - start)]
        results[size] = deltas, states
    for size in (1, 7):
        np.testing.assert_array_equal(results[size][0], results[64][0])
        assert results[size][1] == results[64][1]
    assert np.abs(results[1][0]).max() > 0.1


def test_a_state_survives_as_bytes(policy: Policy) -> None:
    state = State.initial(policy, K)
    for i in range(3):
        state, _ = decide(policy, state, *inputs(i))
    again = State.stack([State.from_bytes(state.row(i).to_bytes(), policy) for i in range(K)])
    a, first = decide(policy, state, *inputs(3))
    b, second = decide(policy, again, *inputs(3))
    np.testing.assert_array_equal(first.delta, second.delta)
    assert [a.row(i).to_bytes() for i in range(K)] == [b.row(i).to_bytes() for i in range(K)]


def test_a_state_of_another_policy_is_refused(policy: Policy, make: Callable[..., Policy]) -> None:
    data = State.initial(make(hidden=4)).to_bytes()
    with pytest.raises(IncompatiblePolicyError, match="saved by another version or policy"):
        State.from_bytes(data, policy)
    with pytest.raises(IncompatiblePolicyError):
        State.from_bytes(b"", policy)


def test_the_numpy_network_equals_the_learners_actor() -> None:
    torch.manual_seed(0)
    controls = get_controls(["learning_rate", "one_minus_beta1", "clip_ratio"])
    learner = HyperparameterPolicy(
        spaces.Box(-3, 3, (len(FEATURES),), np.float32),
        spaces.MultiDiscrete([len(c.choices) for c in controls]),
        lambda _: 1e-3,
        controls=controls,
        lstm_hidden_size=8,
        net_arch={"pi": [6], "vf": [6]},
        enable_critic_lstm=True,
    )
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    policy = export(
        learner.state_dict(), name="x", controls=controls, schedule=Schedule(), optimizer="y"
    )
    rng = np.random.default_rng(0)
    hidden = cell = np.zeros((5, 8), np.float32)
    states: tuple[torch.Tensor, ...] = torch.zeros(1, 5, 8), torch.zeros(1, 5, 8)
    starts = torch.zeros(5)
    for _ in range(20):
        observation = rng.uniform(-3, 3, (5, len(FEATURES))).astype(np.float32)
        with torch.no_grad():
            distribution, states = learner.get_distribution(
                torch.from_numpy(observation), (states[0], states[1]), starts
            )
        assert isinstance(distribution, PaddedCategorical)
        hidden, cell, logits = forward(policy, hidden, cell, observation)
        for j, columns in enumerate(policy.slices):
            ours = torch.from_numpy(logits[:, columns]).log_softmax(-1)
            theirs = distribution.log_p[:, j, : ours.shape[1]]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(hidden), states[0][0], rtol=0, atol=1e-5)


def test_selections_choose_as_they_say(make: Callable[..., Policy]) -> None:
    logits = np.zeros((2, 9 + 3 + 5), np.float32)
    logits[0, 7] = np.log(3.0)  # "learning rate x 2": 3/11, the others 1/11
    lr = COLUMN["learning_rate"]
    deltas = make().controls[0].deltas
    index, delta = choose(make(selection="mode"), logits)
    assert index[0, 0] == 7
    assert delta[0, lr] == pytest.approx(np.log(2.0))
    _, delta = choose(make(selection="mean"), logits)
    assert delta[0, lr] == pytest.approx((deltas.sum() + 2 * np.log(2.0)) / 11)
    assert not delta[:, COLUMN["weight_decay"]].any()


def test_samples_follow_the_probabilities_and_their_seed(make: Callable[..., Policy]) -> None:
    policy, n = make(selection="sample"), 4000
    logits = np.tile(np.log(np.arange(1, 18, dtype=np.float32)), (n, 1))
    seeds = [[i] for i in range(n)]
    index, delta = choose(policy, logits, seeds)
    share = np.bincount(index[:, 1], minlength=3) / n
    np.testing.assert_allclose(share, np.array([10, 11, 12]) / 33, atol=0.03)
    again, _ = choose(policy, logits, seeds)
    np.testing.assert_array_equal(index, again)
    np.testing.assert_array_equal(delta[:, 0], policy.controls[0].deltas[index[:, 0]])
    other, _ = choose(policy, logits, [[i, 1] for i in range(n)])
    assert (other != index).any()
    with pytest.raises(ValueError, match="one seed per run"):
        choose(policy, logits)


def test_the_opening_is_the_schedule_alone() -> None:
    steered = np.ones((2, N_CONTROLS), bool)
    steered[1, COLUMN["learning_rate"]] = False
    decision = opening(Schedule(warmup_from=0.1), np.full(2, 0.04), steered)
    wanted = np.log(0.1) + np.log(1 - 0.02)
    assert decision.delta[0, COLUMN["learning_rate"]] == pytest.approx(wanted)
    assert decision.is_hold(1)
    own = opening(Schedule(), np.full(2, 0.04), steered, np.zeros(2, bool))
    assert own.is_hold(0)


def test_a_job_with_its_own_schedule_gets_the_policys_part_alone(policy: Policy) -> None:
    statistics, situation = inputs(0)
    _, with_schedule = decide(policy, State.initial(policy, K), statistics, situation)
    _, without = decide(
        policy, State.initial(policy, K), statistics, situation, scheduled=np.zeros(K, bool)
    )
    np.testing.assert_array_equal(without.action_delta, with_schedule.action_delta)
    np.testing.assert_array_equal(without.delta, without.action_delta)
    np.testing.assert_array_equal(without.schedule, situation.schedule)
