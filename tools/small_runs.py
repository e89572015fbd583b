"""Small runs of two processes for `tools/disturb.py`. They are forked, so that a start takes seconds."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from servers.faulty_proxy import Faults, faulty_proxy
from servers.swift import swift_server

from launcher import ranks

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 5
STOP_STEP = 3  #: after which a run is killed or stopped
TIMEOUT_SECONDS = 150
STORED_SHARDS = "s3://disturb/shards"
PRELOAD = [
    "torch", "deepspeed", "deepspeed.runtime.zero.muon.original_muon", "peft", "streaming", "tensorboard", "transformers",
    "mtbi.train", "mtbi.engine.engine", "mtbi.engine.log", "mtbi.engine.inputs", "mtbi.engine.zero3",
]  # fmt: skip
FIELDS = [
    f"train.steps={STEPS}", "train.log_every_steps=1", "train.eval_every_steps=0", "train.checkpoint_every_steps=2",
    "train.warmup_steps=2", "train.start_utterances=16", "train.hang_seconds=60", "train.keep_last=3",
    "plan.row_tokens=192", "plan.rows_per_step=4", "plan.window_utterances=20", "precision=fp32", "data.eval_shards=[]",
]  # fmt: skip


@dataclass
class Rank:
    """The disturbance of one process of a start."""

    fields: list[str] = field(default_factory=list)  #: overrides of this rank alone
    failing: str = ""  #: folder below which files cannot be opened
    failure: int = 0  #: errno of such an open
    first: int = 0  #: opens below the folder that succeed before the first failure
    times: int = 0  #: failures before opens succeed again


@dataclass
class Start:
    """One start of a run on two processes."""

    run_dir: Path
    fields: list[str]
    stage: int
    ranks: dict[int, Rank] = field(default_factory=dict)
    signals: dict[int, int] = field(default_factory=dict)  #: signal by rank, sent once rank 0 has logged STOP_STEP


def failing_open(rank: Rank) -> Callable[..., Any]:
    """An `open` that fails as `rank` says."""
    real_open, count = io.open, 0

    def opened(file: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        if isinstance(file, str | os.PathLike) and os.fspath(file).startswith(rank.failing):
            count += 1
            if rank.first < count <= rank.first + rank.times:
                raise OSError(rank.failure, os.strerror(rank.failure), os.fspath(file))
        return real_open(file, *arguments, **named)

    return opened


def be_rank(number: int, port: int, command: list[str], rank: Rank, log: str) -> None:
    """Train as rank `number` of two. Runs in a forked process."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    from mtbi import train

    sys.argv = ["mtbi/train.py", *command, *rank.fields]
    if rank.times:
        builtins.open = io.open = failing_open(rank)
    try:
        status = train.main()
    except SystemExit as error:
        status = int(error.code or 0) if not isinstance(error.code, str) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def faulty_store(shards: Path) -> Iterator[Faults]:
    """Run an S3 server that holds the shards at STORED_SHARDS; yields the faults of the next requests.

    The variables that lead clients to it are set in this process, and so in those that it forks.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtbi-disturb-"))
        environment = stack.enter_context(swift_server(Path(folder)))
        address, faults = stack.enter_context(faulty_proxy(environment["S3_ENDPOINT_URL"]))
        # The client's own attempts would hide the faults.
        os.environ.update(environment, S3_ENDPOINT_URL=address, AWS_MAX_ATTEMPTS="1")
        client = boto3.client("s3", endpoint_url=address)
        bucket, _, prefix = STORED_SHARDS.removeprefix("s3://").partition("/")
        client.create_bucket(Bucket=bucket)
        for file in sorted(shards.iterdir()):
            client.upload_file(str(file), bucket, f"{prefix}/{file.name}")
        yield faults


class Runner:
    """Starts runs by forking. Like a launcher, it ends all processes once one has failed."""

    def __init__(self, shards: Path, faults: Faults) -> None:
        self.shards = shards
        self.faults = faults  #: of the store that also holds the shards
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def launch(self, start: Start) -> list[multiprocessing.process.BaseProcess]:
        """Start the two processes of a run."""
        start.run_dir.mkdir(parents=True, exist_ok=True)
        config = str(REPOSITORY / "ds_configs" / f"zero{start.stage}.json")
        folders = [f"run_dir={start.run_dir}", f"data.shards=[{self.shards}]"]
        command = ["--deepspeed", config, *FIELDS, *folders, *start.fields]
        port, processes = ranks.free_port(), []
        for number in range(2):
            rank = start.ranks.get(number, Rank())
            arguments = (number, port, command, rank, str(start.run_dir / f"rank-{number}.log"))
            process = self.context.Process(target=be_rank, args=arguments, daemon=True)
            process.start()
            processes.append(process)
        return processes

    def run(self, start: Start) -> int:
        """Start a run and wait for it; returns 0, or the status of the first process that failed (124 = it took too long)."""
        before = self.steps(start.run_dir)
        processes, signals = self.launch(start), dict(start.signals)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if signals and len(self.steps(start.run_dir)) >= len(before) + 1 and self.steps(start.run_dir)[-1] >= STOP_STEP:
                for number, kind in signals.items():
                    os.kill(processes[number].pid or 0, kind)
                signals.clear()
            statuses = [process.exitcode for process in processes]
            if all(status == 0 for status in statuses):
                return 0
            if failed := [status for status in statuses if status]:
                time.sleep(0.5)  # the other process may report a reason too
                end(processes)
                return failed[0]
            time.sleep(0.05)
        end(processes)
        return 124

    def steps(self, run_dir: Path) -> list[int]:
        """The steps that rank 0 has logged, over all starts."""
        log = run_dir / "rank-0.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return [int(step) for step in re.findall(r"^step (\d+)/", text, re.MULTILINE)]


def end(processes: list[multiprocessing.process.BaseProcess]) -> None:
    """Kill the processes of a start that still run."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def result(run_dir: Path) -> str:
    """A digest of the run's final weights, moments and position; "" without a final checkpoint."""
    folder = run_dir / "checkpoints" / f"step-{STEPS:08d}"
    if not (folder / "state.json").exists():
        return ""
    state = json.loads((folder / "state.json").read_text())
    facts = [
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("trainable.safetensors", "optimizer.safetensors")
    ]
    return hashlib.sha256(json.dumps([*facts, state["step"], state["position"]]).encode()).hexdigest()


def run_to_a_checkpoint(runner: Runner, start: Start) -> None:
    """Run until both ranks were asked to stop, which leaves a checkpoint."""
    runner.run(replace(start, signals={0: signal.SIGUSR2, 1: signal.SIGUSR2}))
