from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mtbi.engine import checkpoint, lease
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.lease import FILE, Holder, Lease, LeaseLostError
from mtbi.errors import UserError

SNAPSHOT = Snapshot({"w": torch.ones(1)}, {}, {"step": 1})


def held_by(run_dir: Path, holder: Holder, silent_seconds: float = 0.0) -> Path:
    """The file that a holder has left behind, untouched for so long."""
    path = run_dir / FILE
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - silent_seconds
    os.utime(path, (then, then))
    return path


def elsewhere(**facts: object) -> Holder:
    """A process of another machine."""
    return replace(Holder("other", "gpu07", 12, "99", "boot of gpu07", "4242"), **facts)  # type: ignore[arg-type]


def test_a_second_writer_of_the_same_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "ENDING_SECONDS", 0.2)
    first = Lease.take(tmp_path)
    with pytest.raises(UserError, match=rf"another run writes there \(process {os.getpid()} on .*choose another run_dir"):
        Lease.take(tmp_path)
    checkpoint.save(tmp_path, 1, SNAPSHOT, first)
    first.release()
    Lease.take(tmp_path).release()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FOLDER]


def test_a_dead_process_of_the_same_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = "import sys; from mtbi.engine.lease import Lease; Lease.take(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / FILE).exists()
    held = Lease.take(tmp_path)
    held.verify()
    held.release()


def test_a_process_that_is_just_ending_or_not_yet_reaped_is_followed(tmp_path: Path) -> None:
    code = "import sys, time; from mtbi.engine.lease import Lease; Lease.take(sys.argv[1]); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
        held = Lease.take(tmp_path)  # before anybody waits for the process
        held.release()


def test_a_process_number_that_came_again_is_not_the_holder(tmp_path: Path) -> None:
    held_by(tmp_path, replace(Holder.this(), token="before", started="1"))
    Lease.take(tmp_path).release()


def test_a_requeued_job_goes_on_at_once_and_its_lost_start_writes_nothing_more(tmp_path: Path) -> None:
    before = Lease.take(tmp_path, elsewhere())
    held = Lease.take(tmp_path, replace(Holder.this({}), job="4242", restart=1))
    with pytest.raises(LeaseLostError, match="writes there now, so this run ends without writing"):
        checkpoint.save(tmp_path, 1, SNAPSHOT, before)
    assert checkpoint.all_of(tmp_path) == []
    before.release()  # the file is not its own any more
    checkpoint.save(tmp_path, 1, SNAPSHOT, held)
    held.release()


def test_a_holder_elsewhere_that_still_writes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    other = Lease.take(tmp_path, elsewhere())
    with pytest.raises(UserError, match=r"another run writes there \(process 12 on gpu07, Slurm job 4242\)"):
        Lease.take(tmp_path)
    other.verify()
    other.release()


def test_a_silent_holder_elsewhere_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_by(tmp_path, elsewhere(), silent_seconds=lease.EXPIRY_SECONDS + 5)
    Lease.take(tmp_path).release()
    assert "waiting" not in capsys.readouterr().out
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.3)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    held_by(tmp_path, elsewhere())
    Lease.take(tmp_path).release()
    assert "whether process 12 on gpu07, Slurm job 4242 still writes" in capsys.readouterr().out


def test_a_damaged_lease_expires_too(tmp_path: Path) -> None:
    path = held_by(tmp_path, elsewhere(), silent_seconds=lease.EXPIRY_SECONDS + 5)
    for content in ("", "[1]", "{}"):
        path.write_text(content)
        os.utime(path, (1, 1))
        Lease.take(tmp_path).release()


def test_a_lease_that_is_gone_is_lost(tmp_path: Path) -> None:
    held = Lease.take(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(LeaseLostError, match="is gone"):
        checkpoint.save(tmp_path, 1, SNAPSHOT, held)
