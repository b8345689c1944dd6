"""One of five processes in `test_local_sgd_processes`; rank 1 dies when the others sum."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from lhopt.core.errors import WorkerLostError
from lhopt.optimizers.local_sgd import ProcessGroup

WORLD = 5
#: Seconds; more than the test waits.
PATIENCE = 200.0


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    transport = ProcessGroup(timeout=PATIENCE)
    values = torch.ones(1, 20_000, dtype=torch.float64)
    transport.agree(0, 1, 8, 0)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        transport.mean(values)
    except WorkerLostError as error:
        print(f"missing {list(error.missing)} after {time.monotonic() - start:.2f} s", flush=True)
        os._exit(0)  # without torch's farewell, which waits for the dead


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
