"""Gradients of a training that stands still, and the command that reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from lhopt.cli.main import main
from lhopt.cli.train import CONFIG
from lhopt.core.errors import ConfigurationError, ResumeError
from lhopt.core.types import FloatArray
from lhopt.env.frontier import Frontier
from lhopt.env.pool import Entry, TaskPool, TaskSpec
from lhopt.inner_tasks import get_task
from lhopt.policy.learner import HyperparameterPolicy
from lhopt.policy.ppo import CHECKPOINT
from lhopt.policy.rollout_gradients import (
    SHORTEST,
    actor_parameters,
    collect,
    rollout_gradients,
)
from lhopt.policy.train import Trainer, restored
from lhopt.policy.train_config import TrainConfig

CONFIGURED = TrainConfig(
    name="tiny", seed=4, updates=1, n_buckets=3, runs_per_bucket=4, group_size=2, n_steps=12,
    batch_size=48, n_epochs=1, lstm=8, imitation=None, critic_warmup=0, evaluate_every=9,
    env={"intervals": [6, 9]}, lean=0.4,
)  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> TaskPool:
    """Eight tiny tasks with a made-up yardstick."""
    entries = []
    for name in (f"noisy-quadratic/{i}" for i in range(8)):
        frontier = Frontier(
            name, 20, (0.5, 1.0, 2.0), (2.0, 1.0, 0.5), (0.1,) * 3, 0.1, 64.0, (0.01, 0.1, 1.0)
        )
        entries.append(Entry(TaskSpec(name, 20), get_task(name), frontier))
    return TaskPool(entries)


@pytest.fixture(scope="module")
def training(pool: TaskPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training after one update."""
    folder = tmp_path_factory.mktemp("training")
    trained(folder, CONFIGURED, pool)
    return folder


def trained(folder: Path, config: TrainConfig, pool: TaskPool) -> None:
    Trainer(config, folder, pool).learn()
    (folder / CONFIG).write_text(json.dumps(config.to_json()))


def held(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_gradients_of_groups_add_up_to_that_of_ppos_own_loss(
    training: Path, pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restored(training, CONFIGURED, pool) as trainer:
        collect(trainer, 2)
        model, policy = trainer.model, trainer.model.policy
        assert isinstance(policy, HyperparameterPolicy)
        names = [["x"] * 3] * 12
        visits = list(rollout_gradients(trainer, names, shortest=1))
        summed = CONFIGURED.group_size * np.sum([found for _, found in visits], axis=(0, 1))

        # and by PPO's way: its buffer's sequences, cut at no random place
        monkeypatch.setattr("numpy.random.randint", lambda *_: 0)
        buffer = model.rollout_buffer
        assert isinstance(buffer, RecurrentRolloutBuffer)
        (batch,) = list(buffer.get(12 * model.n_envs))
        mask = batch.mask > 1e-8
        _, log_p, _ = policy.evaluate_actions(
            batch.observations, batch.actions, batch.lstm_states, batch.episode_starts
        )
        torch.testing.assert_close(log_p[mask], batch.old_log_prob[mask])  # the ratio is 1
        advantages = batch.advantages
        advantages = (advantages - advantages[mask].mean()) / (advantages[mask].std() + 1e-8)
        ratio = torch.exp(log_p - batch.old_log_prob)
        clipped = torch.clamp(ratio, 0.8, 1.2)
        loss = -torch.min(advantages * ratio, advantages * clipped)[mask].sum()
        parts: tuple[Tensor, ...] = torch.autograd.grad(loss, actor_parameters(policy))
    whole = torch.cat([part.flatten() for part in parts]).numpy()
    assert np.linalg.norm(whole) > 1.0
    np.testing.assert_allclose(summed, whole, atol=1e-4 * float(np.linalg.norm(whole)))


def test_nothing_is_learned_and_processes_change_nothing(training: Path, pool: TaskPool) -> None:
    found = []
    for processes in (1, 2):
        with restored(training, CONFIGURED, pool, processes=processes) as trainer:
            before = [p.clone() for p in trainer.model.policy.parameters()]
            found.append(collect(trainer, 3))
            after = trainer.model.policy.parameters()
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    one, two = found
    assert one.gradients.shape[:2] == (len(one.tasks), 2)
    assert (one.updates, one.group_size, one.visits_per_update) == (3, 2, len(one.tasks) / 3)
    assert one.tasks == two.tasks
    np.testing.assert_array_equal(one.gradients, two.gradients)


def test_a_visit_has_the_name_of_what_was_trained(
    training: Path, pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[list[str]] = []  # by decision, by bucket; "" where it goes on
    told: list[tuple[str, ...]] = []

    def kept(trainer: Trainer, tasks: list[tuple[str, ...]]) -> Iterator[tuple[str, FloatArray]]:
        told.extend(tasks)
        return rollout_gradients(trainer, tasks)

    monkeypatch.setattr("lhopt.policy.rollout_gradients.rollout_gradients", kept)
    with restored(training, CONFIGURED, pool) as trainer:
        vec, step = trainer.vec, trainer.vec.step_wait
        first = vec.places.reshape(3, 4)[:, 0]

        def watched() -> VecEnvStepReturn:
            found = step()
            ended.append([found[3][row].get("task", "") for row in first])
            return found

        monkeypatch.setattr(vec, "step_wait", watched)
        collect(trainer, 3)
    assert len(told) == len(ended) == 36
    assert sum(map(bool, (name for row in ended for name in row))) > 6
    for names, row in zip(told, ended, strict=True):
        assert all(end in ("", name) for name, end in zip(names, row, strict=True))


def test_tasks_and_places_tell_what_a_row_is(training: Path, pool: TaskPool) -> None:
    with restored(training, CONFIGURED, pool) as trainer:
        vec, env = trainer.vec, trainer.vec.env
        seen = np.asarray(trainer.model._last_obs)[vec.places][:, : -vec.leans]
        np.testing.assert_array_equal(seen, env._observation)
        now, hold = env.tasks, np.zeros((12, len(env.config.controls)), np.int64)
        for _ in range(12):
            _, _, dones, infos = vec.step(hold)
            for bucket, rows in enumerate(vec.places.reshape(3, 4)):
                assert len(set(dones[rows])) == 1
                if dones[rows[0]]:
                    assert {infos[row]["task"] for row in rows} == {now[bucket]}
            now = env.tasks


def test_the_command_prints_the_parts_and_leaves_the_folder(
    training: Path,
    pool: TaskPool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def only_wanted(config: TrainConfig, **options: Any) -> tuple[TaskPool, None]:
        assert config == replace(CONFIGURED, valid_families=())
        assert options["costs"] is False
        return pool, None

    monkeypatch.setattr("lhopt.policy.pools.make_pools", only_wanted)
    before = held(training)
    words = ["policies", "noise", str(training), "--updates", "4", "--processes", "1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("tiny after update 1: ")
    assert " tasks in 4 updates; an update has " in lines[0]
    assert [line.split("  ")[0] for line in lines[2:7]] == [
        "common to tasks",
        "a task's, with the common",
        "noise of one run",
        "signal-to-noise of an update",
        "times the runs, for a ratio of 1",
    ]
    assert main(words) == 0
    assert capsys.readouterr().out == out
    assert held(training) == before


def test_what_cannot_be_read_is_refused_before_anything_is_measured(
    training: Path,
    pool: TaskPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("frontiers would be measured")

    monkeypatch.setattr("lhopt.policy.pools.make_pools", never)

    def refused(folder: Path, *words: str) -> str:
        assert main(["policies", "noise", str(folder), *words]) == 2
        return capsys.readouterr().err

    def copied(name: str, **changed: object) -> Path:
        """The training's folder with other settings than its checkpoint's."""
        folder = tmp_path / name
        folder.mkdir()
        (folder / CHECKPOINT).write_bytes((training / CHECKPOINT).read_bytes())
        row = CONFIGURED.to_json() | changed
        (folder / CONFIG).write_text(json.dumps(row))
        return folder

    assert "updates is 0; at least 1" in refused(training, "--updates", "0")
    assert "processes is 0; at least 1" in refused(training, "--processes", "0")
    said = refused(tmp_path / "gone")
    assert "has no checkpoint.pt and no config.json" in said
    assert "lhopt train" in said
    bare = copied("bare")
    (bare / CONFIG).unlink()
    assert "has no config.json" in refused(bare)
    assert "environment 'local-sgd'" in refused(copied("other", environment="local-sgd"))
    for size in (None, 4):
        assert "one group to a task" in refused(copied(f"one-{size}", group_size=size))
    assert "Unknown training setting 'lsmt'" in refused(copied("unknown", lsmt=8))
    assert "learning_rate is 'fast'" in refused(copied("kind", learning_rate="fast"))
    assert "another configuration (seed: 4, now 5)" in refused(copied("seed", seed=5))
    few = tmp_path / "few"
    trained(few, CONFIGURED, TaskPool(pool.entries[:4]))
    assert "has 4 tasks; at least 5" in refused(few)
    young = tmp_path / "young"
    trained(young, replace(CONFIGURED, critic_warmup=2), pool)
    assert "at update 1, and its critic learns alone until update 2" in refused(young)
    broken = copied("broken")
    (broken / CONFIG).write_text("{")
    assert f"{broken / CONFIG} cannot be read" in refused(broken)
    kept = copied("kept")  # as a candidate is kept: what another training begins from
    state = torch.load(kept / CHECKPOINT, weights_only=False)
    names = ("fingerprint", "config", "policy", "tasks", "critic")
    torch.save({name: state[name] for name in names}, kept / CHECKPOINT)
    assert "only what another training begins from" in refused(kept)
    cut = copied("cut")
    (cut / CHECKPOINT).write_bytes(b"PK\x03\x04 and no more")
    assert "cannot be read" in refused(cut)


def test_a_restored_training_is_of_the_same_tasks_and_says_which_folder(
    training: Path, pool: TaskPool
) -> None:
    fewer = TaskPool(pool.entries[:3])
    with pytest.raises(ResumeError) as caught, restored(training, CONFIGURED, fewer):
        pass
    assert f"{training / CHECKPOINT} was trained on 8 tasks, and now" in str(caught.value)


def test_a_gradient_that_is_not_finite_is_left_out_and_named(
    training: Path,
    pool: TaskPool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with restored(training, CONFIGURED, pool) as trainer:
        whole = collect(trainer, 2)
    spoiled: list[str] = []

    def first_is_nan(trainer: Trainer, tasks: list[tuple[str, ...]]) -> Iterator[Any]:
        for task, found in rollout_gradients(trainer, tasks):
            if not spoiled:
                spoiled.append(task)
                found[0, 0] = np.nan
            yield task, found

    monkeypatch.setattr("lhopt.policy.rollout_gradients.rollout_gradients", first_is_nan)
    with restored(training, CONFIGURED, pool) as trainer:
        rest = collect(trainer, 2)
    assert [*spoiled, *rest.tasks] == list(whole.tasks)
    np.testing.assert_array_equal(rest.gradients, whole.gradients[1:])
    assert f"A visit to {spoiled[0]} is left out" in caplog.text

    def all_are_nan(trainer: Trainer, tasks: list[tuple[str, ...]]) -> Iterator[Any]:
        for task, found in rollout_gradients(trainer, tasks):
            yield task, np.full_like(found, np.nan)

    monkeypatch.setattr("lhopt.policy.rollout_gradients.rollout_gradients", all_are_nan)
    with (
        restored(training, CONFIGURED, pool) as trainer,
        pytest.raises(ConfigurationError, match=rf"All {len(whole.tasks)} visits .* not finite"),
    ):
        collect(trainer, 2)


def test_rollouts_without_a_visit_are_refused(pool: TaskPool, tmp_path: Path) -> None:
    config = replace(CONFIGURED, n_steps=SHORTEST - 1, batch_size=24)
    with pytest.raises(ConfigurationError, match="5 decisions inside one rollout of 4"):
        collect(Trainer(config, tmp_path, pool), 1)
