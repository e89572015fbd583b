"""Which process of how many this is, whoever started it: deepspeed, torchrun, srun, or nobody."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

#: Exit status of a user's mistake: starting again would not help.
MISTAKE = 2
#: Exit status of a run that stopped on request after a checkpoint: the Slurm script requeues on it.
STOPPED = 75
#: Exit status of a run for which something outside was not to be had: it is tried again, but not for ever.
UNAVAILABLE = 74


@dataclass(frozen=True)
class Ranks:
    """One process among all."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def free_port() -> int:
    """A TCP port of this machine that nobody uses."""
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
    """Read deepspeed's and torchrun's variables, else Slurm's, else assume a single process.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for torch.distributed where they are missing.
    """
    if "RANK" not in environment:
        # A shell opened by `salloc` has Slurm's job variables, but only srun's tasks have a step of theirs.
        slurm = environment if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment else {}
        environment["RANK"] = slurm.get("SLURM_PROCID", "0")
        environment["WORLD_SIZE"] = slurm.get("SLURM_NTASKS", "1")
        environment["LOCAL_RANK"] = slurm.get("SLURM_LOCALID", "0")
        environment.setdefault("LOCAL_WORLD_SIZE", tasks_here(slurm))
        if slurm:
            nodes = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_JOB_NODELIST", "localhost")
            environment.setdefault("MASTER_ADDR", first_host(nodes))
            # Jobs that share a node must not share a port, nor must a start of a job with what may be left of the one before.
            job, start = int(slurm.get("SLURM_JOB_ID", "0")), int(slurm.get("SLURM_RESTART_COUNT", "0"))
            environment.setdefault("MASTER_PORT", str(20000 + (job + 7919 * start) % 20000))
        else:
            environment.setdefault("MASTER_ADDR", "127.0.0.1")
            environment.setdefault("MASTER_PORT", str(free_port()))
    world = int(environment["WORLD_SIZE"])
    local_world = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or world)
    return Ranks(int(environment["RANK"]), world, int(environment.get("LOCAL_RANK", "0")), local_world)


def tasks_here(slurm: Mapping[str, str]) -> str:
    """Tasks on this node, from SLURM_STEP_TASKS_PER_NODE such as `4(x2),3`."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", slurm.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        counts += [count] * int(times or 1)
    return counts[min(int(slurm.get("SLURM_NODEID", "0")), len(counts) - 1)]


def made_progress(environment: Mapping[str, str] = os.environ) -> None:
    """A checkpoint is written: earlier failures of this Slurm job no longer count (see slurm/train.sh)."""
    if note := environment.get("MTBI_FAILURES"):
        Path(note).unlink(missing_ok=True)


class StopFlag:
    """Set by SIGTERM or SIGUSR2: the run shall make a checkpoint and end at the next step boundary."""

    def __init__(self) -> None:
        self.set = False
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.set = True
