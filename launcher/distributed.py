"""Joins the processes of a job in torch.distributed."""

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
    """Join the processes, with NCCL on GPUs and gloo on CPUs; returns this process's device."""
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
    """Connect to the other processes at MASTER_ADDR. Raises UserError if it is not set, or its port is in use."""
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
        # Under Slurm the port depends on the number of the start, so another start may succeed.
        kind = UnavailableError if "SLURM_JOB_ID" in os.environ else UserError
        raise kind(
            f"port {port} of {os.environ['MASTER_ADDR']} is taken, perhaps by another training: use another port, "
            f"`deepspeed --master_port {int(port) + 1} …`, `torchrun --master-port {int(port) + 1} …` or MASTER_PORT."
        ) from error


def build_collectives() -> None:
    """Compile and load DeepSpeed's CPU collectives, one process at a time.

    torch marks a running build by a lock file. A process that is killed during the build leaves that file behind, and all later
    processes would wait for ever. Here a lock of the operating system guards the build, which ends with its process, and its
    holder deletes torch's file if there is one. The builds of other programs are in other folders.
    """
    import torch
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import get_default_build_root

    # torch builds again if PATH or the version of ninja differs, so the environment's own programs come first.
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
    """Unlink the buffers of DeepSpeed's CPU collectives in /dev/shm, which DeepSpeed leaves behind when a process is killed.

    All processes of the machine have mapped the buffers by now. Without a name, the memory is freed when the processes end.
    """
    import torch

    torch.distributed.barrier()
    suffix = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{ranks.rank}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{suffix}").unlink(missing_ok=True)
