"""Ensures that one process at a time writes into a run's folder, by a file that names the writer: the lease.

The writer touches the file as long as it lives. A process that dies leaves its lease behind. The next run takes the lease over

- at once, if the earlier process ran on the same machine, or was an earlier start of the same Slurm job;
- otherwise once the file was not touched for EXPIRY_SECONDS by the file system's clock.

A process may come back after a longer silence, because its machine was stopped or its network was lost. It then finds another
writer's name in the file before it writes a checkpoint, and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mtbi.errors import UserError

FILE = "lease.json"
BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
ENDING_SECONDS = 10.0  #: how long to wait for the end of a process on the same machine, which may just have been killed


class LeaseLostError(UserError):
    """Another process writes into the folder now."""


@dataclass(frozen=True)
class Holder:
    """The process that writes into the folder."""

    token: str  #: random, different for each start
    host: str = ""
    pid: int = 0
    started: str = ""  #: start of the process in the kernel's ticks, because process numbers are used again
    machine: str = ""  #: the machine's boot and its space of process numbers; empty if the kernel does not show them
    job: str = ""  #: Slurm's job
    restart: int = 0  #: how often Slurm has requeued it

    @classmethod
    def this(cls, environment: Mapping[str, str] = os.environ) -> Holder:
        """This process."""
        job, restart = environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT") or 0)
        own = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), own, ticks(own), machine(), job, restart)

    def is_dead(self, now: Holder) -> bool:
        """Whether this process has certainly ended, as seen from the process `now`."""
        if self.job and self.job == now.job and self.restart < now.restart:
            return True
        return bool(self.machine) and self.machine == now.machine and ticks(self.pid) != self.started

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host or 'an unknown host'}{job}"


def ticks(pid: int) -> str:
    """The start of a process of this machine in the kernel's ticks; empty if there is none, or if it is a zombie."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return ""


def machine() -> str:
    """A text that is the same for all processes that see each other's process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Lease:
    """The right to write into a run's folder. `take` it on the first process only. A thread touches the file."""

    def __init__(self, run_dir: Path | str, holder: Holder) -> None:
        self.path, self.holder = Path(run_dir) / FILE, holder
        self._ended = threading.Event()

    @classmethod
    def take(cls, run_dir: Path | str, holder: Holder | None = None) -> Lease:
        """Become the folder's writer. If an earlier writer may still live, this waits up to EXPIRY_SECONDS.

        Raises UserError if another writer lives.
        """
        lease = cls(run_dir, holder or Holder.this())
        lease.path.parent.mkdir(parents=True, exist_ok=True)
        lease._claim()
        threading.Thread(target=lease._beat, name="mtbi-lease", daemon=True).start()
        return lease

    def verify(self) -> None:
        """Raises LeaseLostError if another process has become the writer, OSError if the file cannot be read."""
        try:
            writer = read(self.path)[0]
        except FileNotFoundError:
            raise LeaseLostError(f"{self.path} is gone: another run may have written into this folder. Start again.") from None
        if writer.token != self.holder.token:
            raise LeaseLostError(
                f"{self.path.parent}: {writer} writes there now, so this run ends without writing. This process was silent "
                f"for more than {EXPIRY_SECONDS:.0f} s, or its Slurm job was started again. Give each run its own run_dir."
            )

    def release(self) -> None:
        """Give up the right to write, so that the next run need not wait."""
        self._ended.set()
        with contextlib.suppress(OSError, UserError):
            self.verify()
            self.path.unlink()

    def _claim(self) -> None:
        own = self.path.with_name(f".{FILE}.{self.holder.token}")
        own.write_text(json.dumps(asdict(self.holder), indent=1) + "\n", encoding="utf-8")
        try:
            while True:
                try:
                    os.link(own, self.path)  # fails if the file exists, so of two runs that start together one succeeds
                    return
                except FileExistsError:
                    if self._is_free(own):
                        own.replace(self.path)
                        return
                except OSError:  # a file system without hard links
                    if not self.path.exists():
                        own.replace(self.path)
                        return
                    if self._is_free(own):
                        own.replace(self.path)
                        return
        finally:
            own.unlink(missing_ok=True)

    def _is_free(self, own: Path) -> bool:
        """Whether the present holder is dead; False if its file has disappeared. Raises UserError if the holder lives."""
        first: int | None = None
        announced, began = False, time.monotonic()
        while True:
            try:
                holder, touched = read(self.path)
            except FileNotFoundError:
                return False
            if holder.is_dead(self.holder):
                return True
            same_machine = bool(holder.machine) and holder.machine == self.holder.machine
            if same_machine and time.monotonic() - began < ENDING_SECONDS:
                time.sleep(0.1)
                continue
            if same_machine or (first is not None and touched != first):
                raise UserError(
                    f"{self.path.parent}: another run writes there ({holder}). Wait for it, end it, or choose another run_dir."
                )
            first = touched
            own.touch()  # reads the file server's clock
            untouched_seconds = (own.stat().st_mtime_ns - touched) / 1e9
            if untouched_seconds > EXPIRY_SECONDS:
                return True
            if not announced:
                print(f"{self.path}: waiting up to {EXPIRY_SECONDS:.0f} s to see whether {holder} still writes", flush=True)
                announced = True
            time.sleep(min(1.0, BEAT_SECONDS))

    def _beat(self) -> None:
        """Touch the file now and then. Its content is never written again: another process may have become the writer."""
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self.verify()
                os.utime(self.path)
            except LeaseLostError:
                return  # the next checkpoint ends the run
            except OSError:
                continue


def read(path: Path) -> tuple[Holder, int]:
    """The holder of a lease, and the time at which its file was touched, in ns.

    The file is opened each time, because network file systems then ask their server. A damaged file belongs to an unknown
    holder and expires like any other.
    """
    with path.open(encoding="utf-8") as file:
        touched = os.fstat(file.fileno()).st_mtime_ns
        try:
            record = json.load(file)
            known = {key: record[key] for key in Holder.__dataclass_fields__ if key in record}
            return Holder(**known), touched
        except (ValueError, TypeError):
            return Holder(""), touched
