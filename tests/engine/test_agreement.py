from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.conftest import run_pair

from launcher.ranks import Ranks
from mtbi.engine import agreement
from mtbi.errors import UserError

HOST = socket.gethostname()
Met = list[dict[str, Any]]


@pytest.fixture(scope="module")
def met(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Met:
    """What the first and the second process met."""
    work = tmp_path_factory.mktemp("agreement")
    copy = shutil.copytree(shard_folder, work / "copy")
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(shard_folder), str(copy), str(work)]
    outputs = run_pair(command, {**os.environ, "OMP_NUM_THREADS": "1"})
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def both(met: Met, way: str) -> Any:
    """What both met, which must be the same."""
    assert met[0][way] == met[1][way]
    return met[0][way]


def test_a_process_that_cannot_read_ends_all_with_its_name_and_reason(met: Met) -> None:
    assert both(met, "all read") == "read"
    reason = f"process 1 on {HOST} failed: /data/branches.npy: Stale file handle"
    assert both(met, "one cannot read") == f"UserError: {reason}"
    assert both(met, "the store is away for one") == f"UnavailableError: process 1 on {HOST} failed: s3://b: away"
    assert both(met, "all make the same mistake") == "UserError: data.shards is empty"
    assert "process 1 on" in both(met, "shards that one does not see")
    assert "/nowhere: no shards there" in both(met, "shards that one does not see")
    assert both(met, "a folder that cannot be written").startswith(f"UserError: process 0 on {HOST} failed: /proc/run")


def test_processes_that_differ_end_with_what_differs(met: Met) -> None:
    assert both(met, "equal facts") is None
    assert f"seed (recipe): 0 on process 0 on {HOST}, 1 on process 1 on {HOST}. Start all" in both(met, "other facts")
    assert "do not agree on words (data)" in both(met, "other long facts")
    assert "plan.row_tokens (recipe): 256 on process 0" in both(met, "another plan")
    assert "do not agree on shards (data)" in both(met, "shards twice on one")
    assert "augment.noise (augmentation): " in both(met, "other recordings of noise")


def test_equal_processes_begin(met: Met) -> None:
    assert both(met, "equal runs") == 0
    assert both(met, "equal bytes in other places") == 0


def test_the_first_process_chooses_the_checkpoint_and_the_others_need_no_folder(met: Met) -> None:
    expected = ["step-00000008", {"step": 8}, [[8.0] * 3] * 2, [[0.125] * 3] * 2]
    assert both(met, "a folder on each node") == expected
    assert both(met, "no checkpoint") is None
    assert "none of its 1 checkpoints can be used" in both(met, "a damaged checkpoint")


def test_a_later_checkpoint_on_another_node_is_not_passed_over(met: Met) -> None:
    for process in met:
        message = process["a later checkpoint on another node"]
        assert f"process 1 on {HOST} sees step-00000008 there, but process 0 on {HOST} sees no checkpoint" in message
        assert "train.copy_to" in message


def test_names_of_processes() -> None:
    def report(rank: int) -> agreement.Report:
        return agreement.Report(rank, f"gpu{rank // 4}")

    assert agreement.describe_processes([report(3)]) == "process 3 on gpu0"
    assert agreement.describe_processes([report(rank) for rank in (0, 1, 2, 5)]) == "processes 0-2, 5 on gpu0, gpu1"
    assert agreement.describe_processes([report(rank) for rank in range(32)]).endswith("gpu3 and 4 more hosts")


def test_one_process_alone_meets_its_own_error() -> None:
    alone = Ranks(0, 1, 0, 1)
    with pytest.raises(UserError, match=r"^a: No such file or directory$"):
        agreement.settle(alone, agreement.attempt(lambda: [][0] if Path("/").is_file() else Path("a").read_text()))
    with pytest.raises(ZeroDivisionError):
        agreement.settle(alone, agreement.attempt(lambda: 1 // 0))


def test_values_that_arrived_otherwise_are_noticed(met: Met) -> None:
    assert re.match(r"UserError: the processes do not agree on weights \(checkpoint\)", both(met, "other values arrived"))


def test_one_process_delivers_to_itself() -> None:
    delivery, value = agreement.Delivery(Ranks(0, 1, 0, 1), torch.device("cpu")), torch.ones(3)
    assert torch.equal(delivery.get("w", value), value)
    delivery.compare()
