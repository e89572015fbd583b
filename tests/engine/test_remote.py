"""Checkpoints on a real S3 server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from servers.faulty_proxy import faulty_proxy
from servers.swift import swift_server

from launcher.ranks import UNAVAILABLE
from mtbi import object_store
from mtbi.engine import checkpoint, remote
from mtbi.engine.checkpoint import Snapshot
from mtbi.errors import UserError

pytestmark = pytest.mark.slow
SNAPSHOT = Snapshot({"a": torch.arange(3.0)}, {"a.exp_avg": torch.ones(3)}, {"step": 4})


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, swift_server(tmp_path_factory.mktemp("swift")) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=environment["S3_ENDPOINT_URL"]).create_bucket(Bucket="runs")
        yield "s3://runs"


def test_a_copy_comes_back_whole(bucket: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    copies = remote.RemoteCopy(f"{bucket}/one", here)
    folder = checkpoint.save(here, 4, SNAPSHOT)
    copies.push(folder)
    shutil.rmtree(folder)  # older checkpoints are deleted while the copy is made
    copies.close()
    fetched = remote.pull(f"{bucket}/one", there)
    assert fetched == checkpoint.latest_valid(there)
    assert fetched
    assert checkpoint.load(fetched).state == {"step": 4}
    assert torch.equal(checkpoint.load(fetched).moments["a.exp_avg"], torch.ones(3))
    assert remote.pull(f"{bucket}/one", there) is None  # the folder has checkpoints of its own now
    assert [path.name for path in (here / checkpoint.FOLDER).iterdir()] == []


def test_nothing_and_nonsense(bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert remote.pull(f"{bucket}/empty", tmp_path) is None
    strange = {"checkpoint": "step-00000004", "files": ["../../outside"]}
    for record in (strange, {"checkpoint": "../../x", "files": list(checkpoint.FILES)}, []):
        boto3.client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"]).put_object(
            Bucket="runs", Key="odd/latest.json", Body=json.dumps(record).encode()
        )
        with pytest.raises(UserError, match=r"s3://runs/odd/latest.json"):
            remote.pull(f"{bucket}/odd", tmp_path)
    copies = remote.RemoteCopy("s3://nobody/run", tmp_path)
    copies.push(checkpoint.save(tmp_path, 4, SNAPSHOT))
    copies.close()
    assert "step-00000004 is not copied: s3://nobody/run" in caplog.text


def test_a_run_goes_on_in_another_place(
    bucket: str, launch: Callable[..., list[str]], environment: dict[str, str], run: Callable[..., str], tmp_path: Path
) -> None:
    copied = f"train.copy_to={bucket}/run"
    run(launch(tmp_path / "first", copied, "train.steps=4"))
    shutil.rmtree(tmp_path / "first")
    output = run(launch(tmp_path / "second", copied, "train.steps=6"))
    assert "step-00000004" in output
    assert "going on from" in output
    assert "step 6/6" in output
    assert "step 4/6" not in output


def add_tasks(folder: Path) -> None:
    """Put tasks that training does not know before those of an index."""
    index = json.loads((folder / "mtbi_index.json").read_text())
    del index["sums"]
    others = [f"other-{number}" for number in range(50)]
    (folder / "mtbi_index.json").write_text(json.dumps({**index, "tasks": others + index["tasks"]}))
    branches = np.load(folder / "branches.npy")
    branches["task"] += len(others)
    np.save(folder / "branches.npy", branches)


@pytest.mark.parametrize("reads", ["training", "evaluation"])
def test_a_store_that_is_gone_ends_the_run_with_a_checkpoint(
    reads: str,
    bucket: str,
    launch: Callable[..., list[str]],
    run: Callable[..., str],
    environment: dict[str, str],
    shard_folder: Path,
    tmp_path: Path,
) -> None:
    shards = shutil.copytree(shard_folder, tmp_path / "shards")
    if reads == "evaluation":
        add_tasks(shards)
    object_store.upload(shards, sorted(path.name for path in shards.iterdir()), f"{bucket}/shards")
    # A cache below the size of a shard: the store is asked all the time, also for a step's later micro-batches.
    fields = [
        f"data.shards=[{bucket}/shards]" if reads == "training" else f"data.eval_shards=[{bucket}/shards]",
        "train.eval_every_steps=4" if reads == "evaluation" else "data.prefetch=1",
        "data.cache_limit_gb=0.0001",
        "data.retries=2",
        "train.checkpoint_every_steps=1000",
    ]
    command = launch(tmp_path / "run", *fields, "train.steps=1000", "plan.rows_per_step=8", stage=1)
    with faulty_proxy(os.environ["S3_ENDPOINT_URL"]) as (address, faults):
        variables = {**environment, "S3_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "1"}
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith("step 3/"):
                faults.waiting = ["503"] * 100_000
        assert process.wait(timeout=60) == UNAVAILABLE, seen
    assert re.search(r"mtbi: s3://runs/shards/shard.*: 2 attempts failed", seen)
    folder = checkpoint.latest_valid(tmp_path / "run")
    assert folder
    last = [int(step) for step in re.findall(r"^step (\d+)/", seen, re.MULTILINE)][-1]
    assert checkpoint.load(folder).state["step"] == last >= 3
