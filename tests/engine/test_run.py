"""Whole runs of one process, in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from deepspeed.comm import comm as deepspeed_comm
from engine.conftest import REPOSITORY, SMALL

from launcher.ranks import Ranks, free_port
from mtbi import recipe as recipes
from mtbi import train
from mtbi.engine import checkpoint


class Flag:
    """In place of StopFlag, which catches signals of the test's own process."""

    set = False


@pytest.fixture
def train_here(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run `mtbi.train.train` on espeak-ng's digits as the only process; returns its status."""

    def start(run_dir: Path, *overrides: str) -> int:
        variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        fields = [*SMALL, f"run_dir={run_dir}", f"data.shards=[{shard_folder}]", "train.hang_seconds=0", *overrides]
        try:
            return train.train(
                recipes.load("demo", fields), str(REPOSITORY / "ds_configs" / "zero1.json"), Ranks(0, 1, 0, 1), Flag()
            )
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            deepspeed_comm.cdb = None

    yield start


def test_x(train_here, tmp_path):
    assert train_here(tmp_path / "a", "train.steps=3") == 0
    assert train_here(tmp_path / "a", "train.steps=4") == 0
