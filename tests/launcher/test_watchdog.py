from __future__ import annotations

from launcher.watchdog import Note, verdict

NOW = 1000.0


def note(rank: int, step: int, doing: str, since: float, told: float = NOW) -> Note:
    return Note(rank, f"gpu{rank:02d}", step, doing, since, told)


def test_a_silent_process_is_named() -> None:
    notes = {0: note(0, 7, "computing", 900), 1: note(1, 7, "computing", 900, told=905), 2: None}
    told = verdict(notes, NOW, silent_seconds=30)
    assert "no sign of life from process 1 on gpu01: computing of step 7" in told
    assert told.endswith("no sign of life from process 2")
    assert "process 0" not in told


def test_a_process_that_waits_for_data_is_named() -> None:
    notes: dict[int, Note | None] = {0: note(0, 7, "computing", 900), 1: note(1, 7, "waiting for data", 890)}
    assert verdict(notes, NOW, 30) == "waiting for process 1 on gpu01: waiting for data of step 7 for 110 s"


def test_processes_at_one_place_are_not_accused() -> None:
    notes: dict[int, Note | None] = {rank: note(rank, 7, "computing", 900) for rank in range(4)}
    assert verdict(notes, NOW, 30) == "all 4 processes are at the same place, computing of step 7"
