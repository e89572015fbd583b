"""Ends a run that makes no progress, and reports which process it waits for.

Every process writes its latest activity to a small key-value store on the first process. A process whose own activity has not
changed for too long reads the others' activities, names the processes that do not answer or are behind, prints the stacks of
its own threads and ends with status HUNG. The scheduler then ends the other processes and starts the job again.
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
STORE_TIMEOUT_SECONDS = 10.0  #: after which the first process, which holds the store, counts as silent
#: A process that reads this much between two checks is not hung. Applies before the first step.
READING_BYTES = 1_000_000


@dataclass
class Activity:
    """The latest activity of a process."""

    rank: int
    host: str
    step: int
    name: str  #: such as "computing"
    since: float  #: when it began, Unix time
    reported: float  #: when the process last wrote to the store, Unix time

    def __str__(self) -> str:
        return f"{self.name} of step {self.step}"


def find_culprits(activities: dict[int, Activity | None], now: float, silent_seconds: float) -> str:
    """The processes that the others wait for, in words. `activities` are by rank; None = the process never reported.

    These are the processes that have not reported for `silent_seconds`. If all have, these are the processes that do
    something else than the process that is furthest ahead.
    """
    known = [activity for activity in activities.values() if activity]
    silent = [rank for rank, activity in activities.items() if not activity or now - activity.reported > silent_seconds]
    if silent:
        return "; ".join(describe(rank, activities[rank], now, "no sign of life from") for rank in silent)
    ahead = max(known, key=lambda activity: (activity.step, activity.since))
    behind = [activity for activity in known if (activity.step, activity.name) != (ahead.step, ahead.name)]
    if not behind:
        return f"all {len(known)} processes are at the same point, {ahead}: look at the network between the nodes"
    return "; ".join(describe(activity.rank, activity, now, "waiting for") for activity in behind)


def describe(rank: int, activity: Activity | None, now: float, verdict: str) -> str:
    """One process in words, after `verdict`."""
    if activity is None:
        return f"{verdict} process {rank}"
    return f"{verdict} process {rank} on {activity.host}: {activity} for {now - activity.since:.0f} s"


def bytes_read() -> int:
    """Bytes that this process has read or written so far, memory-mapped files included; 0 where the system does not count."""
    try:
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return 0
    paged = resource.getrusage(resource.RUSAGE_SELF).ru_majflt * resource.getpagesize()
    return int(counters["rchar"]) + int(counters["wchar"]) + paged


class Watchdog:
    """Ends this process after `seconds` without a call of `report`. 0 = never.

    Before the first step, reading files counts as a report too: a busy file system may take an hour to deliver a checkpoint
    or a model of 100 GB. A process that waits for one that reads is given the same time.

    The watchdog works from the start. It knows the other processes' activities once `connect` was called.
    """

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        self.ranks, self.seconds = ranks, seconds
        self.activity = Activity(ranks.rank, socket.gethostname(), 0, "joining", time.time(), time.time())
        self.store: TCPStore | None = None
        self._closed = threading.Event()
        if seconds:
            self._start(self._watch)

    def connect(self) -> None:
        """Begin to exchange activities with the other processes. All of them must have joined torch.distributed."""
        self.report(0, "starting")
        if self.seconds:
            self.store = open_store(self.ranks, timedelta(seconds=max(5.0, min(60.0, self.seconds))))
            # A call to the store blocks for ever if the first process hangs, so it is never made in the watching thread.
            self._start(self._publish)

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name=f"mtbi-watchdog{target.__name__}", daemon=True).start()

    def report(self, step: int, activity: str) -> None:
        """This process now does `activity` for `step`."""
        self.activity = Activity(self.ranks.rank, self.activity.host, step, activity, time.time(), self.activity.reported)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    @property
    def _pause(self) -> float:
        return min(15.0, self.seconds / 10)

    def _publish(self) -> None:
        while not self._closed.wait(self._pause):
            assert self.store
            self.activity.reported = time.time()
            with contextlib.suppress(Exception):  # the first process may have ended
                self.store.set(str(self.ranks.rank), json.dumps(asdict(self.activity)))

    def _watch(self) -> None:
        read = bytes_read()
        while not self._closed.wait(self._pause):
            before, read = read, bytes_read()
            if self.activity.step == 0 and read - before > READING_BYTES:
                self.activity.since = time.time()
            if time.time() - self.activity.since > self.seconds and not self._another_reads():
                self._end(silent_seconds=4 * self._pause)

    def _another_reads(self) -> bool:
        """Whether another process was active more recently than this one. Only before the first step."""
        if self.activity.step or not self.store:
            return False
        others = [activity.since for activity in self._activities(self.store).values() if activity]
        self.activity.since = max([self.activity.since, *others])
        return time.time() - self.activity.since <= self.seconds

    def _end(self, silent_seconds: float) -> None:
        own = self.activity
        culprits = f"not all {self.ranks.world} processes have joined; their logs may say why"
        if self.store:
            culprits = find_culprits(self._activities(self.store), time.time(), silent_seconds)
        print(
            f"watchdog: process {own.rank} on {own.host}: {own} for {self.seconds:.0f} s, giving up.\nwatchdog: {culprits}",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)

    def _activities(self, store: TCPStore) -> dict[int, Activity | None]:
        """Every process's latest activity by rank. If the store does not answer, the first process counts as silent."""
        activities: dict[int, Activity | None] = {}

        def read() -> None:
            for rank in range(self.ranks.world):
                reported = store.check([str(rank)])
                activities[rank] = Activity(**json.loads(store.get(str(rank)))) if reported else None

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(STORE_TIMEOUT_SECONDS)
        return dict(activities) if len(activities) == self.ranks.world else {0: None, self.ranks.rank: self.activity}


def open_store(ranks: Ranks, timeout: timedelta) -> TCPStore:
    """A key-value store on a free port of the first process's host. torch.distributed must have started."""
    import torch.distributed as dist

    first, host = ranks.rank == 0, os.environ["MASTER_ADDR"]
    store = dist.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False) if first else None
    port = [store.port if store else 0]
    if ranks.world > 1:
        dist.broadcast_object_list(port, src=0)
    return store or dist.TCPStore(host, port[0], timeout=timeout, wait_for_workers=False)
