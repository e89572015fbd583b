"""One writer for a run's folder: a file that says which process writes there, touched as long as that process lives.

A process that died leaves its lease behind. On the same machine it is seen to be dead at once, and so is the earlier start of
a Slurm job that was requeued. Any other counts as dead when its file was not touched for EXPIRY_SECONDS, by the clock of the
file system. A process that was silent for so long (a stopped machine, a lost network) and comes back finds another name in
the file before it writes a checkpoint, and ends.
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
ENDING_SECONDS = 10.0  #: that a process of the same machine, killed just now, is given to end


class LeaseLostError(UserError):
    """Another process writes into the folder now."""


@dataclass(frozen=True)
class Holder:
    """Who writes."""

    token: str  #: another one for each start
    host: str = ""
    pid: int = 0
    started: str = ""  #: when the process began, in the kernel's ticks: numbers of processes come again
    machine: str = ""  #: this boot of a machine and its space of process numbers; empty where the kernel does not say
    job: str = ""  #: Slurm's job
    restart: int = 0  #: how often Slurm has requeued it

    @classmethod
    def this(cls, environment: Mapping[str, str] = os.environ) -> Holder:
        """This process."""
        job, restart = environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT") or 0)
        own = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), own, ticks(own), machine(), job, restart)

    def is_dead(self, now: Holder) -> bool:
        """Whether it certainly lives no more, as seen from another process."""
        if self.job and self.job == now.job and self.restart < now.restart:
            return True
        return bool(self.machine) and self.machine == now.machine and ticks(self.pid) != self.started

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host or 'an unknown host'}{job}"


def ticks(pid: int) -> str:
    """When a process of this machine began; empty where there is none, or where it has ended and nobody has asked how."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return ""


def machine() -> str:
    """The same for processes that see each other's numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Lease:
    """The right to write into a run's folder, taken by `take`; a thread touches its file. The first process alone has it."""

    def __init__(self, run_dir: Path | str, holder: Holder) -> None:
        self.path, self.holder = Path(run_dir) / FILE, holder
        self._ended = threading.Event()

    @classmethod
    def take(cls, run_dir: Path | str, holder: Holder | None = None) -> Lease:
        """Become the folder's writer; waits up to EXPIRY_SECONDS where it cannot tell whether another one still lives.

        Raises UserError where one does.
        """
        lease = cls(run_dir, holder or Holder.this())
        lease.path.parent.mkdir(parents=True, exist_ok=True)
        lease._claim()
        threading.Thread(target=lease._beat, name="mtbi-lease", daemon=True).start()
        return lease

    def verify(self) -> None:
        """Raises LeaseLostError where another process has become the writer, OSError where the file cannot be read."""
        try:
            found = read(self.path)[0]
        except FileNotFoundError:
            raise LeaseLostError(f"{self.path} is gone: another run may have written into this folder. Start again.") from None
        if found.token != self.holder.token:
            raise LeaseLostError(
                f"{self.path.parent}: {found} writes there now, so this run ends without writing. It was silent for more than "
                f"{EXPIRY_SECONDS:.0f} s, or its Slurm job was started again. Give each run its own run_dir."
            )

    def release(self) -> None:
        """The run ends: the next one need not wait."""
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
                    os.link(own, self.path)  # fails where there is one: of two runs that start together, one gets it
                    return
                except FileExistsError:
                    if self._is_free(own):
                        own.replace(self.path)
                        return
                except OSError:  # a file system without links
                    if not self.path.exists():
                        own.replace(self.path)
                        return
                    if self._is_free(own):
                        own.replace(self.path)
                        return
        finally:
            own.unlink(missing_ok=True)

    def _is_free(self, own: Path) -> bool:
        """Whether the present holder is dead; False where its file is gone meanwhile. Raises UserError where it lives."""
        first: int | None = None
        said, began = False, time.monotonic()
        while True:
            try:
                holder, touched = read(self.path)
            except FileNotFoundError:
                return False
            if holder.is_dead(self.holder):
                return True
            here = bool(holder.machine) and holder.machine == self.holder.machine
            if here and time.monotonic() - began < ENDING_SECONDS:
                time.sleep(0.1)
                continue
            if here or (first is not None and touched != first):
                raise UserError(
                    f"{self.path.parent}: another run writes there ({holder}). Wait for it, end it, or choose another run_dir."
                )
            first = touched
            own.touch()  # what time it is on the file server
            silent = (own.stat().st_mtime_ns - touched) / 1e9
            if silent > EXPIRY_SECONDS:
                return True
            if not said:
                print(f"{self.path}: waiting up to {EXPIRY_SECONDS:.0f} s, whether {holder} still writes", flush=True)
                said = True
            time.sleep(min(1.0, BEAT_SECONDS))

    def _beat(self) -> None:
        """Touching leaves what the file says alone: it may be another's in the next moment."""
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self.verify()
                os.utime(self.path)
            except LeaseLostError:
                return  # the next checkpoint ends the run
            except OSError:
                continue


def read(path: Path) -> tuple[Holder, int]:
    """Who holds a lease, and when the file was touched, in ns. Opened anew, as network file systems then ask their server.

    A damaged file is an unknown holder's: it expires as any other.
    """
    with path.open(encoding="utf-8") as file:
        touched = os.fstat(file.fileno()).st_mtime_ns
        try:
            record = json.load(file)
            known = {key: record[key] for key in Holder.__dataclass_fields__ if key in record}
            return Holder(**known), touched
        except (ValueError, TypeError):
            return Holder(""), touched
