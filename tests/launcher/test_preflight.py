from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_processes_of_torchrun_find_each_other() -> None:
    command = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2", "launcher/preflight.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes on 1 hosts" in done.stdout
    bandwidth = re.search(r"bus bandwidth ([\d.]+) GB/s", done.stdout)
    assert bandwidth
    assert float(bandwidth[1]) > 0
