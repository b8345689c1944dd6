from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lhopt.core.errors import ConfigurationError, ResumeError
from lhopt.core.features import FEATURES
from lhopt.core.feedback import Feedback
from lhopt.env.config import EnvConfig
from lhopt.env.pool import Entry, TaskPool
from lhopt.policy.artifact import load, save
from lhopt.policy.evaluate import closed_loop, hold, open_loop, random_choices, run
from lhopt.policy.imitation import ACTOR
from lhopt.policy.ppo import ramp
from lhopt.policy.train import READS_TASK, Trainer
from lhopt.policy.train_config import TrainConfig

CONFIG = TrainConfig(
    name="tiny", seed=4, updates=4, n_buckets=2, runs_per_bucket=4, group_size=2, n_steps=8,
    batch_size=32, n_epochs=2, lstm=8, imitation=None, critic_warmup=3, evaluate_every=2,
    selection="sample", env={"intervals": [4, 6]}, lean=0.4,
)  # fmt: skip


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.policy.state_dict().values(), *trainer.averaged.values()]


def test_a_resumed_training_continues_to_the_bit(pool: TaskPool, tmp_path: Path) -> None:
    whole = Trainer(CONFIG, tmp_path / "whole", pool, pool)
    expected = whole.learn()

    cut = Trainer(CONFIG, tmp_path / "cut", pool, pool)

    def stop(update: int, row: dict[str, float]) -> None:
        if update == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    cut.learn(stop)
    assert cut.update == 2
    assert signal.getsignal(signal.SIGINT) is before

    torch.manual_seed(77)  # whatever happened in the new process
    # and on another number of processes
    resumed = Trainer(CONFIG, tmp_path / "cut", pool, pool, processes=2)
    resumed.resume()
    got = resumed.learn()
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(
        np.asarray(whole.model._last_obs), np.asarray(resumed.model._last_obs)
    )
    hold_still = np.ones((8, 4), np.int64)
    for _ in range(5):
        x, y = whole.vec.step(hold_still), resumed.vec.step(hold_still)
        np.testing.assert_array_equal(np.asarray(x[0]), np.asarray(y[0]))
        np.testing.assert_array_equal(x[1], y[1])
    resumed.close()
    assert resumed.curve == whole.curve
    assert [row["update"] for row in whole.curve] == [1, 2, 3, 4]
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(got.weights[name], array)
    assert whole.model.num_timesteps == resumed.model.num_timesteps == 4 * whole.per_update

    manifest = load(tmp_path / "cut" / "tiny").training
    assert manifest["config"] == CONFIG.to_json()
    assert manifest["config"]["seed"] == 4
    assert manifest["env"]["intervals"] == [4, 6]
    assert manifest["tasks"] == [["noisy-quadratic/3", 24], ["noisy-quadratic/4", 18]]
    assert manifest["curve"] == whole.curve

    # one line per evaluation, as often as the whole training wrote them
    lines = [
        [json.loads(line) for line in (tmp_path / name / "curve.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for rows in lines:
        assert [row["update"] for row in rows] == [2, 4]
        assert rows[0]["cpu_seconds"] < rows[1]["cpu_seconds"]
    for a_row, b_row in zip(*lines, strict=True):
        assert a_row["eval"] == b_row["eval"] == {"noisy-quadratic": a_row["mean"]}
    assert (tmp_path / "cut" / "logs" / "from-00000" / "progress.csv").exists()

    # and a finished training has nothing left to do
    done = Trainer(CONFIG, tmp_path / "cut", pool, pool)
    done.resume()
    done.learn()
    for a, b in zip(weights(done), weights(resumed), strict=True):
        assert torch.equal(a, b)
    other = Trainer(replace(CONFIG, learning_rate=1e-3, lstm=16), tmp_path / "cut", pool)
    with pytest.raises(ResumeError, match=r"learning_rate: 0\.0007, now 0\.001; lstm: 8, now 16"):
        other.resume()


def test_a_warm_start_that_stays_the_best_is_what_is_exported(
    pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lhopt.policy.train.imitate", lambda *_, **__: [0.5])
    config = replace(CONFIG, imitation={}, updates=2, evaluate_every=1, critic_warmup=0)
    trainer = Trainer(config, tmp_path, pool, pool)
    monkeypatch.setattr(trainer, "evaluate", lambda: {"eval/mean_reward": -float(trainer.update)})
    start = trainer.export(best=False)
    exported = trainer.learn()
    assert trainer.curve[0]["imitation/loss"] == 0.5
    assert exported.training["updates"] == 0
    for name, array in start.weights.items():
        np.testing.assert_array_equal(exported.weights[name], array)
    moved = trainer.export(best=False)
    assert any((moved.weights[n] != array).any() for n, array in start.weights.items())
    assert load(tmp_path / "imitation" / "tiny").weights.keys() == start.weights.keys()


def test_the_last_update_is_evaluated_whenever_the_others_are(
    pool: TaskPool, tmp_path: Path
) -> None:
    trainer = Trainer(replace(CONFIG, updates=3, evaluate_every=2), tmp_path, pool, pool)
    exported = trainer.learn()
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [2, 3]
    assert exported.training["updates"] == 2 + (rows[1]["mean"] >= rows[0]["mean"])


def test_a_training_stopped_after_its_warm_start_goes_on_to_the_bit(
    pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lhopt.policy.train.imitate", lambda *_, **__: [0.5])
    config = replace(CONFIG, imitation={}, updates=2)
    whole = Trainer(config, tmp_path / "whole", pool, pool)
    whole.learn()
    Trainer(config, tmp_path / "cut", pool, pool).warm_start()
    torch.manual_seed(77)
    resumed = Trainer(config, tmp_path / "cut", pool, pool)
    resumed.resume()
    resumed.learn()
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)
    assert resumed.curve == whole.curve


def test_sigterm_stops_like_an_interrupt_and_what_was_evaluated_is_on_disk(
    pool: TaskPool, tmp_path: Path
) -> None:
    trainer = Trainer(CONFIG, tmp_path, pool, pool)
    seen: list[int] = []

    def stop(update: int, row: dict[str, float]) -> None:
        if update == 3:  # the evaluation was at 2, and nothing has ended yet
            seen.append(load(tmp_path / "tiny").training["updates"])
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    trainer.learn(stop)
    assert (trainer.update, seen) == (3, [2])
    assert signal.getsignal(signal.SIGTERM) is before
    again = Trainer(CONFIG, tmp_path, pool, pool)
    again.resume()
    assert again.update == 3


def test_evaluations_after_the_checkpoint_are_dropped_when_they_will_come_again(
    pool: TaskPool, tmp_path: Path
) -> None:
    trainer = Trainer(CONFIG, tmp_path, pool)
    trainer.save_checkpoint()
    for update in (0, 2):
        trainer.update = update
        trainer.log_evaluation({"eval/x": 0.5, "eval/mean_reward": 0.5})
    again = Trainer(CONFIG, tmp_path, pool)
    again.resume()
    (line,) = (tmp_path / "curve.jsonl").read_text().splitlines()
    assert json.loads(line) == {"update": 0, "cpu_seconds": 0.0, "mean": 0.5, "eval": {"x": 0.5}}


def test_there_must_be_something_to_resume(pool: TaskPool, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="start without --resume"):
        Trainer(CONFIG, tmp_path, pool).resume()


def test_more_updates_are_the_same_training_and_other_settings_are_not() -> None:
    same = [
        replace(CONFIG, updates=9),
        replace(CONFIG, selection="mean"),
        replace(CONFIG, name="x"),
    ]
    assert {c.fingerprint() for c in same} == {CONFIG.fingerprint()}
    other = [replace(CONFIG, seed=5), replace(CONFIG, env={}), replace(CONFIG, gamma=0.9)]
    assert len({c.fingerprint() for c in [CONFIG, *other]}) == 4


def test_runs_keep_leaning_across_updates(pool: TaskPool, tmp_path: Path) -> None:
    config = replace(CONFIG, updates=1, lean_turn=0.25)
    assert config.fingerprint() != CONFIG.fingerprint()
    assert "lean_turn" not in CONFIG.to_json()  # as in trainings from before there was one
    trainer = Trainer(config, tmp_path, pool)
    trainer.learn()
    leaning = trainer.vec._leaning
    assert leaning.shape == (CONFIG.runs, len(trainer.env_config.controls))
    seen = np.asarray(trainer.model._last_obs)[trainer.vec.places]
    np.testing.assert_allclose(seen[:, -leaning.shape[1] :], leaning, rtol=1e-6)
    saved = pickle.loads(torch.load(tmp_path / "checkpoint.pt", weights_only=False)["env"])
    np.testing.assert_array_equal(saved["leaning"][0], leaning)
    with pytest.raises(ConfigurationError, match=r"lean is -0\.1; a finite number of at least 0"):
        replace(CONFIG, lean=-0.1)
    with pytest.raises(ConfigurationError, match=r"lean is 1\.0; a share of at least 0 and below"):
        replace(CONFIG, lean=1.0)
    for lean, turn in [(0.4, 1.5), (0.4, -0.1), (0.0, 0.1)]:
        with pytest.raises(ConfigurationError, match=f"lean_turn is {turn} with lean {lean}"):
            replace(CONFIG, lean=lean, lean_turn=turn)


@pytest.mark.parametrize("turn", [0.0, 0.25])
def test_a_run_leans_one_way_to_its_end_or_turns_now_and_then(
    pool: TaskPool, tmp_path: Path, turn: float
) -> None:
    config = replace(CONFIG, lean=0.4, lean_turn=turn)
    vec = Trainer(config, tmp_path, pool).vec
    n = vec.leans
    last, drawn, kept = np.asarray(vec.reset())[:, -n:], [], []
    hold = np.ones((vec.num_envs, n), np.int64)
    for _ in range(60):
        seen, _, done, infos = vec.step(hold)
        now = np.asarray(seen)[:, -n:]
        same = (now == last).all(1)
        np.testing.assert_array_equal(same, (now == last).any(1))  # all controls at once
        assert not same[done].any()
        kept += same[~done].tolist()
        for row in np.flatnonzero(done):
            np.testing.assert_array_equal(infos[row]["terminal_observation"][-n:], last[row])
        drawn += now[~same].ravel().tolist()
        last = now
    assert np.mean(kept) == pytest.approx(1.0 - turn, abs=0.08 if turn else 0.0)
    assert np.std(drawn) == pytest.approx(1.0, rel=0.15)


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one that divides the 64 transitions"):
        replace(CONFIG, batch_size=33)


def test_evaluation_runs_every_kind_of_controller(pool: TaskPool, make: Callable[..., Any]) -> None:
    entry, config = pool.entries[0], EnvConfig(noise_scale=0.0)
    controls = config.controls
    policy = make(controls=controls, selection="sample")
    starts = {"learning_rate": np.array([1e-3, 1e-2])}

    def go(controller: Callable[[Any], Any]) -> Any:
        return run(entry, config, controller, seeds=[1, 2], starts=starts, n_intervals=5)

    still = go(lambda _: hold)
    assert not still.actions.any()
    assert still.actions.shape == (4, 2, 6)
    a, b = (go(lambda episode: closed_loop(policy, episode.n_runs)) for _ in range(2))
    np.testing.assert_array_equal(a.actions, b.actions)
    np.testing.assert_array_equal(a.final_loss, b.final_loss)
    assert a.actions.any()
    c = go(lambda _: random_choices(controls, seed=3))
    assert np.isfinite(c.log2_speed).all()
    path = np.zeros((2, 6))
    path[1, 0] = 1.0
    d = go(lambda episode: open_loop(np.array([0.0, 1.0]), path, episode.n_decisions))
    np.testing.assert_allclose(d.actions[:, :, 0].sum(0), 0.8)  # the last interval is not decided


def test_a_training_begins_from_a_policy_and_says_so(pool: TaskPool, tmp_path: Path) -> None:
    first = Trainer(CONFIG, tmp_path / "first", pool, pool)
    with torch.no_grad():  # or it would be the no-op, whatever was read
        first.model.policy.get_parameter("action_net.weight").add_(0.3)
        first.averaged.update(first.model.policy.state_dict())
    parent = first.export()
    save(parent, tmp_path / "first")
    file = tmp_path / "first" / "tiny.json"
    config = replace(CONFIG, start=str(file), updates=1, evaluate_every=1)
    second = Trainer(config, tmp_path / "second", pool, pool)
    second.warm_start()
    assert second.started
    for name, array in second.export().weights.items():
        np.testing.assert_array_equal(array, parent.weights[name])
    assert second.curve[0]["eval/mean_reward"] == pytest.approx(
        first.evaluate()["eval/mean_reward"], abs=1e-4
    )
    resumed = Trainer(config, tmp_path / "second", pool, pool)
    resumed.resume()
    made = resumed.learn()
    assert made.training["from"]["digest"] == parent.digest
    assert made.training["config"]["start"] == "tiny.json"  # no path of this machine
    other = replace(config, lstm=4)
    with pytest.raises(ConfigurationError, match="another hidden_size"):
        Trainer(other, tmp_path / "third", pool, pool).warm_start()


def test_each_stage_of_a_line_trains_on_other_episodes(pool: TaskPool, tmp_path: Path) -> None:
    def seeds(trainer: Trainer) -> list[tuple[int, ...]]:
        trainer.vec.reset()
        return [episode.drawn.seeds for episode in trainer.vec.env._episodes]

    first = Trainer(CONFIG, tmp_path / "first", pool, pool)
    save(first.export(), tmp_path / "first")
    config = replace(CONFIG, start=str(tmp_path / "first" / "tiny.json"))
    second, cut = (Trainer(config, tmp_path / name, pool, pool) for name in ("second", "cut"))
    second.warm_start()
    cut.warm_start()
    resumed = Trainer(config, tmp_path / "cut", pool, pool)
    resumed.resume()  # before any episode was drawn
    drawn = seeds(second)
    assert seeds(resumed) == drawn
    assert not set(drawn) & set(seeds(first))
    assert second.vec.env._seed != CONFIG.seed


def test_the_actors_first_updates_have_smaller_rates(pool: TaskPool, tmp_path: Path) -> None:
    config = replace(CONFIG, critic_warmup=2)
    assert [ramp(u, config) for u in range(7)] == [1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    trainer = Trainer(replace(CONFIG, critic_warmup=0, updates=1), tmp_path, pool)
    trainer.learn()
    (group,) = trainer.model.policy.optimizer.param_groups
    assert group["lr"] == pytest.approx(CONFIG.learning_rate / 4)


def test_averaged_weights_leave_the_start_behind(pool: TaskPool, tmp_path: Path) -> None:
    trainer = Trainer(replace(CONFIG, critic_warmup=0, updates=2), tmp_path, pool)
    start = {k: v.clone() for k, v in trainer.model.policy.state_dict().items()}
    seen: list[dict[str, torch.Tensor]] = []
    trainer.learn(
        lambda *_: seen.append({k: v.clone() for k, v in trainer.model.policy.state_dict().items()})
    )
    for key, value in trainer.averaged.items():
        expected = seen[0][key].lerp(seen[1][key], 1.0 / 1.2)
        torch.testing.assert_close(value, expected)
    assert any(not torch.equal(seen[0][key], start[key]) for key in start)


@pytest.mark.parametrize("gain", [None, 50.0, 200.0])
def test_a_training_under_another_feedback_than_where_it_begins_says_so(
    pool: TaskPool, tmp_path: Path, caplog: pytest.LogCaptureFixture, gain: float | None
) -> None:
    parent = Trainer(CONFIG, tmp_path / "first", pool, pool).export()
    save(replace(parent, feedback=Feedback(gain=200.0)), tmp_path / "first")
    env = {**CONFIG.env, **({"feedback": {"gain": gain}} if gain else {})}
    config = replace(CONFIG, start=str(tmp_path / "first" / "tiny.json"), env=env)
    Trainer(config, tmp_path / "second", pool, pool).warm_start()
    if gain == 200.0:
        assert not caplog.records
    else:
        (text,) = caplog.messages
        assert "has feedback {'gain': 200.0" in text
        fields = json.loads("{" + text.split("give '")[1].split("' in env")[0] + "}")
        assert EnvConfig(**{**env, **fields}).feedback == Feedback(gain=200.0)


def test_a_training_begins_from_another_with_its_critic(pool: TaskPool, tmp_path: Path) -> None:
    first = Trainer(CONFIG, tmp_path / "first", pool, pool)
    first.learn()
    config = replace(CONFIG, start=str(tmp_path / "first"), critic_warmup=0, evaluate_every=1)
    second = Trainer(config, tmp_path / "second", pool, pool)
    second.warm_start()
    assert second.parent is not None
    assert second.parent["digest"] == first.export().digest
    before, after = first.model.policy.state_dict(), second.model.policy.state_dict()
    critic = [name for name in before if not name.startswith(ACTOR)]
    assert any("lstm_critic" in name for name in critic)
    for name in critic:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    blind = replace(config, privileged=False)
    with pytest.raises(ConfigurationError, match="is of another size"):
        Trainer(blind, tmp_path / "third", pool, pool).warm_start()
    without = Trainer(replace(CONFIG, privileged=False), tmp_path / "blind", pool, pool)
    without.learn()
    goes_on = replace(blind, start=str(tmp_path / "blind"))
    Trainer(goes_on, tmp_path / "blind again", pool, pool).warm_start()
    sees = replace(config, start=str(tmp_path / "blind"))
    with pytest.raises(ConfigurationError, match="is of another size"):
        Trainer(sees, tmp_path / "sees", pool, pool).warm_start()
    path = tmp_path / "first" / "checkpoint.pt"
    state = torch.load(path, weights_only=False)
    torch.save({**state, "tasks": [*state["tasks"], ["other/1", 100]]}, path)
    with pytest.raises(ConfigurationError, match="is of another size"):
        Trainer(config, tmp_path / "other", pool, pool).warm_start()
    torch.save({**state, "critic": -1}, path)
    with pytest.raises(ConfigurationError, match="another version of lhopt"):
        Trainer(config, tmp_path / "fourth", pool, pool).warm_start()
    path.unlink()
    with pytest.raises(ResumeError, match="name its folder or its policy"):
        Trainer(config, tmp_path / "fifth", pool, pool).warm_start()


def test_a_critic_finds_its_tasks_among_those_of_another_training(
    pool: TaskPool, tmp_path: Path
) -> None:
    first = Trainer(CONFIG, tmp_path / "first", pool, pool)
    first.learn()
    entry = pool.entries[0]
    spec = replace(entry.spec, task="noisy-quadratic/9")
    new = Entry(spec, None, entry.frontier)
    wider = TaskPool([pool.entries[1], new, pool.entries[0]])
    config = replace(CONFIG, start=str(tmp_path / "first"), critic_warmup=0)
    second = Trainer(config, tmp_path / "second", wider, pool)
    second.warm_start()
    before, after = (t.model.policy.state_dict()[READS_TASK] for t in (first, second))
    n = len(FEATURES)
    assert not torch.equal(before[:, n], before[:, n + 1])
    assert torch.equal(after[:, :n], before[:, :n])
    assert torch.equal(after[:, n], before[:, n + 1])
    assert not after[:, n + 1].any()
    assert torch.equal(after[:, n + 2], before[:, n])
    assert torch.equal(after[:, n + 3 :], before[:, n + 2 :])


def test_a_critic_that_was_told_families_is_refused_where_tasks_are_told_apart(
    pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:  # a version of lhopt that told fewer tasks apart
        patched.setattr("lhopt.env.privileged.MAX_TASKS", 1)
        Trainer(CONFIG, tmp_path / "first", pool, pool).learn()
    config = replace(CONFIG, start=str(tmp_path / "first"), critic_warmup=0)
    with pytest.raises(ConfigurationError, match=r"families alone \(2 tasks\).*each task \(2;"):
        Trainer(config, tmp_path / "second", pool, pool).warm_start()
    with pytest.raises(ResumeError, match="told it families in place of 2 tasks"):
        Trainer(CONFIG, tmp_path / "first", pool, pool).resume()
    for name in ("lhopt.env.privileged.MAX_TASKS", "lhopt.policy.train.MAX_TASKS"):
        monkeypatch.setattr(name, 1)
    second = Trainer(config, tmp_path / "second", pool, pool)
    second.warm_start()  # families here too
    before = torch.load(tmp_path / "first" / "checkpoint.pt", weights_only=False)["policy"]
    assert torch.equal(second.model.policy.state_dict()[READS_TASK], before[READS_TASK])


def test_a_policy_that_reads_fewer_features_goes_on_as_it_was(
    pool: TaskPool, tmp_path: Path
) -> None:
    first = Trainer(CONFIG, tmp_path / "first", pool, pool)
    with torch.no_grad():
        first.model.policy.get_parameter("action_net.weight").add_(0.3)
        first.averaged.update(first.model.policy.state_dict())
    whole = first.export()
    read = FEATURES[::-2]  # fewer, and in another order
    narrow = whole.weights["lstm.weight_ih"][:, [FEATURES.index(name) for name in read]]
    parent = replace(
        whole, features=read, weights={**whole.weights, "lstm.weight_ih": np.array(narrow)}
    )
    save(parent, tmp_path / "first")
    config = replace(CONFIG, start=str(tmp_path / "first" / "tiny.json"), evaluate_every=1)
    second = Trainer(config, tmp_path / "second", pool, pool)
    second.warm_start()
    child = second.export()
    assert child.features == FEATURES
    left = replace(config, families=("noisy-quadratic", "topics-bag"))
    left = replace(left, leave_out=("noisy-quadratic",), valid_families=())
    with pytest.raises(ConfigurationError, match="was trained on noisy-quadratic"):
        Trainer(left, tmp_path / "left", pool).warm_start()
    go = partial(run, pool.entries[0], second.env_config, seeds=[1, 2], n_intervals=5)
    theirs = go(lambda episode: closed_loop(parent, episode.n_runs)).actions
    ours = go(lambda episode: closed_loop(child, episode.n_runs)).actions
    assert theirs.any()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_bounds_that_would_cut_unseen_are_refused() -> None:
    replace(CONFIG, reward_bounds=(-8.0, 1.5), env={"speed_bounds": [-8.0, 1.5]})
    for words in ({"reward_bounds": (-8.0, 1.5)}, {"env": {"speed_bounds": [-1.0, 1.0]}}):
        with pytest.raises(ConfigurationError, match="would be cut unseen"):
            replace(CONFIG, **words)


def test_the_floor_of_rewards_reaches_the_learner(pool: TaskPool, tmp_path: Path) -> None:
    assert Trainer(replace(CONFIG, reward_floor=0.1), tmp_path, pool).vec.floor == 0.1
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="reward_floor is"):
            replace(CONFIG, reward_floor=wrong)
    with pytest.raises(ConfigurationError, match="reward_floor is"):
        replace(CONFIG, reward_floor=0.1, baseline=False)
