from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lhopt.benchmarks.demo import Job, Plan, footnote, speed, table
from lhopt.benchmarks.demo_job import cosine
from lhopt.benchmarks.demo_rivals import best_rates
from lhopt.benchmarks.processes import DemoError, Processes
from lhopt.env.frontier import Frontier
from lhopt.policy import bundled

DEMO = (
    "import argparse, sys; from lhopt.cli import demo; p = argparse.ArgumentParser(); "
    "demo.add_parser(p.add_subparsers()); a = p.parse_args(); sys.exit(a.func(a))"
)


def children(session: int) -> list[int]:
    """Processes of a session that are alive, read from /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    if not bundled.names():
        pytest.skip("no policy is bundled")
    return [sys.executable, "-c", DEMO, "demo", "--quick", "--output", str(tmp_path / "out")]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_the_demo_prints_its_table_draws_its_picture_and_leaves_nothing_running(
    command: list[str], tmp_path: Path
) -> None:
    ran = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    out, err = ran.communicate(timeout=150)
    assert ran.returncode == 0, err
    assert children(ran.pid) == []
    assert "lhopt serving on http://127.0.0.1:" in out
    for label in (
        "AdamW + lhopt",
        "SteerableAdamW + lhopt",
        "AdamW, tuned cosine",
        "AdamW 1e-3 cosine",
        "AdamW 1e-3 constant",
    ):
        assert label in out
    assert "steered over HTTP" in err  # the progress
    assert "runs" in out
    picture = (tmp_path / "out" / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 30_000
    lines = (tmp_path / "out" / "demo.jsonl").read_text().splitlines()
    jobs = {row["label"]: row for row in map(json.loads, lines)}
    steered = jobs["AdamW + lhopt"]
    assert steered["decisions"] == 30  # opening included
    assert steered["held"] == 0
    assert len(steered["path"]["learning_rate"]) == 30
    assert steered["curve"][0][0] == 0
    assert steered["curve"][-1][0] == steered["steps"]


@needs_proc
def test_a_demo_that_is_stopped_leaves_nothing_running(command: list[str]) -> None:
    ran = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert ran.stdout is not None
    line = ran.stdout.readline()  # the server is up, the rivals are training
    assert "serving" in line
    assert len(children(ran.pid)) >= 3
    ran.send_signal(signal.SIGTERM)
    ran.communicate(timeout=30)
    deadline = time.monotonic() + 5
    while children(ran.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children(ran.pid) == []
    assert ran.returncode != 0


def test_a_process_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        child = processes.start("broken", "lhopt.no_such_module", [])
        child.wait(30)
        with pytest.raises(DemoError, match=r"(?s)broken ended with status 1.*no_such_module"):
            processes.check()


def test_processes_end_with_the_block_even_if_they_do_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lhopt.benchmarks.processes.STOP", 0.2)
    script = tmp_path / "deaf.py"
    script.write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Processes(tmp_path) as processes:
        child = processes.start("deaf", "deaf", [], pipe=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "deaf\n"
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_the_rate_of_each_length_is_the_best_of_the_tuning_runs_alone() -> None:
    def end(run: str, steps: int, lr: float, loss: float | None) -> dict[str, object]:
        return {"run": run, "kind": "end", "steps": steps, "lr": lr, "valid": {"loss": loss}}

    rows = [
        end("tuning", 10, 0.1, 2.0),
        end("tuning", 10, 0.2, 1.0),
        end("tuning", 10, 0.4, None),  # diverged
        end("cosine", 10, 0.8, 0.5),
        end("tuning", 20, 0.1, 0.7),
        end("tuning", 40, 0.1, None),
    ]
    assert best_rates(rows) == {10: 0.2, 20: 0.1}


def test_the_rivals_schedule_warms_up_and_ends_at_zero() -> None:
    values = [cosine(step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.2)  # 1/5 of the warm-up, cosine still at 1
    assert max(values) == pytest.approx(1.0, abs=0.01)
    assert values[-1] < 0.001


def test_the_table_reads_speeds_off_the_tuned_runs_and_names_the_tuning_budget() -> None:
    job = Job("ours", 100)
    job.take({"kind": "begin", "lr": 1e-3})
    job.take({"kind": "decision", "step": 0, "values": {"learning_rate": 1e-4}, "by": "policy"})
    job.take({"kind": "decision", "step": 4, "values": {"learning_rate": 1e-4}, "by": "hold:x"})
    job.take({"kind": "curve", "step": 0, "loss": 2.0})
    score = {"loss": 0.5, "accuracy": 0.9}
    job.take({"kind": "end", "steps": 100, "seconds": 1.0, "valid": score, "test": score})
    plan = Plan("digits", 100, (0.01, 0.1, 1.0), Path("out"))
    frontier = Frontier(
        "digits", 100, (0.5, 1.0, 2.0), (2.0, 1.0, 0.5), (0.1, 0.1, 0.1), 0.0, 4.0, plan.rates
    )
    line = table([job], frontier).splitlines()[-1]
    assert "2.00" in line  # the tuned cosine needs twice our steps for 0.5
    assert "2 (1 held)" in line
    assert [speed(loss, frontier) for loss in (None, 3.0, 1.0, 0.4)] == [
        "< 0.5", "< 0.5", "1.00", "> 2"
    ]  # fmt: skip
    flat = replace(frontier, losses=(2.0, 0.5, 0.6))
    assert speed(1.0, flat) == "-"
    assert "no speed" in footnote(plan, flat)
    below = footnote(plan, frontier)
    assert "9 runs, 1,050 steps of tuning" in below
    assert "EDGE" not in below
