"""A short version of `tools/disturb.py`; the long one is in benchmarks/reliability."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_disturbed_run_ends_well_with_another_result(tmp_path: Path, shard_folder: Path) -> None:
    command = [sys.executable, "-u", "tools/disturb.py", str(tmp_path), "--shards", str(shard_folder)]
    done = subprocess.run(
        [*command, "--cases", "20", "--recipes", "2"], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1400
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "disturb.json").read_text())
    assert len(record["cases"]) == 20
    assert set(record["outcomes"]) <= {"equal", "refused", "reported"}
    # Most disturbances end, and then the run must get to its result.
    assert record["outcomes"]["equal"] >= 13
