from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhopt.benchmarks import batched_arms, bench, frontier_files, jobs, loop_arms, replay
from lhopt.benchmarks.arms import ARMS, OFFSETS, SEEDS, TIERS, get_arm, get_tier, transferred
from lhopt.benchmarks.bench import Bench, run_bench
from lhopt.benchmarks.engine_speed import Case, lines, measure, on_device
from lhopt.benchmarks.frontier import HORIZONS, BenchFrontier, BenchTask
from lhopt.benchmarks.jobs import ArmJob, ScanJob
from lhopt.benchmarks.records import CURVE, Results, Row
from lhopt.benchmarks.replay import median_path
from lhopt.cli import bench as command
from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.core.schedules import Schedule
from lhopt.env.config import OPTIMIZERS
from lhopt.env.pool import TaskSpec
from lhopt.inner_tasks.registry import get_task
from lhopt.policy import bundled
from lhopt.policy.artifact import Policy, save

SPEC = TaskSpec("digits-autoencoder", 32)
ADAMW, STEERABLE = "torch.optim.AdamW", "lhopt.SteerableAdamW"
MakePolicy = Callable[..., Policy]


def frontier(strength: Any) -> BenchFrontier:
    runs = np.outer(0.4 / np.array(HORIZONS), np.linspace(1.0, 1.1, 10))
    setting = {"learning_rate": 0.02, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999,
               "schedule": "warm-up + cosine to 0"}  # fmt: skip
    trials = tuple({"setting": setting, "losses": [0.4 + i, 0.5 + i]} for i in range(24))
    return BenchFrontier(
        SPEC.task, SPEC.steps, strength, HORIZONS, tuple(range(10)), runs,
        1.1 * runs, setting, trials, False, 1,
    )  # fmt: skip


TASK = BenchTask(SPEC, get_task(SPEC.task), "small", frontier("k24"), frontier("5x7"), "last")


@pytest.fixture
def policies(make_policy: MakePolicy) -> dict[str, Policy]:
    return {name: make_policy(name) for name in (ADAMW, STEERABLE)}


@pytest.fixture(autouse=True)
def _short_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "TRAIN_FAMILIES", ("friedman-mlp",))
    monkeypatch.setattr(replay, "STEPS", 32)
    monkeypatch.setattr(replay, "SEEDS", (0,))


def raw(folder: Path, tier: str = "small") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{tier}.jsonl").read_text().splitlines()]


def rows(folder: Path, tier: str = "small") -> list[Row]:
    return [Row.from_json(r["value"]) for r in raw(folder, tier) if r["id"].startswith("run ")]


@pytest.mark.timeout(400)
def test_every_arm_runs_and_a_finished_bench_trains_nothing_again(
    tmp_path: Path,
    policies: dict[str, Policy],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = [arm for arm in ARMS if arm.kind in ("http", "killed")]
    monkeypatch.setattr("lhopt.benchmarks.bench.IMITATION_FILE", tmp_path / "imitation.json")
    monkeypatch.setitem(TIERS, "small", replace(get_tier("small"), quick=1))

    def once() -> str:
        chosen = [arm for arm in ARMS if arm not in served]
        run_bench(
            "small", policies, tmp_path, tasks=[TASK], quick=True, processes=1, arms=chosen,
            resamples=50,
        )  # fmt: skip
        return capsys.readouterr().out

    first = once()
    assert "LEFT OUT: steerable-imitation, because there is no imitation.json" in first
    made = rows(tmp_path)
    expected = {arm.name for arm in ARMS if arm not in served} - {"steerable-imitation"}
    assert {row.arm for row in made} == expected
    for row in made:
        arm = get_arm(row.arm)
        assert row.offset in arm.offsets
        assert row.seed == 0
        assert row.tier == "small"
        if arm.kind == "tuned":
            assert row.loss == TASK.k24.runs[HORIZONS.index(1.0), row.seed]
            assert row.test_loss == TASK.k24.test_runs[HORIZONS.index(1.0), row.seed]
            assert row.curve == ()
            continue
        assert len(row.curve) == CURVE
        assert row.loss == row.curve[-1]
        assert row.cpu_ms is not None
        assert row.plain_ms is not None
        assert row.plain_ms > 0.0
    assert len(made) == sum(len(get_arm(name).offsets) for name in expected)
    best = {r["value"]["optimizer"]: r["value"]["best"] for r in raw(tmp_path) if "scan" in r["id"]}
    for row in made:
        arm = get_arm(row.arm)
        if arm.offsets == OFFSETS:
            assert row.rate == pytest.approx(best[arm.optimizer] * 10.0 ** (row.offset or 0))
    paths = {r["id"]: r["value"] for r in raw(tmp_path) if r["id"].startswith("path ")}
    assert set(paths) == {
        f"path {arm} digits-autoencoder 0 {offset}"
        for arm in (
            "steerable-policy", "steerable-policy-validated", "steerable-policy-averaged",
            "steerable-policy-default-rate", "adamw-policy",
        )
        for offset in get_arm(arm).offsets
    }  # fmt: skip
    path = paths["path steerable-policy digits-autoencoder 0 1"]
    assert path["progress"][0] == 0.0
    # the first interval is the schedule's alone: a tenth of the starting rate, decay aside
    assert path["relative"]["learning_rate"][0] == pytest.approx(0.1, rel=0.1)
    assert all(len(line) == len(path["progress"]) for line in path["relative"].values())
    for name in ("summary.json", "table.txt", "speeds.png"):
        assert (tmp_path / name).stat().st_size > 100

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(jobs, "work", refuse)
    monkeypatch.setattr(bench, "work", refuse)
    before = (tmp_path / "small.jsonl").read_text()
    once()
    assert (tmp_path / "small.jsonl").read_text() == before


def test_the_policy_decides_the_same_over_http_and_a_killed_server_stops_no_run(
    tmp_path: Path,
    policies: dict[str, Policy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TIERS, "small", replace(get_tier("small"), quick=1))
    arms = [get_arm(f"steerable-policy{end}") for end in ("", "-http", "-killed")]
    run_bench(
        "small", policies, tmp_path, tasks=[TASK], quick=True, processes=1, arms=arms, resamples=50
    )
    assert re.search(
        r"steerable-policy-http: \d+ decisions asked of a server, 0 of them held",
        capsys.readouterr().out,
    )
    found = {(row.arm, row.offset): row for row in rows(tmp_path)}
    told = {r["id"]: r["value"] for r in raw(tmp_path) if r["id"].startswith("service ")}
    for offset in OFFSETS:
        here = found["steerable-policy", offset]
        there = found["steerable-policy-http", offset]
        killed = found["steerable-policy-killed", offset]
        assert there.curve == here.curve
        assert there.test_loss == here.test_loss
        service = told[f"service steerable-policy-http digits-autoencoder 0 {offset}"]
        assert service["held"] == 0
        assert service["decisions"] > 10
        assert killed.curve[: CURVE // 2] == here.curve[: CURVE // 2]
        assert killed.loss is not None
        assert killed.curve[-1] != here.curve[-1]
        lost = told[f"service steerable-policy-killed digits-autoencoder 0 {offset}"]
        assert 0 < lost["held"] < lost["decisions"]
        if Path("/proc").exists():
            assert there.cpu_ms is not None
            assert here.cpu_ms is not None
            assert there.cpu_ms > here.cpu_ms  # the server's share is in it


def test_what_a_row_depends_on_makes_it_anew(
    tmp_path: Path, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    noop = [get_arm("steerable-noop")]
    monkeypatch.setitem(TIERS, "small", replace(get_tier("small"), quick=1))

    def kinds(head: float = 0.3) -> list[str]:
        given = {STEERABLE: make_policy(STEERABLE, head=head)}
        held = Results(tmp_path / "rows.jsonl")
        found = Bench(get_tier("small"), [TASK], given, held, quick=True, arms=noop)
        found.run(1, lambda job: None)
        lines = (tmp_path / "rows.jsonl").read_text().splitlines()
        return sorted(json.loads(line)["id"].split()[0] for line in lines)

    assert kinds() == ["run", "run", "scan"]
    assert kinds() == ["run", "run", "scan"]
    assert kinds(head=0.2) == 4 * ["run"] + ["scan"]  # another policy, the same schedule
    steered = OPTIMIZERS[STEERABLE]
    other = replace(steered, rule=replace(steered.rule, ns_steps=2))
    monkeypatch.setitem(OPTIMIZERS, STEERABLE, other)
    assert kinds() == 6 * ["run"] + 2 * ["scan"]


def test_more_seeds_train_only_what_is_missing(
    tmp_path: Path, policies: dict[str, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, int]] = []
    for quick in (1, 3):
        monkeypatch.setitem(TIERS, "small", replace(get_tier("small"), quick=quick))
        names = ("adamw-1e-3", "steerable-random")
        held = Results(tmp_path / "rows.jsonl")
        found = Bench(
            get_tier("small"), [TASK], policies, held, quick=True,
            arms=[get_arm(name) for name in names],
        )  # fmt: skip
        mine: list[int] = []
        found.run(1, lambda job, mine=mine: mine.append(job.n_rows))  # type: ignore[misc]
        done += [(quick, n) for n in mine]
        assert len(found.rows) == found.total
    # a random batch shares one generator: all of it or nothing
    assert sorted(done) == [(1, 0), (1, 1), (1, 2), (3, 2), (3, 6)]


def test_a_scan_widens_until_its_best_lies_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        def __init__(self, rates: Any) -> None:
            self.loss = np.abs(np.log10(np.asarray(rates)) - np.log10(4.0)) + 1.0

    tried: list[float] = []

    def fake(
        task: Any, steps: int, name: str, schedule: Any, make: Any, seeds: Any, rates: Any
    ) -> Any:
        assert set(seeds) == {100, 101}
        tried.extend(rates)
        return Found(rates)

    monkeypatch.setattr(batched_arms, "steered", fake)
    job = ScanJob("scan", STEERABLE, Schedule(), SPEC, 0.001)
    (name, value), *rest = job.run()
    assert (name, rest) == ("scan", [])
    assert value["best"] == pytest.approx(10.0**0.5)
    assert max(tried) == pytest.approx(10.0)


def test_a_diverged_run_is_a_row_without_a_loss(policies: dict[str, Policy]) -> None:
    job = ArmJob(
        arm=get_arm("steerable-policy"), spec=TaskSpec("teacher-regression", 40), tier="small",
        wanted=(("run", 0, 1),), stamp="x", policy=policies[STEERABLE], best=1e30, path=None,
        loop=True, step_seconds=0.001,
    )  # fmt: skip
    ((_, value),) = job.run()
    row = Row.from_json(json.loads(json.dumps(value)))
    assert row.loss is None
    assert row.test_loss is None
    assert row.curve[-1] is None


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from lhopt.benchmarks.arms import ARMS
from lhopt.benchmarks.bench import find_policies, run_bench
from tests.benchmarks.test_bench_run import TASK
if __name__ == "__main__":
    # a shell without job control starts what runs in the background with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arms = [arm for arm in ARMS if arm.kind in ("tuner", "hold")]
    run_bench("small", find_policies(), Path(sys.argv[1]), tasks=[TASK], processes=2, arms=arms)
"""


def children_of(pid: int) -> list[int]:
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in out.stdout.split()]


@pytest.mark.timeout(400)
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the workers under /proc")
def test_ctrl_c_leaves_a_valid_file_and_no_worker(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out")],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        file = tmp_path / "out" / "small.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and child.poll() is None:
            if file.exists() and "scan" in file.read_text():
                break
            time.sleep(0.1)
        assert child.poll() is None
        workers = children_of(child.pid)
        assert len(workers) >= 2
        child.send_signal(signal.SIGINT)
        assert child.wait(60) != 0
    for _ in range(100):
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive
    assert file.read_text().endswith("\n")
    assert all(set(json.loads(line)) == {"id", "value"} for line in file.read_text().splitlines())


def test_results_go_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "value": 1}\n{"id": "b", "val')
    held = Results(path)
    assert (held.get("a"), held.get("b")) == (1, None)
    held.put("b", 2)
    held.put("c", 3)
    again = Results(path)
    assert [again.get(name) for name in "abc"] == [1, 2, 3]


def test_tiers_name_known_arms_and_tasks() -> None:
    known = {arm.name for arm in ARMS}
    for name, counts in SEEDS.items():
        assert set(counts) <= known
        assert max(counts.values()) <= 10
        for spec, tier in frontier_files.tasks_of(name):
            seeds = frontier_files.protocol_of(tier).seeds
            assert set(range(counts["adamw-tuned"])) <= set(seeds), spec
    assert set(SEEDS["smoke"]) == {
        "steerable-policy", "steerable-default", "steerable-noop", "adamw-1e-3", "adamw-tuned",
    }  # fmt: skip
    assert set(transferred()) == {"learning_rate", "beta1", "beta2", "weight_decay"}


def test_an_arm_whose_package_is_missing_is_left_out_loudly(
    policies: dict[str, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_arms, "find_spec", lambda name: None)
    why = bench.left_out(get_arm("momo-adam"), policies)
    assert why is not None
    assert "momo is not installed: pip install 'lhopt[optimizers]'" in why
    assert bench.left_out(get_arm("muon"), policies) is None
    assert "no policy" in (bench.left_out(get_arm("adamw-policy"), {}) or "")


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


def test_a_device_is_timed_against_one_thread() -> None:
    text = list(on_device("cpu", widths=(2,), steps=1, rounds=1, cases=("digits-mlp",)))
    assert text[0].startswith("cpu: wall clock")
    assert [line.split()[:3] for line in text[2:]] == [
        [rule, "cpu", k] for rule in ("AdamW", "SteerableAdamW") for k in ("128", "2")
    ]


def test_the_command_refuses_what_it_does_not_know() -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["bench", "--quick", "--tasks", "glyphs-mlp"])
    with pytest.raises(UnknownNameError, match="task of tier 'small'"):
        command.run(args)
    with pytest.raises(ConfigurationError, match="tier is 'huge'"):
        command.run(parser.parse_args(["bench", "--tier", "huge"]))
    adamw = str(bundled.FOLDER / "adamw.json")
    with pytest.raises(ConfigurationError, match="no arm that runs it"):
        command.run(parser.parse_args(["bench", "--tier", "smoke", "--policy", adamw]))
    with pytest.raises(ConfigurationError, match="--fresh"):
        command.run(parser.parse_args(["bench", "--fresh"]))
    with pytest.raises(ConfigurationError, match="--device belongs"):
        command.run(parser.parse_args(["bench", "--device", "cuda"]))
    with pytest.raises(ConfigurationError, match="device is 'gpu'; give cpu, or cuda"):
        command.run(parser.parse_args(["bench", "frontiers", "--device", "gpu"]))
    with pytest.raises(ConfigurationError, match="processes is 0"):
        run_bench("small", {}, Path("."), tasks=[TASK], processes=0)


@pytest.mark.timeout(300)
def test_the_smoke_tier_runs_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = ["bench", "--tier", "smoke", "--processes", "1", "--output", str(tmp_path)]
    assert command.run(parser.parse_args(args)) == 0
    assert "measuring the baselines" not in capsys.readouterr().out
    made = rows(tmp_path, "smoke")
    assert len(made) == 3 * 2 * (2 + 2 + 1 + 1 + 1)
    assert all(row.loss is not None for row in made)
