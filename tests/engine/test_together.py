"""What hangs or ends too early only where several processes work together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.ranks import free_port

SCRIPT = str(Path(__file__).with_name("together.py"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("answers", ["rank 0: 3 tokens", "rank 1: 12 tokens"]),
        ("upload", ["rank 0: left after the copy", "rank 1: left after the copy"]),
    ],
)
def test_two_processes(what: str, said: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    shared = {**environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"} for rank in (0, 1)]
    command = [sys.executable, SCRIPT, what, str(tmp_path)]
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for env in own]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for output, line in zip(outputs, said, strict=True):
        assert line in output, output[-3000:]
    assert [process.returncode for process in processes] == [0, 0]
