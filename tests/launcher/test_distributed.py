from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.distributed import join, start_distributed
from launcher.ranks import Ranks
from mtbi.errors import UnavailableError, UserError

JOIN = """
import os
from launcher.distributed import start_distributed
from launcher.ranks import find_ranks
start_distributed(find_ranks())
print("folder", os.environ["TORCH_EXTENSIONS_DIR"], flush=True)
os._exit(0)
"""


def test_a_build_that_was_killed_holds_up_nobody() -> None:
    def join() -> str:
        done = subprocess.run([sys.executable, "-c", JOIN], capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    folder = Path(join().rpartition("folder ")[2].strip())
    left = folder / "deepspeed_shm_comm" / "lock"
    left.touch()
    join()
    assert not left.exists()


def test_a_port_of_another_program_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = int(other.getsockname()[1])
        meeting = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in meeting.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        with pytest.raises(UserError, match=rf"port {port} of 127.0.0.1 is taken.*`deepspeed --master_port {port + 1}") as met:
            start_distributed(Ranks(0, 1, 0, 1))
        assert not isinstance(met.value, UnavailableError)
        monkeypatch.setenv("SLURM_JOB_ID", "7")  # Slurm starts it again, with another port
        with pytest.raises(UnavailableError):
            start_distributed(Ranks(0, 1, 0, 1))


def test_processes_without_a_meeting_point_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        join("gloo")
