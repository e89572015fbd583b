"""Ends a run in which nothing moves any more, and says which process it waits for.

Every process tells the first one, through a small key-value store, what it last did. When its own work has stood still
for too long it compares notes, names the processes that are silent or behind, prints where its own threads are, and
ends with status HUNG, so that the scheduler ends the others and starts the job again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import TCPStore

#: Exit status of a process that waited too long.
HUNG = 76
ANSWER_SECONDS = 10.0  # the store's, before its process counts as silent
READING_BYTES = 1_000_000  # between two looks: a process that reads so much before the first step is not hung


@dataclass
class Note:
    """What a process last did."""

    rank: int
    host: str
    step: int
    doing: str
    since: float  #: when it began doing so, Unix time
    told: float  #: when it said so, Unix time


def verdict(notes: dict[int, Note | None], now: float, silent_seconds: float) -> str:
    """Which processes the others wait for: silent ones, else those that do something else than the ones furthest ahead."""
    known = [note for note in notes.values() if note]
    silent = [rank for rank, note in notes.items() if note is None or now - note.told > silent_seconds]
    if silent:
        return "; ".join(describe(rank, notes[rank], now, "no sign of life from") for rank in silent)
    computing = max(known, key=lambda note: (note.step, note.since))
    behind = [note for note in known if (note.step, note.doing) != (computing.step, computing.doing)]
    if not behind:
        return f"all {len(known)} processes are at the same place, {computing.doing} of step {computing.step}"
    return "; ".join(describe(note.rank, note, now, "waiting for") for note in behind)


def describe(rank: int, note: Note | None, now: float, what: str) -> str:
    """One process, in words."""
    if note is None:
        return f"{what} process {rank}"
    return f"{what} process {rank} on {note.host}: {note.doing} of step {note.step} for {now - note.since:.0f} s"


def bytes_read() -> int:
    """What this process has read or written so far, pages of mapped files included; 0 where the system does not tell."""
    try:
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return 0
    paged = resource.getrusage(resource.RUSAGE_SELF).ru_majflt * resource.getpagesize()
    return int(counters["rchar"]) + int(counters["wchar"]) + paged


class Watchdog:
    """Call `at` whenever this process goes on to something else. `seconds` without a call end it; 0 = never.

    Before the first step, while checkpoints and models are read, reading is a sign of life as a call is: a model of 100 GB may
    come from a busy file system for an hour. Processes that wait for one that reads wait as long.

    It watches from the start, and compares notes with the others once they have joined and `meet` was called: through a
    torch TCPStore of its own on the first process's host.
    """

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        self.ranks, self.seconds = ranks, seconds
        self.note = Note(ranks.rank, socket.gethostname(), 0, "joining", time.time(), time.time())
        self.store: TCPStore | None = None
        self._done = threading.Event()
        if seconds:
            self._start(self._watch)

    def meet(self) -> None:
        """The processes have joined: begin to tell them what this one does."""
        self.at(0, "starting")
        if self.seconds:
            self.store = connect(self.ranks, timedelta(seconds=max(5.0, min(60.0, self.seconds))))
            # Talking to the store blocks for ever where the first process hangs: never in the thread that watches.
            self._start(self._tell)

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name=f"mtbi-watchdog{target.__name__}", daemon=True).start()

    def at(self, step: int, doing: str) -> None:
        """This process now does something else."""
        self.note = Note(self.note.rank, self.note.host, step, doing, time.time(), self.note.told)

    def close(self) -> None:
        """Stop watching."""
        self._done.set()

    @property
    def _pause(self) -> float:
        return min(15.0, self.seconds / 10)

    def _tell(self) -> None:
        while not self._done.wait(self._pause):
            assert self.store
            self.note.told = time.time()
            with contextlib.suppress(Exception):  # the first process may have ended
                self.store.set(str(self.note.rank), json.dumps(asdict(self.note)))

    def _watch(self) -> None:
        read = bytes_read()
        while not self._done.wait(self._pause):
            before, read = read, bytes_read()
            if self.note.step == 0 and read - before > READING_BYTES:
                self.note.since = time.time()
            if time.time() - self.note.since > self.seconds and not self._somebody_reads():
                self._end(silent_seconds=4 * self._pause)

    def _somebody_reads(self) -> bool:
        """Whether, before the first step, another process has shown life more lately than this one."""
        if self.note.step or not self.store:
            return False
        self.note.since = max(self.note.since, *(note.since for note in self._notes(self.store).values() if note))
        return time.time() - self.note.since <= self.seconds

    def _end(self, silent_seconds: float) -> None:
        own = self.note
        lines = [
            f"watchdog: process {own.rank} on {own.host}: {own.doing} of step {own.step} for {self.seconds:.0f} s, giving up."
        ]
        absent = f"not all {self.ranks.world} processes have joined; their logs may say why"
        lines.append(f"watchdog: {verdict(self._notes(self.store), time.time(), silent_seconds) if self.store else absent}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)

    def _notes(self, store: TCPStore) -> dict[int, Note | None]:
        """Everybody's last note; the first process counts as silent when its store does not answer."""
        notes: dict[int, Note | None] = {}

        def read() -> None:
            for rank in range(self.ranks.world):
                there = store.check([str(rank)])
                notes[rank] = Note(**json.loads(store.get(str(rank)))) if there else None

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(ANSWER_SECONDS)
        return dict(notes) if len(notes) == self.ranks.world else {0: None, self.note.rank: self.note}


def connect(ranks: Ranks, patience: timedelta) -> TCPStore:
    """A store on a free port of the first process's host. torch.distributed must have started."""
    import torch.distributed as dist

    first, host = ranks.rank == 0, os.environ["MASTER_ADDR"]
    store = dist.TCPStore(host, 0, is_master=True, timeout=patience, wait_for_workers=False) if first else None
    port = [store.port if store else 0]
    if ranks.world > 1:
        dist.broadcast_object_list(port, src=0)
    return store or dist.TCPStore(host, port[0], timeout=patience, wait_for_workers=False)
