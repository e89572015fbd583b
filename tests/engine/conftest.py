"""Running real training processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.ranks import free_port

REPOSITORY = Path(__file__).parents[2]
TRAIN = str(REPOSITORY / "mtbi" / "train.py")
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))
SMALL = [
    "train.steps=8", "train.log_every_steps=1", "train.eval_every_steps=0", "train.checkpoint_every_steps=2",
    "train.keep_last=2", "train.warmup_steps=2", "train.start_utterances=16", "plan.row_tokens=256", "plan.rows_per_step=4",
    "plan.rows_per_micro_batch=1", "plan.window_utterances=20", "precision=fp32", "data.eval_shards=[]",
]  # fmt: skip


def ds_config(stage: int) -> str:
    """The shipped DeepSpeed configuration of a ZeRO stage."""
    return str(REPOSITORY / "ds_configs" / f"zero{stage}.json")


def all_split(command: list[str], folder: Path) -> list[str]:
    """The command of a ZeRO-3 run that splits the smallest parameters too, as it splits all of a large model."""
    config = json.loads(Path(ds_config(3)).read_text(encoding="utf-8"))
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "split.json").write_text(json.dumps(config), encoding="utf-8")
    return [str(folder / "split.json") if argument == ds_config(3) else argument for argument in command]


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables that a launcher would pass to one process of `world` on this machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def run_pair(command: list[str], environment: dict[str, str]) -> list[tuple[str, str]]:
    """Run a command as two processes that may join; returns the standard output and error of each. Both must end with 0."""
    port = free_port()
    processes = [
        subprocess.Popen(
            command,
            env={**environment, **rank_environment(rank, 2, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=250) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


@pytest.fixture
def launch(shard_folder: Path) -> Callable[..., list[str]]:
    """The command line of a small run on espeak-ng's digits. With 0 processes, there is one process without a launcher."""

    def command(run_dir: Path, *overrides: str, processes: int = 2, stage: int = 3, script: str = TRAIN) -> list[str]:
        start = [sys.executable]
        if processes:
            port = 29_600 + os.getpid() % 1000
            start = [DEEPSPEED, "--num_accelerators", str(processes), "--no_local_rank", "--master_port", str(port)]
        fields = [*SMALL, f"run_dir={run_dir}", f"data.shards=[{shard_folder}]", *overrides]
        return [*start, script, "--deepspeed", ds_config(stage), *fields]

    return command


@pytest.fixture
def environment() -> dict[str, str]:
    """One thread for each process, and the virtual environment's programs first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[[list[str]], str]:
    """Run a command to its end; returns its output. Another exit status than `status` is a failure."""

    def call(command: list[str], status: int = 0) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return call
