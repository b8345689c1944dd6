from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhopt.core.actions import COLUMN, N_CONTROLS, Decision, action_deltas, apply, noop
from lhopt.core.controls import CONTROLS, Control, get_controls
from lhopt.core.errors import ConfigurationError, ControlError, UnknownNameError
from lhopt.core.schedules import Schedule

every_control = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)


@every_control
def test_distance_is_the_inverse_of_apply(control: Control) -> None:
    start = np.full(41, control.start)
    delta = np.linspace(-1.0, 1.0, 41)
    value = control.apply(start, delta)
    inside = (value > control.low) & (value < control.high)
    assert inside.sum() > 20
    np.testing.assert_allclose(control.distance(value, start)[inside], delta[inside], atol=1e-9)


@every_control
def test_values_stay_inside_their_bounds(control: Control) -> None:
    value = control.apply(np.full(3, control.start), np.array([-1e3, 1e-3, 700.0]))
    assert (value >= control.low).all()
    assert (value <= control.high).all()


@every_control
def test_a_noop_never_drags_a_value_inside(control: Control) -> None:
    outside = np.array([0.0, control.low / 10, control.high * 10])
    np.testing.assert_array_equal(control.apply(outside, np.zeros(3)), outside)
    assert control.deltas[control.noop] == 0.0


@every_control
def test_choices_lie_within_the_bound_of_one_decision(control: Control) -> None:
    assert np.abs(control.deltas).max() <= control.max_delta
    assert control.low < control.start < control.high


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), max_size=30))
def test_factors_add_up_as_deltas(factors: list[float]) -> None:
    control, value, total = CONTROLS["learning_rate"], 1e-2, 0.0
    for factor in factors:
        value = float(control.apply(np.array(value), np.array(math.log(factor))))
        if not control.low < value < control.high:
            return
        total += math.log(factor)
    assert float(control.distance(np.array(value), np.array(1e-2))) == pytest.approx(total)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"choices": (0.5, 2.0)}, r"one must be the no-op \(1\)"),
        ({"choices": (0.0, 1.0)}, "factors must be > 0"),
        ({"start": 9.0}, r"its bounds are \[0\.0, 1\.0\]"),
    ],
)
def test_a_control_that_makes_no_sense_is_refused(words: dict[str, Any], match: str) -> None:
    plain: dict[str, Any] = {"choices": (0.5, 1.0), "low": 0.0, "high": 1.0, "start": 0.5}
    with pytest.raises(ConfigurationError, match=match):
        Control("x", "scale", **{**plain, **words})


def test_controls_come_in_registry_order_and_typos_name_the_nearest() -> None:
    assert [c.name for c in get_controls(["eps", "learning_rate"])] == ["learning_rate", "eps"]
    assert get_controls() == tuple(CONTROLS.values())
    with pytest.raises(UnknownNameError, match="Nearest: learning_rate"):
        get_controls(["learning rate"])
    for names in ([], ["eps", "eps"]):
        with pytest.raises(ControlError, match="each control once"):
            get_controls(names)


def test_indices_become_deltas_in_the_right_columns() -> None:
    controls = get_controls(["learning_rate", "clip_ratio"])
    delta = action_deltas(np.array([[8, 0], [4, 2]]), controls)
    assert delta[0, COLUMN["learning_rate"]] == pytest.approx(math.log(4.0))
    assert delta[0, COLUMN["clip_ratio"]] == -1.0
    assert not delta[1].any()
    assert not action_deltas(noop(controls, 3), controls).any()
    assert not delta[:, 1:5].any()


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (np.zeros(2, np.int64), "shape"),
        (np.zeros((1, 3), np.int64), "shape"),
        (np.zeros((1, 2)), "float64"),
        (np.array([[9, 0]]), "Action index 9 for 'learning_rate'"),
        (np.array([[0, -1]]), "Action index -1 for 'clip_ratio'"),
    ],
    ids=["flat", "wide", "float", "high", "negative"],
)
def test_a_wrong_action_is_refused(action: np.ndarray, match: str) -> None:
    with pytest.raises(ControlError, match=match):
        action_deltas(action, get_controls(["learning_rate", "clip_ratio"]))


def test_a_decision_is_applied_by_name() -> None:
    delta = np.zeros((2, N_CONTROLS))
    delta[1, COLUMN["learning_rate"]] = math.log(2.0)
    delta[1, COLUMN["clip_ratio"]] = 1.0
    decision = Decision(delta, delta, np.zeros(2), ((), ("why",)))
    assert decision.is_hold(0)
    assert not decision.is_hold(1)
    values = {"learning_rate": 0.1, "clip_ratio": 0.5}
    assert apply(values, decision, 0) == values
    moved = apply(values, decision, 1)
    assert moved["learning_rate"] == pytest.approx(0.2)
    assert moved["clip_ratio"] == pytest.approx(1 / (1 + math.exp(-1)))
    one = decision.row(1)
    assert one.reasons == (("why",),)
    assert one.moves()["learning_rate"] == pytest.approx(2.0)
    assert one.moves()["clip_ratio"] == 1.0
    assert Decision.hold(3, "closed").reasons == (("closed",),) * 3


def test_a_linear_schedule_is_read_at_the_middle_of_each_interval() -> None:
    schedule = Schedule(kind="linear", warmup=0, final=0.2)
    progress, share = np.arange(10) / 10, np.full(10, 0.1)
    wanted = np.log(1 - 0.8 * (progress + 0.05))
    np.testing.assert_allclose(schedule.log_multiplier(progress, share), wanted)
    # a last interval that is cut short is read at the middle of what is left
    last = Schedule(warmup=0).log_multiplier(np.array([0.96]), np.array([0.1]))
    assert float(last[0]) == pytest.approx(math.log(0.02))


def test_warmup_rises_geometrically() -> None:
    schedule = Schedule(kind="none", warmup=2, warmup_from=0.01)
    progress = np.arange(4) / 25
    multiplier = np.exp(schedule.log_multiplier(progress, np.full(4, 1 / 25)))
    np.testing.assert_allclose(multiplier, [0.01, 0.1, 1.0, 1.0])


def test_a_schedule_is_never_above_one_nor_without_a_logarithm() -> None:
    for schedule in (Schedule(), Schedule.off(), Schedule(final=1.0)):
        progress = np.linspace(0, 1, 101)[:-1]
        out = schedule.log_multiplier(progress, np.full(100, 0.01))
        assert np.isfinite(out).all()
        assert (out <= 0).all()
    assert not Schedule.off().log_multiplier(np.array([0.3]), np.array([0.1])).any()
    assert Schedule(**Schedule(warmup=1).to_json()) == Schedule(warmup=1)


def test_schedules_out_of_range_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="linear"):
        Schedule(kind="linaer")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="warmup must be >= 0"):
        Schedule(warmup_from=0.0)


def test_a_value_outside_the_bounds_may_come_back_but_is_not_dragged() -> None:
    control = CONTROLS["one_minus_beta2"]
    outside = np.array(control.low / 10)
    assert control.apply(outside, np.array(-0.1)) == outside
    assert control.apply(outside, np.array(0.1)) == pytest.approx(float(outside) * np.exp(0.1))
    assert control.apply(np.array(control.low * 1.01), np.array(-1.0)) == control.low


def test_a_schedule_may_hold_before_it_decays_to_a_power() -> None:
    schedule = Schedule(kind="linear", warmup=0, final=0.1, hold=0.4, power=2.0)
    progress, share = np.array([0.0, 0.3, 0.65, 0.95]), np.full(4, 0.1)
    middle = np.array([0.05, 0.35, 0.7, 0.975])  # the last interval is cut by the end
    left = np.minimum((1.0 - middle) / 0.6, 1.0) ** 2
    wanted = np.log(0.1 + 0.9 * left)
    np.testing.assert_allclose(schedule.log_multiplier(progress, share), wanted)
    assert np.exp(wanted[:2]).tolist() == [1.0, 1.0]
    with pytest.raises(ConfigurationError, match="hold"):
        Schedule(hold=1.0)
    with pytest.raises(ConfigurationError, match="power"):
        Schedule(power=0.0)
