"""A short version of `tools/chaos.py`, with each kind of fault once; the long one is in benchmarks/reliability."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_six_faults_leave_no_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "tools/chaos.py", str(tmp_path), "--faults", "6", "--steps", "40", "--seed", "2"]
    log = tmp_path / "chaos.log"
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, check=False, timeout=1100
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    assert status == 0, log.read_text(errors="replace")[-8000:]
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert set(found["by_kind"].values()) == {1}
    assert found["faults"] == 6
    assert not found["differences"]
