"""Joins the processes of a job."""

from __future__ import annotations

import fcntl
import os
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.ranks import Ranks
from mtbi.errors import UnavailableError, UserError

if TYPE_CHECKING:
    import torch


def start_distributed(ranks: Ranks) -> torch.device:
    """Join the processes, on GPUs by NCCL and otherwise on CPUs by gloo; returns this process's device."""
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world))
        build_collectives()
    join(backend)
    unlink_shared_memory(ranks)
    return device


def join(backend: str) -> None:
    """Meet the other processes at MASTER_ADDR. Raises UserError where that is not set or its port is another program's."""
    import deepspeed
    import torch.distributed as dist

    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"{missing[0]} is not set. Export MASTER_ADDR, the node of process 0, and MASTER_PORT to all processes, or start "
            "with torchrun, deepspeed or srun."
        )
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        # Of a job whose port Slurm's numbers chose, the next start has another one.
        kind = UnavailableError if "SLURM_JOB_ID" in os.environ else UserError
        raise kind(
            f"port {port} of {os.environ['MASTER_ADDR']} is taken (another training?): give this one a port of its own, "
            f"`deepspeed --master_port {int(port) + 1} …`, `torchrun --master-port {int(port) + 1} …` or MASTER_PORT."
        ) from error


def build_collectives() -> None:
    """Compile and load DeepSpeed's CPU collectives, one process at a time.

    torch guards a build by a file. A process that is killed meanwhile leaves it behind, and all later ones would wait for it
    for ever. The lock here ends with the process that holds it, and whoever holds it takes such a leftover away; builds of
    other programs, which know nothing of this lock, are in other folders.
    """
    import torch
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import get_default_build_root

    # A build is made anew where the environment or the version of ninja is another: keep to one of each.
    programs = str(Path(sys.executable).parent)
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [programs, os.environ.get("PATH")]))
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    own = Path(get_default_build_root()) / f"mtbi-{torch.__version__}-{zlib.crc32(sys.prefix.encode()):08x}"
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own)))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mtbi.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / builder.name / "lock").unlink(missing_ok=True)
        if builder.is_compatible(verbose=False):
            builder.load(verbose=False)


def unlink_shared_memory(ranks: Ranks) -> None:
    """DeepSpeed's CPU collectives name a buffer in /dev/shm for each process and never take it away.

    Once all processes of the machine have mapped it, the name is not needed any more: without it, the memory goes with the
    processes, however they end.
    """
    import torch

    torch.distributed.barrier()
    place = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{ranks.rank}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{place}").unlink(missing_ok=True)
