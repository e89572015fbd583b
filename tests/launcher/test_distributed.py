from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
