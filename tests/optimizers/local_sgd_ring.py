"""One of five processes in `test_local_sgd_processes`; rank 1 dies when the others sum.

Or, asked for "half", when half of the others sum: to the rest it never said that it is there.
"""

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


def main(rank: int, store: str, dies: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    transport = ProcessGroup(timeout=PATIENCE)
    values = torch.ones(1, 20_000, dtype=torch.float64)
    if rank == 1 and dies == "half":
        message, control = torch.tensor([0, 1, 8, 0]), transport._control
        took = [dist.irecv(torch.empty_like(message), i, control) for i in (0, 2, 3, 4)]
        said = [dist.isend(message, i, control) for i in (0, 3)]
        for work in (*took, *said):
            assert work is not None
            work.wait()
        time.sleep(0.5)  # until they wait in the sum
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    try:
        transport.agree(0, 1, 8, 0)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        transport.mean(values)
    except WorkerLostError as error:
        print(f"missing {list(error.missing)} after {time.monotonic() - start:.2f} s", flush=True)
        time.sleep(5.0)  # alive and silent: nobody may wait for this one
        os._exit(0)  # without torch's farewell, which waits for the dead


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
