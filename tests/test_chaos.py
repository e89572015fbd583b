"""A short version of `tools/chaos.py`; the long one is in benchmarks/reliability."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_faults_leave_no_trace(tmp_path: Path) -> None:
    command = [sys.executable, "tools/chaos.py", str(tmp_path), "--faults", "5", "--steps", "40", "--seed", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["faults"] == 5
    assert not found["differences"]
