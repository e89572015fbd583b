"""The rank of this process and the number of processes, under deepspeed, torchrun, MPI, Flux, srun, or no launcher."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from mtbi.errors import UserError

#: Exit status after a mistake of the user's. Starting again would not help.
MISTAKE = 2
#: Exit status of a run that stopped on request after a checkpoint. The Slurm script requeues the job.
STOPPED = 75
#: Exit status of a run that an external service, such as the object store, failed. The Slurm script tries again, within limits.
UNAVAILABLE = 74

#: Slurm numbers the steps of batch scripts and interactive shells from here on. They have no tasks.
SPECIAL_STEPS = 4_294_967_280
DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Launcher:
    """The environment variables in which a launcher passes a process its rank. Of several names, the first one set counts."""

    name: str
    rank: str
    world: str
    local_ranks: tuple[str, ...]
    local_worlds: tuple[str, ...]
    nodes: str = ""  #: the number of nodes, of a launcher that does not pass the number of processes on this one


TORCH = Launcher("deepspeed or torchrun", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
SRUN = Launcher("srun", "SLURM_PROCID", "SLURM_NTASKS", ("SLURM_LOCALID",), ())
LAUNCHERS = (
    Launcher(
        "mpirun of Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
        ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Launcher(
        "mpirun of MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
        ("LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"), ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    Launcher(
        "jsrun of LSF", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE",
        ("LOCAL_RANK", "JSM_NAMESPACE_LOCAL_RANK"), ("JSM_NAMESPACE_LOCAL_SIZE",),
    ),
    Launcher("flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", ("LOCAL_RANK", "FLUX_TASK_LOCAL_ID"), (), "FLUX_JOB_NNODES"),
    Launcher(
        "mpiexec of Cray PALS", "PALS_RANKID", "PALS_SIZE",
        ("LOCAL_RANK", "PALS_LOCAL_RANKID"), ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
    ),
    Launcher(
        "mpiexec", "PMI_RANK", "PMI_SIZE",
        ("LOCAL_RANK", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK", "MPI_LOCALRANKID"),
        ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE", "MPI_LOCALNRANKS"),
    ),
)  # fmt: skip
#: Variables that hold a rank. Without the number of processes they are not enough.
RANK_VARIABLES = (*(launcher.rank for launcher in LAUNCHERS), "PMIX_RANK", "ALPS_APP_PE")
#: Variables that identify a job. All processes of a job have the same value.
JOBS = ("PMIX_NAMESPACE", "PALS_APID", "FLUX_JOB_ID", "SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID")


@dataclass(frozen=True)
class Ranks:
    """A process's rank among all processes (`world`), and among those of its node (`local_world`)."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def free_port() -> int:
    """A TCP port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list such as `gpu[03-05,9],login1`."""
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True).stdout
        return shown.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
        return (match[1] + (match[2] or "")) if match else nodelist


def find_ranks(environment: MutableMapping[str, str] = os.environ) -> Ranks:
    """The ranks from the variables of deepspeed or torchrun, else of MPI or Flux, else of Slurm; else one process.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for torch.distributed if they are missing. Raises UserError
    if a launcher started several processes and its variables do not give this one's rank.
    """
    if "RANK" in environment:
        ranks = read(environment, TORCH)
        refuse_stale(ranks, environment)
        if ranks.world > 1:
            return ranks
    else:
        ranks = read_launcher(environment)
    own = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world, "LOCAL_RANK": ranks.local_rank, "LOCAL_WORLD_SIZE": ranks.local_world}
    for name, value in own.items():
        environment.setdefault(name, str(value))
    if "MASTER_ADDR" not in environment:
        environment["MASTER_ADDR"] = first_process_host(ranks, environment)
    if "MASTER_PORT" not in environment:
        environment["MASTER_PORT"] = str(shared_port(environment) if ranks.world > 1 or in_step(environment) else free_port())
    return ranks


def read_launcher(environment: Mapping[str, str]) -> Ranks:
    """The ranks from another launcher than deepspeed and torchrun. MPI comes first, because srun may start its helpers."""
    slurm = replace(read(environment, SRUN), local_world=int(tasks_here(environment))) if in_step(environment) else None
    matching = [launcher for launcher in LAUNCHERS if launcher.rank in environment and launcher.world in environment]
    for launcher in matching:
        rank, world = (environment[name].strip() for name in (launcher.rank, launcher.world))
        if world != "1" and not (slurm and (rank, world) == (str(slurm.rank), str(slurm.world))):
            return read(environment, launcher)
    if slurm:
        return slurm
    if not matching and (names := [name for name in RANK_VARIABLES if name in environment]):
        raise UserError(
            f"{names[0]} is set, so a launcher started this process, but the number of processes is unknown. Export RANK, "
            "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or start with torchrun, deepspeed or srun. For a single "
            f"process: `env -u {names[0]} python …`."
        )
    return Ranks(0, 1, 0, 1)


def read(environment: Mapping[str, str], launcher: Launcher) -> Ranks:
    """The ranks from one launcher's variables. Raises UserError if they contradict each other or some are missing."""

    def number(*names: str) -> int | None:
        name = next((name for name in names if environment.get(name, "").strip()), None)
        if name is None:
            return None
        if not environment[name].strip().isdecimal():
            raise UserError(f"{name}={environment[name]!r}, as {launcher.name} sets it, is not a number from 0")
        return int(environment[name])

    rank, world = number(launcher.rank), number(launcher.world)
    if rank is None or world is None or rank >= world:
        values = ", ".join(f"{name}={environment.get(name, '(not set)')}" for name in (launcher.rank, launcher.world))
        raise UserError(f"{values}: this is no rank and number of processes. Set both, or start with {launcher.name}.")
    local_rank, local_world, nodes = number(*launcher.local_ranks), number(*launcher.local_worlds), number(launcher.nodes)
    if local_rank is None and launcher in LAUNCHERS:
        raise UserError(
            f"{launcher.name} started {world} processes without the rank within a node "
            f"({launcher.local_ranks[-1]} is not set). Export LOCAL_RANK, or start with torchrun, deepspeed or srun."
        )
    if local_world is None and launcher in LAUNCHERS:
        local_world = -(-world // nodes) if nodes else 1  # unknown: 1 means several nodes, so MASTER_ADDR must be set
    return Ranks(rank, world, local_rank or 0, local_world or world)


def refuse_stale(ranks: Ranks, environment: Mapping[str, str]) -> None:
    """Raises UserError if RANK and WORLD_SIZE are those of a single process, but a launcher has started several.

    This happens when they are exported in the shell that starts the job. Each process would then train alone.
    """
    if ranks.world > 1 or any(name in environment for name in ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")):  # torchrun, deepspeed
        return
    outer = [*LAUNCHERS, *([SRUN] if in_step(environment) else [])]
    for launcher in (launcher for launcher in outer if launcher.rank in environment):
        if (started := environment.get(launcher.world, "1")) not in ("0", "1"):
            raise UserError(
                f"RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']} are set, but {launcher.name} started "
                f"{started} processes ({launcher.world}): each would train on its own. Remove them (`unset RANK "
                f"WORLD_SIZE LOCAL_RANK`). For separate runs: `env -u {launcher.rank} python …`, each with its own run_dir."
            )


def in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process. A shell opened by `salloc` has Slurm's job variables, but no tasks of its own."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < SPECIAL_STEPS and "SLURM_PROCID" in environment


def first_process_host(ranks: Ranks, environment: Mapping[str, str]) -> str:
    """The host of the first process. Raises UserError if there are several nodes and no variable names it."""
    nodes = environment.get("SLURM_STEP_NODELIST") if in_step(environment) else None
    if nodes := nodes or (environment.get("SLURM_JOB_NODELIST") if ranks.world > 1 or in_step(environment) else None):
        return first_host(nodes)
    if ranks.local_world < ranks.world:
        raise UserError(
            f"process {ranks.rank} of {ranks.world}: MASTER_ADDR is not set, and not all processes are on this node. Export "
            "the name of the first process's node to all, for example `mpirun -x MASTER_ADDR=$(hostname) …`."
        )
    return "127.0.0.1"


def shared_port(environment: Mapping[str, str]) -> int:
    """A port that all processes of a job compute alike.

    It differs between jobs, which may share a node, and between two starts of a job, since processes of the earlier start may
    still be there.
    """
    if in_step(environment):
        job, start = int(environment.get("SLURM_JOB_ID", "0")), int(environment.get("SLURM_RESTART_COUNT", "0"))
        return 20000 + (job + 7919 * start) % 20000
    job_name = next((environment[name] for name in JOBS if environment.get(name)), "")
    return 20000 + zlib.crc32(job_name.encode()) % 12000 if job_name else DEFAULT_PORT


def tasks_here(slurm: Mapping[str, str]) -> str:
    """Tasks on this node, from SLURM_STEP_TASKS_PER_NODE such as `4(x2),3`."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", slurm.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        counts += [count] * int(times or 1)
    return counts[min(int(slurm.get("SLURM_NODEID", "0")), len(counts) - 1)]


def made_progress(environment: Mapping[str, str] = os.environ) -> None:
    """Call this after each checkpoint. Earlier failures of the Slurm job then no longer count (see slurm/train.sh)."""
    if failures := environment.get("MTBI_FAILURES"):
        Path(failures).unlink(missing_ok=True)


class StopFlag:
    """`set` is true after SIGTERM or SIGUSR2. The run then writes a checkpoint after its current step, and ends."""

    def __init__(self) -> None:
        self.set = False
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.set = True
