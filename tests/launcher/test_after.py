from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher import after
from launcher.ranks import STOPPED

KILLED = """srun: error: node2: task 5: Killed
srun: launch/slurm: _step_signal: Terminating StepId=7.0
srun: error: node1: tasks 0-3: Terminated
"""


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were requeued: a real Slurm does it in test_slurm.py."""
    jobs: list[str] = []
    monkeypatch.setattr(after, "requeue", jobs.append)
    return jobs


def test_done_and_mistaken_jobs_end(requeued: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "srun.err").write_text(
        "srun: error: node1: task 0: Exited with exit code 2\nsrun: error: node2: task 1: Terminated\n"
    )
    assert after.decide(143, tmp_path, tmp_path / "failures", 3, "7") == after.MISTAKE
    assert capsys.readouterr().err == ""  # the job's output shows the log of task 0
    (tmp_path / "srun.err").write_text(
        "srun: error: node2: tasks 1,3: Exited with exit code 2\nsrun: error: node1: task 0: Terminated\n"
    )
    (tmp_path / "rank-1.log").write_text("mtbi: no such recipe\n")
    assert after.decide(143, tmp_path, tmp_path / "failures", 3, "7") == after.MISTAKE
    assert "  mtbi: no such recipe" in capsys.readouterr().err
    (tmp_path / "srun.err").unlink()
    assert after.decide(0, tmp_path, tmp_path / "failures", 3, "7") == 0
    assert requeued == []


def test_a_stopped_job_starts_again_and_its_failures_are_forgotten(requeued: list[str], tmp_path: Path) -> None:
    (tmp_path / "failures").write_text("earlier\n")
    after.decide(STOPPED, tmp_path, tmp_path / "failures", 3, "7")
    assert requeued == ["7"]
    assert not (tmp_path / "failures").exists()


def test_a_failing_job_starts_again_so_many_times(
    requeued: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sinfo = tmp_path / "sinfo"  # one node, so there is none to spare; the real one may not be installed
    sinfo.write_text("#!/bin/sh\necho node2\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "srun.err").write_text(KILLED)
    (tmp_path / "rank-5.log").write_text("step 1\nout of memory\n")
    for _ in range(3):
        assert after.decide(137, tmp_path, tmp_path / "failures", 2, "7") == 137
    assert requeued == ["7", "7"]
    errors = capsys.readouterr().err
    assert "task 5 on node2 failed first (status 137)" in errors
    assert "  out of memory" in errors
    assert "giving up (MTBI_RETRIES)" in errors


def test_requeueing_waits_for_a_controller_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol, asked = tmp_path / "scontrol", tmp_path / "asked"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ntest $(wc -l < {asked}) -ge 3\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    after.requeue("7", pauses=(0.01, 0.01, 0.01))
    assert asked.read_text().split("\n") == ["requeue 7"] * 3 + [""]
    asked.write_text("")
    with pytest.raises(subprocess.CalledProcessError):
        after.requeue("7", pauses=(0.01,))
