"""Checks that the processes of a job reach each other, and measures how fast. Run it before the first GPU hour:

    srun --nodes 8 --gpus-per-node 8 --ntasks-per-node 8 python launcher/preflight.py
    deepspeed --no_local_rank launcher/preflight.py

Every process starts as in training and all-reduces a buffer several times. The first process prints the bus bandwidth, as
nccl-tests define it, and the slowest process of each host. The exit status is 1 if a sum is wrong.
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
    """Run the check; returns the exit status. Raises UserError if the processes cannot join."""
    import torch
    import torch.distributed as dist

    from launcher.distributed import start_distributed

    ranks = find_ranks()
    began = time.perf_counter()
    device = start_distributed(ranks)
    joined = time.perf_counter() - began
    buffer = torch.ones(BYTES // 4, device=device)
    dist.all_reduce(buffer)  # the first one makes the connections
    correct = bool((buffer == ranks.world).all())
    seconds = []
    for _ in range(REPEATS):
        buffer.fill_(1.0)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(buffer)
        correct &= bool((buffer == ranks.world).all())  # also waits for the device
        seconds.append(time.perf_counter() - began)
    own = (socket.gethostname(), statistics.median(seconds), correct)
    results: list = [None] * ranks.world
    dist.all_gather_object(results, own)
    wrong_hosts = {host for host, _, right in results if not right}
    if ranks.rank == 0:
        hosts = list(dict.fromkeys(host for host, _, _ in results))
        slowest = max(median for _, median, _ in results)
        share = 2 * (ranks.world - 1) / ranks.world  # bytes over each process's link, divided by the buffer's size
        print(f"{ranks.world} processes on {len(hosts)} hosts joined in {joined:.1f} s, {device.type}")
        print(
            f"all-reduce of {BYTES >> 20} MB: {1000 * slowest:.1f} ms, bus bandwidth {share * BYTES / slowest / 1e9:.2f} GB/s"
        )
        for host in hosts:
            times = [median for name, median, _ in results if name == host]
            warning = "  WRONG SUMS: exclude this host" if host in wrong_hosts else ""
            print(f"  {host}: {len(times)} processes, slowest {1000 * max(times):.1f} ms{warning}")
    dist.barrier()
    dist.destroy_process_group()
    return 1 if wrong_hosts else 0


if __name__ == "__main__":
    try:
        status = main()
    except UserError as error:
        print(f"launcher: {error}", file=sys.stderr, flush=True)
        status = MISTAKE
    sys.stdout.flush()
    os._exit(status)  # not an orderly exit, for the reason given in mtbi/train.py
