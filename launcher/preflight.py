"""Do the processes of a job reach each other, and how fast? Before any GPU hour:

    srun --nodes 8 --gpus-per-node 8 --ntasks-per-node 8 python launcher/preflight.py
    deepspeed --no_local_rank launcher/preflight.py

Every process starts as in training, all-reduces a buffer several times, and the first one prints the bus bandwidth (as
nccl-tests define it) and each host's slowest process. Ends with status 1 where results are wrong.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from pathlib import Path

REPOSITORY = str(Path(__file__).resolve().parents[1])
if REPOSITORY not in sys.path:  # started as a script, the repository may not be installed
    sys.path[0] = REPOSITORY

from launcher.ranks import MISTAKE, find_ranks  # noqa: E402
from mtbi.errors import UserError  # noqa: E402

BYTES = 64 << 20
REPEATS = 5


def main() -> int:
    """Run the check; returns the exit status."""
    import torch
    import torch.distributed as dist

    from launcher.distributed import start_distributed

    ranks = find_ranks()
    began = time.perf_counter()
    device = start_distributed(ranks)
    joined = time.perf_counter() - began
    buffer = torch.ones(BYTES // 4, device=device)
    dist.all_reduce(buffer)  # connections are made
    correct = bool((buffer == ranks.world).all())
    seconds = []
    for _ in range(REPEATS):
        buffer.fill_(1.0)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(buffer)
        correct &= bool((buffer == ranks.world).all())  # also waits for the device
        seconds.append(time.perf_counter() - began)
    own = (socket.gethostname(), statistics.median(seconds), joined, correct)
    everyone: list = [None] * ranks.world
    dist.all_gather_object(everyone, own)
    if ranks.rank == 0:
        slowest = max(each[1] for each in everyone)
        share = 2 * (ranks.world - 1) / ranks.world  # bytes that pass each process's link, by those it holds
        print(f"{ranks.world} processes on {len({each[0] for each in everyone})} hosts joined in {joined:.1f} s, {device.type}")
        print(
            f"all-reduce of {BYTES >> 20} MB: {1000 * slowest:.1f} ms, bus bandwidth {share * BYTES / slowest / 1e9:.2f} GB/s"
        )
        for host in dict.fromkeys(each[0] for each in everyone):
            times = [each[1] for each in everyone if each[0] == host]
            wrong = "" if all(each[3] for each in everyone if each[0] == host) else "  WRONG SUMS: take this host out"
            print(f"  {host}: {len(times)} processes, slowest {1000 * max(times):.1f} ms{wrong}")
    dist.barrier()
    dist.destroy_process_group()
    return 0 if all(each[3] for each in everyone) else 1


if __name__ == "__main__":
    try:
        status = main()
    except UserError as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)
        status = MISTAKE
    sys.stdout.flush()
    os._exit(status)  # as mtbi/train.py ends
