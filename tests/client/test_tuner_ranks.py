from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lhopt.policy.artifact import Policy, save

CODE = """
import json, sys, torch
import torch.distributed as dist
from lhopt.client import Tuner

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
for options in (
    {"policy": f"{folder}/random.json"},
    {"url": "http://127.0.0.1:9", "timeout": 0.2},
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
