"""Joins the processes of a job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.ranks import Ranks

if TYPE_CHECKING:
    import torch


def start_distributed(ranks: Ranks) -> torch.device:
    """Join the processes, on GPUs by NCCL and otherwise on CPUs by gloo; returns this process's device."""
    import deepspeed
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world))
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    unlink_shared_memory(ranks)
    return device


def unlink_shared_memory(ranks: Ranks) -> None:
    """DeepSpeed's CPU collectives name a buffer in /dev/shm for each process and never take it away.

    Once all processes of the machine have mapped it, the name is not needed any more: without it, the memory goes with the
    processes, however they end.
    """
    import torch

    torch.distributed.barrier()
    place = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{ranks.rank}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{place}").unlink(missing_ok=True)
