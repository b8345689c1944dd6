from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lhopt.client import Tuner, ranks
from lhopt.client.hyperparameters import Hyperparameters
from lhopt.policy.artifact import Policy, save

CODE = """
import json, sys, torch
import torch.distributed as dist
from lhopt.client import Tuner

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
for reports, options in (
    (rank == 0, {"policy": f"{folder}/random.json"}),
    (True, {"url": "http://127.0.0.1:9", "timeout": 0.2}),
):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 2)
    x = torch.randn(32, 4) + rank  # each process sees other data and another loss
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    tuner = Tuner(optimizer, 40, interval=5, **options)
    for step in range(40):
        optimizer.zero_grad()
        loss = net(x).square().mean() * (1 + rank)
        loss.backward()
        for p in net.parameters():
            dist.all_reduce(p.grad)
        optimizer.step()
        if reports:
            tuner.report(loss)
    tuner.state_dict()
    tuner.close()
    records = [[r.moves, r.values, r.source] for r in tuner.history]
    print(json.dumps([records, [p.tolist() for p in net.parameters()]]))
dist.destroy_process_group()
"""


def test_processes_that_train_together_never_differ(tmp_path: Path, policy: Policy) -> None:
    save(policy, tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = ([json.loads(line) for line in out.splitlines()[-2:]] for out, _ in outputs)
    assert first == second
    (steered, _), (held, _) = first
    assert [source for _, _, source in steered] == ["policy"] * 8
    assert steered[3][0]["learning_rate"] != 1.0
    assert all(source.startswith("hold:") for _, _, source in held)


class Together:
    """`torch.distributed` of two processes, which are threads here."""

    def __init__(self) -> None:
        self.mine = threading.local()
        self.barrier = threading.Barrier(2, timeout=20)
        self.value: Any = None

    def get_rank(self) -> int:
        rank: int = self.mine.rank
        return rank

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        if self.get_rank() == src:
            self.value = box[0]
        self.barrier.wait()
        box[0] = copy.deepcopy(self.value)
        self.barrier.wait()

    def run(self, work: Any) -> list[Any]:
        def one(rank: int) -> Any:
            self.mine.rank = rank
            return work(rank)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    two = Together()
    monkeypatch.setattr(ranks, "_distributed", lambda: two)
    return two


def begin(make_job: Any, policy: Policy) -> tuple[Any, torch.optim.Optimizer, Tuner]:
    job = make_job()
    optimizer = torch.optim.AdamW(job.groups())
    return job, optimizer, Tuner(optimizer, 60, interval=5, policy=policy)


def train(
    job: Any, optimizer: torch.optim.Optimizer, tuner: Tuner, steps: range, every: int = 1
) -> None:
    """Here all processes see the same data; reports after each so many-th step."""
    for step in steps:
        job.run(optimizer, None, range(step, step + 1))
        if (step + 1) % every == 0:
            tuner.report(job.loss(step))


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("reporting", [1, 2])
def test_several_processes_decide_as_one_would_whoever_reports_beside_the_first(
    reporting: int,
    every: int,
    together: Together,
    make_job: Any,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(rank: int) -> Any:
        job, optimizer, tuner = begin(make_job, policy)
        train(job, optimizer, tuner, range(60), every if rank < reporting else 61)
        return job.weights(), [(r.index, r.step, r.moves, r.values) for r in tuner.history]

    several = together.run(work)
    monkeypatch.setattr(ranks, "_distributed", lambda: None)
    weights, history = work(0)
    for got, taken in several:
        assert torch.equal(got, weights)
        assert taken == history


@pytest.mark.parametrize("stop", [13, 20])
@pytest.mark.parametrize("alone", [False, True])
def test_a_checkpoint_of_the_first_holds_the_decision_that_all_wait_for(
    stop: int,
    alone: bool,
    together: Together,
    make_job: Any,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def whole(rank: int) -> Any:
        job, optimizer, tuner = begin(make_job, policy)
        train(job, optimizer, tuner, range(stop))
        saved = copy.deepcopy([p.state_dict() for p in (job.net, optimizer, tuner)])
        train(job, optimizer, tuner, range(stop, 60))
        return job.weights(), tuner.history, saved

    (weights, history, saved), _ = together.run(whole)
    assert (saved[2]["steering"]["pending"] is not None) == (stop == 20)

    def resumed(rank: int) -> Any:
        job, optimizer, tuner = begin(make_job, policy)
        for part, state in zip((job.net, optimizer, tuner), copy.deepcopy(saved), strict=True):
            part.load_state_dict(state)
        train(job, optimizer, tuner, range(stop, 60))
        return job.weights(), tuner.history

    if alone:
        monkeypatch.setattr(ranks, "_distributed", lambda: None)
    for got, taken in [resumed(0)] if alone else together.run(resumed):
        assert torch.equal(got, weights)
        assert [r.moves for r in taken] == [r.moves for r in history[-len(taken) :]]
        assert len(taken) == 11 - (stop - 1) // 5


@pytest.mark.parametrize("where", [0, 1])
def test_a_process_that_cannot_carry_a_decision_out_keeps_step_with_the_others(
    where: int,
    together: Together,
    make_job: Any,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apply = Hyperparameters.apply

    def work(rank: int) -> int:
        job, optimizer, tuner = begin(make_job, policy)
        train(job, optimizer, tuner, range(23))
        broken[tuner._steering.hyperparameters] = rank == where
        train(job, optimizer, tuner, range(23, 60))
        return tuner._steering.index

    broken: dict[Any, bool] = {}

    def sometimes(held: Any, decision: Any) -> None:
        if broken.get(held):
            raise RuntimeError("planted")
        apply(held, decision)

    monkeypatch.setattr(Hyperparameters, "apply", sometimes)
    assert together.run(work) == [11, 11]
