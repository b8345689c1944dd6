from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhopt.benchmarks import arms, baseline, bench, real
from lhopt.benchmarks.arms import ARMS, median_path
from lhopt.benchmarks.baseline import BaselineConfig, entries
from lhopt.benchmarks.engine_speed import Case, lines, measure
from lhopt.cli import bench as command
from lhopt.core.errors import ConfigurationError, FrontierError, UnknownNameError
from lhopt.env.config import OPTIMIZERS
from lhopt.env.pool import TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.policy import bundled
from lhopt.policy.artifact import Policy, save

TINY = BaselineConfig(
    budgets=(0.5, 1.0, 2.0), rates=(1e-3, 1e-2, 1e-1), tuning_seeds=(100,), seeds=(200, 201)
)
SPEC = TaskSpec("digits-mlp", 40)
MakePolicy = Callable[..., Policy]


def test_the_quick_bench_prints_every_arm_and_goes_on_where_it_was(
    tmp_path: Path,
    make_policy: MakePolicy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = {o: make_policy(o) for o in ("torch.optim.AdamW", "lhopt.SteerableAdamW")}
    monkeypatch.setattr(arms, "TRAIN_FAMILIES", ("digits-mlp",))  # recording the replay takes 20 s

    def run() -> str:
        bench.run_bench(policies, [SPEC], tmp_path / "out", seeds=(0, 1), config=TINY, verbose=True)
        return capsys.readouterr().out

    first = run()
    for arm in ARMS:
        assert arm.label in first
    assert "measuring the baseline of digits-mlp" in first
    assert "best of 3 rates" in first
    assert "(bar: 1.00" in first
    assert "(bar: 1.30" in first
    assert (tmp_path / "out" / "speeds.png").stat().st_size > 10_000
    raw = (tmp_path / "out" / "runs.jsonl").read_text()
    rows = [json.loads(line) for line in raw.splitlines()]
    runs = [row["value"] for row in rows if row["id"].startswith("run ")]
    assert len(runs) == 8 * 4 + 4 * 2
    starts = {(row["arm"], row["offset"]): row["rate"] for row in runs}
    best = entries([SPEC], TINY)[0].frontier.best_rates[1]
    assert starts["adamw-policy", 1] == pytest.approx(best * 10.0)
    assert starts["adamw-random", -1] == pytest.approx(best / 10.0)
    assert starts["adamw-tuned", None] == best
    assert {row["seed"] for row in runs} == {0, 1}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(real, "train", refuse)
    again = run()
    assert (tmp_path / "out" / "runs.jsonl").read_text() == raw
    assert again.split("\narm")[1].split("\n\n")[0] == first.split("\narm")[1].split("\n\n")[0]


def test_another_policy_is_run_anew(
    tmp_path: Path, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    noop = [arm for arm in ARMS if arm.name == "adamw-noop"]
    for head in (0.1, 0.2):
        policies = {"torch.optim.AdamW": make_policy(head=head)}
        bench.run_bench(policies, [SPEC], tmp_path, seeds=(0,), config=TINY, arms=noop)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2 * 2


def test_rows_made_under_another_rule_or_other_defaults_are_not_read_back(
    tmp_path: Path, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    steerable = "lhopt.SteerableAdamW"
    noop = [arm for arm in ARMS if arm.name == "steerable-noop"]

    def lines() -> list[str]:
        policies = {steerable: make_policy(steerable)}
        bench.run_bench(policies, [SPEC], tmp_path, seeds=(0,), config=TINY, arms=noop)
        rows = (tmp_path / "runs.jsonl").read_text().splitlines()
        return [json.loads(row)["id"].split()[0] for row in rows]

    once = ["scan", "run", "run"]
    assert sorted(lines()) == sorted(once)
    assert len(lines()) == 3
    steered = OPTIMIZERS[steerable]
    other = replace(steered, rule=replace(steered.rule, ns_steps=2))
    monkeypatch.setitem(OPTIMIZERS, steerable, other)
    assert sorted(lines()) == sorted(2 * once)
    defaults = {**real.default_values(steerable), "weight_decay": 0.07}
    monkeypatch.setattr(real, "default_values", lambda _: defaults)
    assert sorted(lines()) == sorted(3 * once)


def test_a_frontier_of_other_data_or_protocol_is_measured_anew(tmp_path: Path) -> None:
    task = get_task(SPEC.task)
    described = baseline.describe(task, SPEC.steps, TINY)
    path = tmp_path / baseline.file_name(SPEC)
    fresh = entries([SPEC], TINY, fresh=True, shipped=tmp_path)[0].frontier
    assert baseline.load(path, described) == fresh
    assert baseline.load(path, {**described, "data_sha256": "other"}) is None
    told: list[str] = []
    assert entries([SPEC], TINY, shipped=tmp_path, report=told.append)[0].frontier == fresh
    assert told == []
    path.write_text('{"measured": 1')
    with pytest.raises(FrontierError, match="delete it"):
        baseline.load(path, described)


def test_rates_are_chosen_and_losses_measured_on_different_seeds() -> None:
    task = get_task(SPEC.task)
    frontier = baseline.measure_baseline(task, SPEC.steps, TINY)
    again = baseline.train_cosine(task, [20, 40, 80], frontier.best_rates, TINY.seeds)
    np.testing.assert_allclose(frontier.losses, again.mean(axis=1))
    assert frontier.best_rate == frontier.best_rates[1]
    picked = min(v for v in frontier.grid[1] if v is not None)
    assert picked != frontier.losses[1]


def test_the_replayed_path_starts_at_no_move_and_ends_where_the_policy_did(
    make_policy: MakePolicy,
) -> None:
    progress, path = median_path(make_policy(), [get_task("digits-mlp")], steps=40)
    assert progress[0] == 0.0
    assert progress[-1] < 1.0
    assert not path[0].any()
    assert path[-1, 0] != 0.0


def test_policies_are_found_by_the_optimizer_they_steer(
    tmp_path: Path, make_policy: MakePolicy
) -> None:
    paths = [save_as(make_policy(), tmp_path / "one"), save_as(make_policy(), tmp_path / "two")]
    found = bench.find_policies(paths[:1])
    assert found["torch.optim.AdamW"].digest == make_policy().digest
    assert found["lhopt.SteerableAdamW"] is bundled.for_optimizer("lhopt.SteerableAdamW")
    assert set(bench.find_policies()) == set(found)
    with pytest.raises(ConfigurationError, match="one policy per optimizer"):
        bench.find_policies(paths)


def test_a_policy_of_an_optimizer_without_arms_is_refused(
    tmp_path: Path, make_policy: MakePolicy
) -> None:
    path = save_as(replace(make_policy(), optimizer="torch.optim.SGD"), tmp_path / "sgd")
    with pytest.raises(ConfigurationError, match=r"SGD.*optim\.AdamW or lhopt\.SteerableAdamW"):
        bench.find_policies([path])


def save_as(policy: Policy, folder: Path) -> Path:
    folder.mkdir()
    save(policy, folder)
    return folder / f"{policy.name}.json"


def test_the_engine_is_timed_against_one_run_at_a_time() -> None:
    case = Case("small", "digits-mlp", 0.01)
    speed = measure(case, widths=(1, 4), rounds=1, steps=5)
    text = "\n".join(lines(speed))
    assert "engine, K = 4" in text
    assert "bar: x0.01 at K = 4: reached" in text


def test_the_command_refuses_what_it_does_not_know() -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["bench", "--quick", "--tasks", "digits-mlp"])
    with pytest.raises(UnknownNameError, match="held-out task"):
        command.run(args)
    with pytest.raises(ConfigurationError, match="--fresh"):
        command.run(parser.parse_args(["bench", "--fresh"]))


def test_the_command_lists_frontiers(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    assert command.run(parser.parse_args(["bench", "frontiers", "--task", "digits-vit"])) == 0
    out = capsys.readouterr().out
    assert "digits-vit/1, 300 steps: 0.25T" in out
    assert "NOT FIT" not in out
