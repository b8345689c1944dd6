from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhopt.core.actions import COLUMN, N_CONTROLS, Decision
from lhopt.core.safety import BRAKE, BRAKE_FLOOR, MAX_DELTA, MAX_TOTAL, bound
from lhopt.core.statistics import Statistics

LR, DECAY = COLUMN["learning_rate"], COLUMN["weight_decay"]


def safe(
    chosen: list[float],
    relative: list[float] | None = None,
    *,
    loss: float = 1.0,
    schedule: tuple[float, float] = (0.0, 0.0),
) -> Decision:
    return bound(
        np.array([chosen]),
        relative=np.array([relative or [0.0] * N_CONTROLS]),
        statistics=Statistics.from_mapping({"train_loss": loss}),
        schedule_now=np.array([schedule[0]]),
        schedule_next=np.array([schedule[1]]),
    )


def move(column: int, value: float) -> list[float]:
    return [value if j == column else 0.0 for j in range(N_CONTROLS)]


def test_a_loss_that_is_never_a_number_brakes_to_a_sixty_fourth_and_no_further() -> None:
    relative = [0.0] * N_CONTROLS
    for _ in range(40):
        decision = safe([0.0] * N_CONTROLS, relative, loss=float("nan"))
        assert decision.delta[0, LR] >= BRAKE - 1e-12
        relative[LR] += float(decision.delta[0, LR])
    assert relative[LR] == pytest.approx(BRAKE_FLOOR)
    # and a rate that is lower already, by the policy's own choice, stays where it is
    lower = [-6.0 if j == LR else 0.0 for j in range(N_CONTROLS)]
    assert safe([0.0] * N_CONTROLS, lower, loss=float("nan")).delta[0, LR] == pytest.approx(0.0)


any_row = st.lists(st.floats(), min_size=N_CONTROLS, max_size=N_CONTROLS)
# the wire refuses what lies beyond 1e3
relative_row = st.lists(
    st.floats(-1e3, 1e3) | st.just(np.nan), min_size=N_CONTROLS, max_size=N_CONTROLS
)


@settings(max_examples=200, deadline=None)
@given(any_row, relative_row, st.floats(), st.floats(-30, 0), st.floats(-30, 0))
def test_no_policy_leaves_the_bounds(
    chosen: list[float], relative: list[float], loss: float, now: float, after: float
) -> None:
    decision = safe(chosen, relative, loss=loss, schedule=(now, after))
    action = decision.action_delta[0]
    assert np.isfinite(decision.delta).all()
    assert (np.abs(action) <= MAX_DELTA + 1e-9).all()
    steered = np.isfinite(relative)
    assert not decision.delta[0][~steered].any()
    so_far = np.where(steered, relative, 0.0)
    so_far[LR] -= now if steered[LR] else 0.0
    outside = np.abs(so_far + action) > MAX_TOTAL + 1e-9
    # who is outside already may not go further out
    assert (np.abs(so_far + action) <= np.abs(so_far) + 1e-9)[outside].all()
    schedule = np.where(np.arange(N_CONTROLS) == LR, after - now, 0.0) * steered
    np.testing.assert_allclose(decision.delta[0], action + schedule, atol=1e-9)
    if not np.isfinite(loss):
        assert "non-finite-statistics" in decision.reasons[0]
        assert not np.delete(action, LR).any()


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_brakes_and_holds_the_rest(loss: float) -> None:
    decision = safe([1.0] * N_CONTROLS, loss=loss)
    assert decision.action_delta[0, LR] == BRAKE
    assert not np.delete(decision.action_delta[0], LR).any()
    assert decision.reasons == (("non-finite-statistics",),)


def test_the_brake_is_not_applied_where_the_rate_is_not_steered() -> None:
    relative = [0.0] * N_CONTROLS
    relative[LR] = np.nan
    assert safe([0.0] * N_CONTROLS, relative, loss=np.nan).is_hold()


def test_reasons_name_what_was_held_back() -> None:
    assert safe(move(LR, 9.0)).reasons == (("per-decision-bound:learning_rate",),)
    assert safe(move(LR, 9.0)).delta[0, LR] == MAX_DELTA[LR]
    edge = move(DECAY, float(MAX_TOTAL[DECAY]) - 0.1)
    decision = safe(move(DECAY, 0.5), edge)
    assert decision.reasons == (("total-bound:weight_decay",),)
    assert decision.delta[0, DECAY] == pytest.approx(0.1)
    frozen = [np.nan if j == DECAY else 0.0 for j in range(N_CONTROLS)]
    assert safe(move(DECAY, 0.5), frozen).reasons == (("not-steered:weight_decay",),)
    assert safe(move(DECAY, 0.5)).reasons == ((),)


def test_a_value_outside_its_total_may_come_back() -> None:
    far = move(DECAY, float(MAX_TOTAL[DECAY]) + 2.0)
    assert safe(move(DECAY, -0.5), far).delta[0, DECAY] == pytest.approx(-0.5)
    assert safe(move(DECAY, 0.5), far).delta[0, DECAY] == 0.0


def test_the_schedule_is_no_part_of_the_bounds() -> None:
    decision = safe(move(LR, 0.0), move(LR, -8.0), schedule=(-8.0, -9.0))
    assert decision.delta[0, LR] == pytest.approx(-1.0)
    assert decision.action_delta[0, LR] == 0.0
    assert decision.schedule[0] == -9.0
    assert decision.reasons == ((),)
