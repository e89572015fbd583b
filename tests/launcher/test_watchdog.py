from __future__ import annotations

import subprocess
import sys
import time

import pytest

from launcher.ranks import Ranks
from launcher.watchdog import HUNG, Activity, Watchdog, find_culprits

NOW = 1000.0


def activity(rank: int, step: int, name: str, since: float, reported: float = NOW) -> Activity:
    return Activity(rank, f"gpu{rank:02d}", step, name, since, reported)


def test_a_silent_process_is_named() -> None:
    activities = {0: activity(0, 7, "computing", 900), 1: activity(1, 7, "computing", 900, reported=905), 2: None}
    culprits = find_culprits(activities, NOW, silent_seconds=30)
    assert "no sign of life from process 1 on gpu01: computing of step 7" in culprits
    assert culprits.endswith("no sign of life from process 2")
    assert "process 0" not in culprits


def test_a_process_that_waits_for_data_is_named() -> None:
    activities: dict[int, Activity | None] = {0: activity(0, 7, "computing", 900), 1: activity(1, 7, "waiting for data", 890)}
    assert find_culprits(activities, NOW, 30) == "waiting for process 1 on gpu01: waiting for data of step 7 for 110 s"


def test_processes_at_the_same_point_are_not_accused() -> None:
    activities: dict[int, Activity | None] = {rank: activity(rank, 7, "computing", 900) for rank in range(4)}
    assert find_culprits(activities, NOW, 30).startswith("all 4 processes are at the same point, computing of step 7")


WATCHED = """
import sys, time
from launcher.ranks import Ranks
from launcher.watchdog import Watchdog
watchdog = Watchdog(Ranks(0, 1, 0, 1), 1.0)
watchdog.report(int(sys.argv[1]), "starting")
end = time.monotonic() + 2.5
while time.monotonic() < end:
    open("/dev/zero", "rb").read(4_000_000) if sys.argv[2] == "read" else None
    time.sleep(0.05)
"""


@pytest.mark.parametrize(("step", "does", "status"), [(0, "read", 0), (0, "nothing", HUNG), (1, "read", HUNG)])
def test_reading_is_a_sign_of_life_before_the_first_step(step: int, does: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED, str(step), does], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr


def test_processes_wait_for_one_that_reads() -> None:
    waiting = Watchdog(Ranks(1, 2, 1, 2), 0)
    waiting.seconds, waiting.store = 100.0, object()  # type: ignore[assignment]
    waiting.activity.since = time.time() - 200
    reader = activity(0, 0, "starting", time.time() - 5)
    waiting._activities = lambda store: {0: reader, 1: None}  # type: ignore[assignment, method-assign]
    assert waiting._another_reads()
    reader.since = waiting.activity.since = time.time() - 150
    assert not waiting._another_reads()
