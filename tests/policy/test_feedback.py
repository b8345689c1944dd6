"""Feedback under a policy: the held-out loss's slope moves the weight decay, unseen by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from lhopt.cli.main import main
from lhopt.core import features
from lhopt.core.actions import COLUMN, N_CONTROLS, Decision
from lhopt.core.controls import CONTROLS, get_controls
from lhopt.core.errors import ArtifactError, ConfigurationError, IncompatiblePolicyError
from lhopt.core.features import FEATURES, FeatureState, Situation
from lhopt.core.feedback import DECAY, Feedback
from lhopt.core.schedules import Schedule
from lhopt.core.statistics import INDEX, STATISTICS, Statistics
from lhopt.core.types import FloatArray
from lhopt.env.config import EnvConfig
from lhopt.env.episode import Draw, Episode
from lhopt.inner_tasks import get_task
from lhopt.policy.artifact import Policy, load, read_files, save
from lhopt.policy.combine import combine, with_feedback
from lhopt.policy.evaluate import closed_loop
from lhopt.policy.runtime import LATER, State, bounded, decide

Make = Callable[..., Policy]

SHARE = 0.1
CONTROL_SET = get_controls(["learning_rate", "weight_decay"])
#: Per interval; the third is told no slope.
SLOPES = (0.5, -0.2, np.nan, 3.0, -3.0)


@pytest.fixture
def steering(make: Make) -> Policy:
    return make(controls=CONTROL_SET)


def interval(index: int, slope: float, moved: float = 0.0, bent: float = 6.0) -> Statistics:
    """The same for every run but for what a decay moved by `moved` makes of the horizon."""
    values = np.random.default_rng(index).normal(size=(1, len(STATISTICS)))
    values[:, INDEX["valid_slope"]] = slope
    values[:, INDEX["valid_curvature"]] = bent
    values[:, INDEX["log_decay"]] += moved
    return Statistics(values)


def steer(policy: Policy, slopes: Sequence[float]) -> list[Decision]:
    """A run that carries out what it is told."""
    state, out, moved = State.initial(policy), [], 0.0
    relative: FloatArray = np.zeros((1, N_CONTROLS))
    schedule: FloatArray = np.zeros(1)
    for i, slope in enumerate(slopes):
        where = Situation(np.full(1, (i + 1) * SHARE), np.full(1, SHARE), relative, schedule)
        state, decision = decide(policy, state, interval(i, slope, moved), where)
        moved = float(state.features.feedback[0])
        relative, schedule = relative + decision.delta, decision.schedule
        out.append(decision)
    return out


def test_it_integrates_the_slope_and_the_policy_decides_as_if_it_were_not_there(
    steering: Policy,
) -> None:
    plain = [d.action_delta for d in steer(steering, SLOPES)]
    # reading the slope itself, the two would see the same; only feedback may differ
    feedback = Feedback(20.0, damping=4.0, limit=0.1)
    fed = [d.action_delta for d in steer(with_feedback(steering, feedback), SLOPES)]
    gap = np.concatenate(fed) - np.concatenate(plain)
    # 2 nats an interval for each unit of slope / (6 + 4)
    np.testing.assert_allclose(gap[:, DECAY], [0.1, -0.04, 0.0, 0.2, -0.2], atol=1e-9)
    np.testing.assert_allclose(np.delete(gap, DECAY, 1), 0.0, atol=1e-9)
    assert np.abs(np.concatenate(plain)[:, DECAY]).min() > 0.01


def test_it_takes_back_what_it_raised_and_no_more(steering: Policy) -> None:
    slopes = (-0.5, 0.5, -3.0)
    feedback = Feedback(20.0, damping=4.0, limit=0.1)
    plain = np.concatenate([d.action_delta for d in steer(steering, slopes)])
    fed = np.concatenate([d.action_delta for d in steer(with_feedback(steering, feedback), slopes)])
    np.testing.assert_allclose((fed - plain)[:, DECAY], [0.0, 0.1, -0.1], atol=1e-9)


@pytest.mark.parametrize(
    ("lost", "ceiling"), [(1, np.inf), (None, 0.0)], ids=["lost decision", "highest value"]
)
def test_what_a_job_did_not_carry_out_is_no_feedback(
    steering: Policy, lost: int | None, ceiling: float
) -> None:
    fed = with_feedback(steering, Feedback(20.0, damping=4.0, limit=0.1))
    share = np.full(1, SHARE)
    state, twin = State.initial(fed), State.initial(steering)
    relative, own = np.zeros((1, N_CONTROLS)), np.zeros((1, N_CONTROLS))
    raised, held = 0.0, 0
    for i, slope in enumerate((1.0, 1.0, 1.0, 1.0, -3.0, -3.0, -3.0, -3.0, 0.0)):
        raised = relative[0, DECAY] - own[0, DECAY]  # what is there of it
        progress = share * (i + 1)
        told = Situation(progress, share, relative, np.zeros(1))
        alone = Situation(progress, share, own, np.zeros(1))
        state, decision = decide(fed, state, interval(i, slope, float(raised)), told)
        if lost is not None:
            known = state.features.feedback[0] - state.features.last_feedback[0]
            assert known == pytest.approx(raised, abs=1e-9)
        twin, plain = decide(steering, twin, interval(i, slope), alone)
        if np.isinf(ceiling) and i <= 1:
            np.testing.assert_allclose(
                np.delete(decision.delta, DECAY, 1), np.delete(plain.delta, DECAY, 1), atol=1e-9
            )
        if i == lost:
            continue
        relative, own = relative + decision.action_delta, own + plain.action_delta
        relative[0, DECAY] = min(relative[0, DECAY], ceiling)
        held += bool(relative[0, DECAY] == ceiling)
    # all of it was taken back, and nothing more
    assert state.features.feedback[0] == pytest.approx(0.0, abs=1e-9)
    if lost is not None:
        assert raised == pytest.approx(0.0, abs=1e-9)
    else:  # as much as the highest value kept from it was never taken back
        assert held > 2
        assert raised > -1e-9


def test_a_choice_that_is_no_number_holds_the_policy_and_not_the_feedback() -> None:
    chosen = np.full((1, N_CONTROLS), np.nan)
    where = Situation(np.full(1, SHARE), np.full(1, SHARE), np.zeros((1, N_CONTROLS)), np.zeros(1))
    decision, fed = bounded(
        Schedule(), Feedback(16.0), chosen, interval(0, 1.0), where, moved=np.zeros(1)
    )
    assert fed is not None
    assert fed[0] == decision.action_delta[0, DECAY] == pytest.approx(0.1)


def test_who_takes_the_decay_over_has_the_one_that_they_set(steering: Policy) -> None:
    state = replace(State.initial(steering).features, feedback=np.full(1, 2.0))
    relative = np.zeros((1, N_CONTROLS))
    relative[0, DECAY] = np.nan
    where = Situation(np.full(1, SHARE), np.full(1, SHARE), relative, np.zeros(1))
    _, seen = features.update(state, interval(0, 1.0), where)
    _, plain = features.update(State.initial(steering).features, interval(0, 1.0), where)
    np.testing.assert_array_equal(seen, plain)


def test_a_state_of_before_there_was_feedback_is_read(steering: Policy) -> None:
    state = State.initial(steering)
    where = Situation(np.full(1, SHARE), np.full(1, SHARE), np.zeros((1, N_CONTROLS)), np.zeros(1))
    state, _ = decide(steering, state, interval(0, 1.0), where)
    data, lstm = state.to_bytes(), 8 * steering.hidden_size
    old = data[: -lstm - 8 * len(LATER)] + data[-lstm:]
    again = State.from_bytes(old, steering)
    assert again.features.feedback.tolist() == [0.0]
    assert np.isnan(again.features.expected).all()
    assert tuple(f.name for f in fields(FeatureState))[-len(LATER) :] == LATER
    one, other = (decide(steering, s, interval(1, 1.0), where)[1] for s in (state, again))
    assert (one.delta == other.delta).all()


def test_where_no_slope_is_told_it_is_the_policy_without(steering: Policy) -> None:
    silent = [np.nan] * 5
    fed = steer(with_feedback(steering, Feedback(10.0)), silent)
    for one, other in zip(steer(steering, silent), fed, strict=True):
        assert (one.delta == other.delta).all()
        assert one.reasons == other.reasons


def test_how_often_a_job_asks_does_not_matter_and_limit_and_floor_hold() -> None:
    feedback, zero = Feedback(60.0, damping=10.0, limit=0.05, floor=-0.5), np.zeros(1)

    def move(slope: float, bent: float, share: float = 0.2, moved: float = 0.0) -> float:
        told = interval(0, slope, bent=bent)
        return float(feedback.move(told, zero + share, zero + moved)[0])

    assert move(9.0, 0.0) == pytest.approx(60.0 * 0.2 * 0.05)
    assert move(9.0, 0.0, share=0.02) == pytest.approx(move(9.0, 0.0) / 10)
    assert move(0.3, 20.0) == pytest.approx(60.0 * 0.2 * 0.01)
    assert move(0.3, -500.0) == pytest.approx(60.0 * 0.2 * 0.03)  # bent down: by the slope alone
    assert move(-9.0, 0.0) == pytest.approx(-0.5)
    assert move(-9.0, 0.0, moved=-0.5) == 0.0
    assert move(-9.0, 0.0, moved=1.0) == pytest.approx(-0.6)
    assert move(np.nan, 1.0) == move(1.0, np.nan) == 0.0


def test_a_bound_a_divergence_and_a_decay_of_ones_own_are_no_feedback(steering: Policy) -> None:
    fed = with_feedback(steering, Feedback(160.0))
    limit = CONTROLS["weight_decay"].max_total
    relative = np.zeros((3, N_CONTROLS))
    relative[0, DECAY] = limit - 0.01  # hardly any room is left
    relative[2, DECAY] = np.nan  # not ours to steer
    values = interval(0, 1.0).values.repeat(3, axis=0)  # 160 * .1 / (6 + 10) is asked for
    values[1, INDEX["train_loss"]] = np.nan
    where = Situation(np.full(3, SHARE), np.full(3, SHARE), relative, np.zeros(3))
    own = decide(steering, State.initial(steering, 3), Statistics(values), where)[1].action_delta
    state, decision = decide(fed, State.initial(fed, 3), Statistics(values), where)
    moved = state.features.feedback
    assert moved[0] == pytest.approx(decision.action_delta[0, DECAY] - own[0, DECAY], abs=0.02)
    assert 0.0 <= moved[0] < 1.0  # it asked for 1
    assert moved[1:].tolist() == [0.0, 0.0]
    assert decision.action_delta[1:, DECAY].tolist() == [0.0, 0.0]
    assert (
        decision.reasons[2]
        == decide(steering, State.initial(steering, 3), Statistics(values), where)[1].reasons[2]
    )


def test_features_leave_it_out_and_it_survives_as_bytes(steering: Policy) -> None:
    fed = with_feedback(steering, Feedback(80.0))
    state, decision = decide(
        fed,
        State.initial(fed),
        interval(0, 1.0),
        Situation(np.full(1, SHARE), np.full(1, SHARE), np.zeros((1, N_CONTROLS)), np.zeros(1)),
    )
    assert state.features.feedback[0] == pytest.approx(0.5)
    again = State.from_bytes(state.to_bytes(), fed)
    assert again.features.feedback[0] == state.features.feedback[0]

    def seen(part: State, moved: float) -> dict[str, float]:
        relative = np.zeros((1, N_CONTROLS))
        relative[0, DECAY] = decision.action_delta[0, DECAY] + moved
        where = Situation(np.full(1, 2 * SHARE), np.full(1, SHARE), relative, np.zeros(1))
        _, observation = features.update(part.features, interval(1, 1.0, moved), where)
        return dict(zip(FEATURES, observation[0].tolist(), strict=True))

    own = features.remember(
        replace(state.features, feedback=np.zeros(1)),
        decision.action_delta - 0.5 * (np.arange(N_CONTROLS) == DECAY),
    )
    wanted = seen(replace(state, features=own), -0.5)
    assert seen(state, 0.0) == pytest.approx(wanted, abs=1e-6)
    assert seen(again, 0.0) == seen(state, 0.0)


def test_the_environment_moves_the_decay_as_the_runtime_does(make: Make) -> None:
    config = EnvConfig(optimizer="lhopt.SteerableAdamW", feedback=Feedback(800.0, floor=-9.0))
    policy = make(controls=config.controls, optimizer=config.optimizer, feedback=config.feedback)
    start = np.full((2, N_CONTROLS), np.nan)
    for name, value in config.steered.start.items():
        start[:, COLUMN[name]] = value
    drawn = Draw((3, 4), start, 6, reports_valid=True, tells_slope=True)
    episode = Episode(get_task("chaos-mlp/0"), 60, config, drawn)
    act, state, moved = closed_loop(policy, 2), State.initial(policy, 2), np.zeros(2)
    while not episode.finished:
        assert episode.statistics is not None
        state, wanted = decide(policy, state, episode.statistics, episode.situation())
        chosen = act(episode.observation, 0)
        moved += wanted.action_delta[:, DECAY] - chosen[:, DECAY]
        episode.step(chosen)
        assert episode.decision is not None
        np.testing.assert_array_equal(episode.decision.delta, wanted.delta)
    np.testing.assert_allclose(state.features.feedback, moved, atol=1e-12)
    assert np.abs(moved).min() > 1e-3


def test_a_manifest_holds_it_and_an_older_version_refuses_it(
    steering: Policy, tmp_path: Path
) -> None:
    fed = with_feedback(steering, Feedback(9.0, floor=-0.5), "fed")
    again = load(save(fed, tmp_path))
    assert (again.digest, again.feedback) == (fed.digest, Feedback(9.0, floor=-0.5))
    manifest, _ = read_files(tmp_path / "fed")
    assert b'"format_version": 2' in manifest
    assert (steering.manifest()["format_version"], "feedback" in steering.manifest()) == (1, False)
    assert fed.digest != steering.digest
    assert fed.training["feedback_under"] == {"name": "random", "digest": steering.digest}
    broken = manifest.replace(b'"gain": 9.0', b'"gain": -9.0')
    (tmp_path / "fed.json").write_bytes(broken)
    with pytest.raises(ArtifactError, match="a number above 0"):
        load(tmp_path / "fed")


def test_what_makes_no_sense_is_refused(steering: Policy, make: Make) -> None:
    fed = with_feedback(steering, Feedback(9.0))
    with pytest.raises(ConfigurationError, match="has feedback already"):
        with_feedback(fed, Feedback(1.0))
    with pytest.raises(ConfigurationError, match="does not steer the weight decay"):
        with_feedback(make(controls=get_controls(["learning_rate"])), Feedback(1.0))
    with pytest.raises(ConfigurationError, match=r"differ in feedback; .* policies feedback` puts"):
        combine([fed, steering], "both")
    for given in (
        {"gain": 0.0}, {"gain": float("nan")}, {"gain": True}, {"gain": 1, "limit": -1},
        {"gain": 1, "damping": 0}, {"gain": 1, "floor": 0.5},
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=r"a number (above|at least)"):
            EnvConfig(feedback=given)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match="gain is wanted, and damping, limit, floor may be given"
    ):
        EnvConfig(feedback={"strength": 1.0})  # type: ignore[arg-type]
    assert EnvConfig(feedback={"gain": 2.0}).feedback == Feedback(2.0)  # type: ignore[arg-type]


def test_whoever_has_it_needs_the_slope(steering: Policy) -> None:
    names = tuple(name for name in FEATURES if name != "valid/slope")
    kept = [i for i, name in enumerate(FEATURES) if name != "valid/slope"]
    weights = dict(steering.weights)
    weights["lstm.weight_ih"] = weights["lstm.weight_ih"][:, kept]
    blind = replace(steering, features=names, weights=weights)
    offered = ["learning_rate", "weight_decay"]
    assert steering.needs_slope(offered)
    assert not blind.needs_slope(offered)
    assert with_feedback(blind, Feedback(1.0)).needs_slope(offered)
    assert not with_feedback(blind, Feedback(1.0)).needs_slope(["learning_rate"])


def test_the_command_writes_one_and_show_tells(
    steering: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(steering, tmp_path))
    out = str(tmp_path / "out")
    words = ["policies", "feedback", out, path, "--set", "gain=10", "--name", "fed"]
    assert main(words) == 0
    assert "fed " in (line := capsys.readouterr().out)
    assert "gain 10, damping 10, limit 0.1, floor 0" in line
    made = load(tmp_path / "out" / "fed")
    assert made.feedback == Feedback(10.0)
    assert main(["policies", "show", f"{out}/fed.json"]) == 0
    shown = capsys.readouterr().out
    assert "feedback   gain 10, damping 10, limit 0.1, floor 0" in shown
    assert f"feedback was put under random {steering.digest[:12]}" in shown
    assert main(["policies", "feedback", out, f"{out}/fed.json", "--set", "gain=1"]) == 2
    back = ["policies", "feedback", out, f"{out}/fed.json", "--none", "--name", "random"]
    assert main(back) == 0
    assert load(tmp_path / "out" / "random").digest == steering.digest
    assert main(["policies", "feedback", out, f"{out}/random.json", "--none"]) == 2
    assert main([*back, "--set", "gain=1"]) == 2
    capsys.readouterr()
    assert main(["policies", "feedback", out, path]) == 2
    assert "add --set gain=200" in capsys.readouterr().err
    for wrong in ("gain=0", "gain=much", "limit=1", "strength=2"):
        assert main(["policies", "feedback", out, path, "--set", wrong]) == 2


def test_a_version_that_is_unknown_is_refused(steering: Policy, tmp_path: Path) -> None:
    path = save(steering, tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 3'))
    with pytest.raises(IncompatiblePolicyError, match="reads version 1 or 2"):
        load(path)
