"""`sbatch slurm/train.sh` on a real Slurm of two nodes: preempted, killed, hung, and a node lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from servers.slurm import NODES, Cluster, processes_with, rank_process, slurm_cluster

from launcher.submit import build_parser, render
from mtbi.answers.store import AnswerStore
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.engine import checkpoint
from mtbi.shards.read import Shards

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "train.steps=40", "train.log_every_steps=1", "train.eval_every_steps=0", "train.checkpoint_every_steps=4",
    "train.warmup_steps=2", "train.start_utterances=16",
    "plan.row_tokens=256", "plan.rows_per_step=2", "plan.window_utterances=20", "precision=fp32", "data.eval_shards=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="mtbi-slurm-"))  # sockets need a short path
    with slurm_cluster(folder / "c") as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def submit(cluster: Cluster, shard_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Submit a run, one process on each of so many nodes; returns the job's number."""

    def call(run_dir: Path, *overrides: str, nodes: int = 2, **environment: str) -> str:
        # The nodes share one address here.
        variables = {
            "MTBI_VENV": sys.prefix,
            "MTBI_LOGS": str(tmp_path / "logs"),
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        options = [f"--nodes={nodes}", "--ntasks-per-node=1", f"--output={tmp_path}/%j.out", "slurm/train.sh", *SMALL]
        fields = [f"run_dir={run_dir}", f"data.shards=[{shard_folder}]", *overrides]
        return cluster.submit(*options, *fields, cwd=REPOSITORY, **variables, **environment)

    return call


def wait_for_step(cluster: Cluster, job: str, output: Path, step: int, seconds: float = 120) -> None:
    """Until the log shows a step at or after `step`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        cluster.hasten(job)
        text = output.read_text() if output.exists() else ""
        if any(int(number) >= step for number in re.findall(r"^step (\d+)/", text, re.MULTILINE)):
            return
        time.sleep(0.5)
    pytest.fail(f"step {step} was not reached:\n{output.read_text() if output.exists() else 'no output'}")


def send(job: str, rank: int, number: int) -> None:
    """A signal to a rank's process."""
    pid = rank_process(job, rank)
    assert pid
    os.kill(pid, number)


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint.latest_valid(run_dir)
    assert folder
    assert checkpoint.load(folder).state["step"] == 40
    return checkpoint.load_trainable(folder)


@pytest.mark.slow
def test_a_bad_night_leaves_no_trace_in_the_weights(cluster: Cluster, submit: Callable[..., str], tmp_path: Path) -> None:
    quiet = submit(tmp_path / "quiet")
    record = cluster.wait(quiet)
    assert record["JobState"] == "COMPLETED", (tmp_path / f"{quiet}.out").read_text()

    job = submit(tmp_path / "bad")
    output = tmp_path / f"{job}.out"
    wait_for_step(cluster, job, output, 3)
    cluster.call("scancel", "--signal=USR2", job)  # as before the time limit, or a preemption
    wait_for_step(cluster, job, output, 13)
    send(job, 1, signal.SIGKILL)
    wait_for_step(cluster, job, output, 23)
    cluster.kill("node2")  # its processes too
    time.sleep(2)
    cluster.start("node2")
    wait_for_step(cluster, job, output, 33)
    cluster.kill("slurmctld")  # the run needs no controller
    time.sleep(1)
    cluster.start("slurmctld")
    record = cluster.wait(job)
    text = output.read_text()
    assert record["JobState"] == "COMPLETED", text
    assert int(record["Restarts"]) == 3, text
    assert "as asked" in text
    assert "task 1 on node2 failed first" in text
    starts = [json.loads(line) for line in (tmp_path / "bad" / "starts.jsonl").read_text().splitlines()]
    assert [start["from"] is None for start in starts] == [True, False, False, False]
    torch.testing.assert_close(final_weights(tmp_path / "bad"), final_weights(tmp_path / "quiet"), rtol=0, atol=0)
    assert not processes_with(f"SLURM_JOB_ID={job}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])  # the first one holds the notes of all
def test_a_hung_process_is_named_and_the_job_starts_again(
    cluster: Cluster, submit: Callable[..., str], tmp_path: Path, rank: int
) -> None:
    job = submit(tmp_path / "run", "train.hang_seconds=20")
    output = tmp_path / f"{job}.out"
    wait_for_step(cluster, job, output, 3)
    send(job, rank, signal.SIGSTOP)
    record = cluster.wait(job)
    text = output.read_text()
    assert record["JobState"] == "COMPLETED", text
    assert int(record["Restarts"]) == 1
    logs = "".join(path.read_text() for path in (tmp_path / "logs").rglob("rank-*.log"))
    assert f"watchdog: no sign of life from process {rank}" in logs


@pytest.mark.slow
def test_a_mistake_is_not_tried_again_and_a_failing_job_not_for_ever(
    cluster: Cluster, submit: Callable[..., str], tmp_path: Path
) -> None:
    mistaken = submit(tmp_path / "mistaken", "data.shards=[/nowhere]")
    # Its first checkpoint never comes, because the run ends at once each time.
    failing = submit(tmp_path / "failing", "train.hang_seconds=0.01", MTBI_RETRIES="1")
    record = cluster.wait(mistaken)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "2:0", "0")
    assert "no shards there" in (tmp_path / f"{mistaken}.out").read_text()
    stale = submit(tmp_path / "stale", RANK="0", WORLD_SIZE="1")  # either process may end first, and Slurm ends the other
    assert cluster.wait(stale)["ExitCode"] == "2:0"
    assert "RANK=0 and WORLD_SIZE=1 are set" in (tmp_path / f"{stale}.out").read_text()
    record = cluster.wait(failing)
    assert (record["JobState"], record["Restarts"]) == ("FAILED", "1"), (tmp_path / f"{failing}.out").read_text()
    assert "giving up (MTBI_RETRIES)" in (tmp_path / f"{failing}.out").read_text()


@pytest.mark.slow
def test_a_node_that_fails_twice_is_left(cluster: Cluster, shard_folder: Path, tmp_path: Path) -> None:
    fields = [
        *SMALL,
        "train.steps=16",
        "train.checkpoint_every_steps=100",
        f"run_dir={tmp_path}/run",
        f"data.shards=[{shard_folder}]",
    ]
    options = build_parser().parse_args(["submit", "demo", *fields, "--gpus-per-node", "0", "--venv", sys.prefix])
    script = tmp_path / "whole.sh"
    script.write_text(render(options, "demo"))
    variables = {"MTBI_LOGS": str(tmp_path / "logs"), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    job = cluster.submit(f"--output={tmp_path}/out", str(script), cwd=REPOSITORY, **variables)
    output = tmp_path / "out"
    # Before its first step: a start killed while it ends has its last checkpoint, and the next one has nothing to do.
    killed: list[int] = []
    deadline = time.monotonic() + 240
    while len(killed) < 2:
        assert time.monotonic() < deadline, f"{cluster.job(job)}\n{cluster.logs()}"
        cluster.hasten(job)
        if (pid := rank_process(job, 0)) and pid not in killed:
            failing = cluster.job(job)["NodeList"]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.2)
    cluster.wait(job)
    found = re.search(rf"{failing} failed twice, going on without it as job (\d+)", output.read_text())
    assert found, output.read_text()
    record = cluster.wait(found[1])
    assert record["JobState"] == "COMPLETED", [path.read_text() for path in REPOSITORY.glob(f"slurm-*-{found[1]}.out")]
    assert record["NodeList"] == ({*NODES} - {failing}).pop()
    for path in REPOSITORY.glob(f"slurm-*-{found[1]}.out"):
        path.unlink()


@pytest.mark.slow
def test_array_jobs_align_and_answer_a_corpus(
    cluster: Cluster, corpus: tuple[Path, list[Utterance]], answers: Path, tmp_path: Path
) -> None:
    plain = [replace(utterance, audio=str(corpus[0] / utterance.audio), words=None) for utterance in corpus[1]]
    write_manifest(tmp_path / "manifest.jsonl", plain)
    options = ["--array=1-3", f"--output={tmp_path}/%x-%a.out"]
    variables = {"MTBI_VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    aligned, out = tmp_path / "aligned.jsonl", tmp_path / "answers"
    align = cluster.submit(*options, "slurm/align.sh", f"{tmp_path}/manifest.jsonl", str(aligned), cwd=REPOSITORY, **variables)
    fields = ["behaviour.library=[digits]", "behaviour.per_utterance=5", "behaviour.top_k=4"]
    command = [*options, f"--dependency=afterok:{align}", "slurm/behave.sh", str(aligned), str(out), *fields]
    behave = cluster.submit(*command, cwd=REPOSITORY, **variables)
    command = [
        *options,
        f"--dependency=afterok:{behave}",
        "slurm/data.sh",
        "shard",
        str(aligned),
        str(out),
        f"{tmp_path}/shards",
    ]
    shard = cluster.submit(*command, *fields, cwd=REPOSITORY, **variables)
    for job in (align, behave, shard):
        for task in (1, 2, 3):
            record = cluster.wait(f"{job}_{task}")
            assert record["JobState"] == "COMPLETED", [path.read_text() for path in tmp_path.glob("*.out")]
    assert [utterance.id for utterance in read_manifest(aligned)] == [utterance.id for utterance in plain]
    assert sum(utterance.words is not None for utterance in read_manifest(aligned)) > 50
    whole, parts = AnswerStore(answers), AnswerStore(out)
    for utterance in plain:
        assert [one.answer for one in parts.get(utterance.id)] == [one.answer for one in whole.get(utterance.id)]
    shards = Shards(f"{tmp_path}/shards")
    assert [shards[number].id for number in range(len(shards))] == [utterance.id for utterance in plain]
