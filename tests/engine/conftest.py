"""Running real training processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))
SMALL = [
    "train.steps=8", "train.log_every_steps=1", "train.eval_every_steps=0", "train.checkpoint_every_steps=2",
    "train.keep_last=2", "train.warmup_steps=2", "plan.row_tokens=256", "plan.rows_per_step=4",
    "plan.rows_per_micro_batch=1", "plan.window_utterances=20", "precision=fp32", "data.eval_shards=[]",
]  # fmt: skip


@pytest.fixture
def launch(shard_folder: Path) -> Callable[..., list[str]]:
    """The command line of a small run on espeak-ng's digits."""

    def command(run_dir: Path, *overrides: str, processes: int = 2, stage: int = 3) -> list[str]:
        config = str(REPOSITORY / "ds_configs" / f"zero{stage}.json")
        port = 29_600 + os.getpid() % 1000
        start = [DEEPSPEED, "--num_accelerators", str(processes), "--no_local_rank", "--master_port", str(port)]
        script = [str(REPOSITORY / "mtbi" / "train.py"), "--deepspeed", config]
        return [*start, *script, *SMALL, f"run_dir={run_dir}", f"data.shards=[{shard_folder}]", *overrides]

    return command


@pytest.fixture
def environment() -> dict[str, str]:
    """One thread for each process, and the virtual environment's programs first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[[list[str]], str]:
    """Run a command to its end and return what it printed; a failure shows the output."""

    def call(command: list[str], status: int = 0) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return call
