"""Three real processes over gloo; see `local_sgd_worker.py` for what each of them does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("local_sgd_worker.py")
#: Seconds for all scenes on a busy machine; without, about a tenth.
PATIENCE = 200.0
#: Seconds from the kill to the end of the others; their own timeout is 60.
BOUND = 20.0


pytestmark = pytest.mark.timeout(300)


class Processes:
    """Three workers; `results[rank]` after their run, rank 1 killed on the way."""

    def __init__(self, folder: Path) -> None:
        logs = [(folder / f"log-{rank}").open("w") for rank in range(3)]
        self.folder = folder
        self.workers = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), str(folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank, log in enumerate(logs)
        ]
        for log in logs:
            log.close()

    def wait_for(self, names: list[str]) -> None:
        until = time.monotonic() + PATIENCE
        while not all((self.folder / name).exists() for name in names):
            if time.monotonic() > until or any(w.poll() is not None for w in self.workers):
                pytest.fail(f"{names} did not come; {self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join((self.folder / f"log-{rank}").read_text()[-2000:] for rank in range(3))

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("local-sgd")
    processes = Processes(folder)
    try:
        processes.wait_for([f"running-{rank}" for rank in range(3)])
        victim = processes.workers[1]
        victim.send_signal(signal.SIGKILL)
        ends = []
        until = time.monotonic() + BOUND
        for rank in (0, 2):
            try:
                ends.append(processes.workers[rank].wait(max(until - time.monotonic(), 0.0)))
            except subprocess.TimeoutExpired:
                pytest.fail(
                    f"rank {rank} hangs {BOUND} s after rank 1 was killed; {processes.logs()}"
                )
        assert ends == [0, 0], processes.logs()
        assert victim.wait() == -signal.SIGKILL
        names = ["killed-0.json", "silence-1.json", "killed-2.json"]
        yield [json.loads((folder / name).read_text()) for name in names]
    finally:
        processes.end()


@pytest.mark.exact
def test_an_interval_of_one_equals_large_batches(
    results: list[dict[str, Any]], figure: Any
) -> None:
    gap = max(found["large batch"]["gap"] for found in results)
    asked = "H = 1 over gloo, 3 processes, equals large-batch SGD: gap <= 1e-6"
    figure("Local SGD", asked, f"{gap:.1e}", gap <= 1e-6)
    assert [found["large batch"]["rounds"] for found in results] == [40] * 3


@pytest.mark.parametrize("rule", ["local", "average"])
def test_processes_and_stacked_workers_do_the_same(
    results: list[dict[str, Any]], rule: str
) -> None:
    for found in results:
        one = found["one process"][rule]
        assert one["gap"] < 1e-10
        assert one["rounds"] == [6, 6, 6]
        assert one["drift"] == pytest.approx([one["drift"][0]] * 3, rel=1e-9)
        assert one["cosine"] == pytest.approx([one["cosine"][0]] * 3, rel=1e-9)
    for key in ("drift", "cosine", "mean"):  # the same bits everywhere
        assert len({json.dumps(found["one process"][rule][key]) for found in results}) == 1


@pytest.mark.parametrize("rule", ["local", "average"])
def test_a_saved_process_continues_to_the_bit(results: list[dict[str, Any]], rule: str) -> None:
    assert [found["one process"][rule]["resumed"] for found in results] == [0.0] * 3


def test_what_rank_0_saved_between_meetings_is_refused_by_the_others(
    results: list[dict[str, Any]],
) -> None:
    said = [found["one process"]["local"]["of rank 0"] for found in results]
    assert said[0] == "nothing was refused"
    for rank in (1, 2):
        assert (
            f"that of rank 0, 2 local steps after the workers met; this is rank {rank}"
            in (said[rank])
        )


def test_workers_that_start_apart_are_told_and_meet_at_the_first(
    results: list[dict[str, Any]],
) -> None:
    for found in results:
        assert "start from different parameters" in found["refused"]["apart"]
        assert found["refused"]["broadcast"] == 0.0


def test_workers_out_of_step_are_told_and_do_not_wait(results: list[dict[str, Any]]) -> None:
    said = [found["refused"]["out of step"] for found in results]
    assert "Rank 0 came to synchronisation 1 after step 4" in said[0]
    assert "rank 2 to synchronisation 1 after step 3" in said[0]
    assert all("same number of steps" in text for text in said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("measure_cosine", "same state_rule, measure_cosine"),
        ("state_rule", "same state_rule, measure_cosine"),
        ("outer", "outer optimizer with the same values"),
        ("outer_learning_rate", "outer optimizer with the same values"),
        ("dtype", "parameters and dtypes"),
        ("nothing", "nothing was refused"),
    ],
)
def test_workers_that_are_set_otherwise_are_told_before_anything_is_sent(
    results: list[dict[str, Any]], setting: str, said: str
) -> None:
    assert all(said in found["refused"]["settings"][setting] for found in results)


def test_the_state_of_optimizers_inside_others_follows_the_rule(
    results: list[dict[str, Any]],
) -> None:
    one, two, three = (found["inside"] for found in results)
    assert len(one["local"]) == len(one["average"]) == 8
    assert one["local"] != two["local"]
    assert one["average"] == two["average"] == three["average"]
    assert one["reset"] == two["reset"] == three["reset"] == []


def test_an_optimizer_without_a_rate_meets_too_whatever_the_default_device(
    results: list[dict[str, Any]],
) -> None:
    assert [found["inside"]["rounds of AGD"] for found in results] == [2, 2, 2]


def test_a_part_of_the_processes_may_go_on_alone(results: list[dict[str, Any]]) -> None:
    assert results[0]["refused"]["pair"] == results[2]["refused"]["pair"] == [2, 2, 0]
    assert "Rank 1 is not in the group" in results[1]["refused"]["outside"]


def test_a_transport_without_torch_distributed_or_time_is_refused(
    results: list[dict[str, Any]],
) -> None:
    for found in results:
        assert "init_process_group" in found["uninitialised"]
        assert "timeout is 0; a number of seconds > 0" in found["no time"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_silent_worker_ends_the_wait_in_time(results: list[dict[str, Any]], rank: int) -> None:
    found = results[rank]["silence"]
    assert found["missing"] == [2]
    assert (found["rank"], found["round"]) == (rank, 1)
    assert "silent for 5 s" in found["message"]
    assert found["kept"] == 0.0
    assert found["again"] is True


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_worker_is_named_and_nobody_hangs(
    results: list[dict[str, Any]], rank: int
) -> None:
    found = results[rank]["killed"]
    assert found["rank"] == rank
    assert 1 in found["missing"]
    assert found["round"] == found["reached"] >= 20
    for part in (f"Rank {rank}: lost rank", "Nothing was averaged", "from the last checkpoint"):
        assert part in found["message"]
    assert "not all of the ranks [0, 1, 2] made their ProcessGroup within 1 s" in found["anew"]


@pytest.mark.parametrize("dies", ["in the sum", "half"])
def test_who_is_no_neighbour_of_the_dead_in_the_ring_learns_of_it_too(
    dies: str, tmp_path: Path
) -> None:
    """With five, some wait for a process that lives and has given up; see `_hang_up`."""
    script = [sys.executable, str(WORKER.with_name("local_sgd_ring.py"))]
    workers = [
        subprocess.Popen(
            [*script, str(rank), str(tmp_path / "store"), dies],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(5)
    ]
    try:
        assert workers[1].wait(PATIENCE) == -signal.SIGKILL
        until = time.monotonic() + BOUND
        for rank in (0, 2, 3, 4):
            said, _ = workers[rank].communicate(timeout=max(until - time.monotonic(), 0.0))
            assert re.search(r"missing \[.*1.*\] after [01]\.", said), (rank, said)
    except subprocess.TimeoutExpired:
        pytest.fail(f"someone still waits {BOUND} s after rank 1 died")
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
