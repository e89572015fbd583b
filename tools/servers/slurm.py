"""A real Slurm cluster on this machine: munged, slurmctld and two slurmd, with all files in one folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from servers.swift import free_ports

MUNGE_FILES = ("socket", "key-file", "pid-file", "log-file", "seed-file")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass
class Cluster:
    """Two nodes of `cpus` CPUs each, and the environment variables that clients need."""

    folder: Path
    cpus: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start `munged`, `slurmctld` or a node of NODES."""
        log = (self.folder / f"{name}.out").open("a")
        munge = (f"--{option}={self.folder / f'munge.{option}'}" for option in MUNGE_FILES)
        command = {
            "munged": ["munged", "--foreground", "--force", "--num-threads=2", *munge],
            "slurmctld": ["slurmctld", "-D", "-f", self.environment["SLURM_CONF"]],
        }.get(name, ["slurmd", "-D", "-N", name, "-f", self.environment["SLURM_CONF"]])  # fmt: skip
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self.daemons[name] = process

    def kill(self, name: str) -> None:
        """Kill a daemon, as a crash does. With a node, its job steps are killed too, as a power cut does.

        The processes that monitor job steps are killed first, because they would report the steps' end.
        """
        monitors = processes_that_write(self.folder / f"{name}.log") if name in NODES else []
        daemon = self.daemons.pop(name)
        daemon.kill()
        for pid in monitors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()
        if name in NODES:
            for pid in processes_with(f"SLURMD_NODENAME={name}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def call(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command; returns its output."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
        """Submit a job with `sbatch`; returns its number."""
        variables = {**os.environ, **self.environment, **environment}
        command = ["sbatch", "--parsable", *arguments]
        done = subprocess.run(command, env=variables, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Slurm's record of a job."""
        shown = self.call("scontrol", "--oneliner", "show", "job", number)
        return dict(pair.partition("=")[::2] for pair in shown.split() if "=" in pair)

    def hasten(self, number: str) -> dict[str, str]:
        """Slurm's record of a job. A requeued job, which would wait for two minutes, is started at once.

        Slurm waits until the credentials of the job's first start have expired.
        """
        record = self.job(number)
        if record.get("Reason") == "BeginTime":
            self.call("scontrol", "update", f"JobId={number}", "StartTime=now")
        return record

    def wait(self, number: str, seconds: float = 300) -> dict[str, str]:
        """Wait until the job has ended and will not be requeued; returns Slurm's record."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):  # the controller may be away for a while
                record = self.hasten(number)
                if record["JobState"] in ENDED:
                    return record
            time.sleep(0.5)
        raise RuntimeError(f"job {number} did not end in {seconds} s: {self.job(number)}\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.out")))


def processes_with(variable: str) -> list[int]:
    """The processes that have `NAME=VALUE` in their environment."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids


def processes_that_write(path: Path) -> list[int]:
    """The processes that have a file open."""
    pids = []
    for handles in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) == str(path) for link in handles.iterdir()):
                pids.append(int(handles.parent.name))
    return pids


def rank_process(job: str, rank: int) -> int | None:
    """The Python process of a rank of a job; None if it does not run."""
    for pid in processes_with(f"SLURM_JOB_ID={job}"):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            started = b"python" in program and arguments[:1] == [b"mtbi/train.py"]  # not srun, nor the script
            if started and f"SLURM_PROCID={rank}".encode() in environment:
                return pid
    return None


def configuration(cluster: Cluster) -> str:
    """The content of slurm.conf."""
    controller, *nodes = free_ports(1 + len(NODES))
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    host, folder = socket.gethostname().split(".")[0], cluster.folder
    lines = [
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmUser={user}\nSlurmdUser={user}",
        f"AuthType=auth/munge\nCredType=cred/munge\nAuthInfo=socket={folder / 'munge.socket'}",
        "ProctrackType=proctrack/pgid\nTaskPlugin=task/none\nMpiDefault=none\nSwitchType=switch/none",
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nReturnToService=2\nJobRequeue=1",
        "SlurmdTimeout=10\nSlurmctldTimeout=5\nKillWait=5\nBatchStartTimeout=30\nMinJobAge=600",
        "SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2",
        f"StateSaveLocation={folder / 'state'}\nSlurmdSpoolDir={folder}/spool.%n",
        f"SlurmctldPidFile={folder / 'slurmctld.pid'}\nSlurmdPidFile={folder}/slurmd.%n.pid",
        f"SlurmctldLogFile={folder / 'slurmctld.log'}\nSlurmdLogFile={folder}/%n.log",
    ]
    lines += [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cluster.cpus} RealMemory=1000 State=UNKNOWN"
        for name, port in zip(NODES, nodes, strict=True)
    ]
    return "\n".join([*lines, f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"]) + "\n"


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Run the cluster in `folder`, whose path must be short. Raises RuntimeError if packages are missing."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise RuntimeError(f"{', '.join(missing)} missing: run tools/install_servers.sh")
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key-file").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key-file").chmod(0o600)
    cluster = Cluster(folder)
    conf = folder / "slurm.conf"
    conf.write_text(configuration(cluster))
    cluster.environment["SLURM_CONF"] = str(conf)
    try:
        cluster.start("munged")
        while not (folder / "munge.socket").exists():
            assert cluster.daemons["munged"].poll() is None, cluster.logs()
            time.sleep(0.1)
        for name in ("slurmctld", *NODES):
            cluster.start(name)
        deadline = time.monotonic() + 60
        while cluster.call("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() != str(len(NODES)):
            assert time.monotonic() < deadline, cluster.logs()
            time.sleep(0.5)
        yield cluster
    finally:
        for daemon in reversed(cluster.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in processes_with(f"SLURM_CONF={conf}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
