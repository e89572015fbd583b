"""The disturbances of `tools/disturb.py`, and a runner that forks small runs of two processes."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher import ranks

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 5
STOP_STEP = 3  #: after which a run is killed or stopped
TIMEOUT_SECONDS = 150
PRELOAD = [
    "torch", "deepspeed", "deepspeed.runtime.zero.muon.original_muon", "peft", "streaming", "tensorboard", "transformers",
    "mtbi.train", "mtbi.engine.engine", "mtbi.engine.log", "mtbi.engine.inputs", "mtbi.engine.zero3",
]  # fmt: skip
FIELDS = [
    f"train.steps={STEPS}", "train.log_every_steps=1", "train.eval_every_steps=0", "train.checkpoint_every_steps=2",
    "train.warmup_steps=2", "train.hang_seconds=60", "train.keep_last=3", "plan.row_tokens=192", "plan.rows_per_step=4",
    "plan.window_utterances=20", "precision=fp32", "data.eval_shards=[]",
]  # fmt: skip
#: Fields that change between two starts, or differ between ranks, each with a value that disturb.DRAWN does not have.
CHANGED = {
    "seed": "7", "interleave.share": "0.25", "plan.tasks_per_utterance": "2", "plan.rows_per_step": "2",
    "plan.row_tokens": "320", "plan.window_utterances": "30", "loss.kl": "0.7", "loss.ce": "0.3",
    "train.learning_rate": "1e-3", "train.grad_clip": "0.1",
    "train.beta2": "0.9", "train.weight_decay": "0.3", "train.warmup_steps": "4", "plan.rows_per_micro_batch": "4",
    "data.workers": "2", "data.prefetch": "1", "model.adapter.stack": "2", "train.log_every_steps": "2",
}  # fmt: skip
FAILURES = (errno.ESTALE, errno.EIO, errno.EACCES, errno.ENOENT, errno.ENOSPC)


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


class Runner:
    """Starts runs by forking. Like a launcher, it ends all processes once one has failed."""

    def __init__(self, shards: Path) -> None:
        self.shards = shards
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


#: Takes the runner, an undisturbed start and a random generator; returns a description of the disturbance and the exit status.
Disturbance = Callable[[Runner, Start, random.Random], tuple[str, int]]


def run_to_a_checkpoint(runner: Runner, start: Start) -> None:
    """Run until both ranks were asked to stop, which leaves a checkpoint."""
    runner.run(replace(start, signals={0: signal.SIGUSR2, 1: signal.SIGUSR2}))


def failing_files(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One rank cannot open some files of the run's folder or of the shards, once or for good."""
    number, folder = rng.randrange(2), rng.choice([start.run_dir, runner.shards])
    if rng.random() < 0.5:  # so that there is a checkpoint to read
        run_to_a_checkpoint(runner, start)
    rank = Rank([], str(folder), rng.choice(FAILURES), rng.choice([0, 1, 2, 4, 8, 16, 32]), rng.choice([1, 2, 1_000_000]))
    status = runner.run(replace(start, ranks={number: rank}))
    name = "run_dir" if folder == start.run_dir else "shards"
    return f"rank {number}: {errno.errorcode[rank.failure]} in {name} after {rank.first} opens, {rank.times} times", status


def stale_folder(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One rank sees an earlier state of the run's folder, or an empty folder."""
    run_to_a_checkpoint(runner, start)
    number, stale = rng.randrange(2), start.run_dir.with_name(f"{start.run_dir.name}-stale")
    shutil.rmtree(stale, ignore_errors=True)
    shutil.copytree(start.run_dir, stale)
    for folder in sorted((stale / "checkpoints").glob("step-*"))[rng.choice([0, 1]) :]:
        shutil.rmtree(folder)
    rank = Rank([f"run_dir={stale}"])
    status = runner.run(replace(start, ranks={number: rank}))
    return f"rank {number} sees {len(list((stale / 'checkpoints').glob('step-*')))} checkpoints", status


def killed_rank(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One rank, or both, is killed or asked to stop."""
    kind = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2])
    numbers = rng.choice([[0], [1], [0, 1]])
    status = runner.run(replace(start, signals=dict.fromkeys(numbers, kind)))
    return f"{kind.name} to ranks {numbers}", status


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file: flip a bit, cut its end off, or delete it; returns a description."""
    data, kind = bytearray(path.read_bytes()), rng.choice(["flipped", "truncated", "deleted"])
    if kind == "deleted" or not data:
        path.unlink()
        return f"{path.name} deleted"
    if kind == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(data[: rng.randrange(len(data))])
    return f"{path.name} {kind}"


def damaged_shards(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One file of the shards is damaged, for both ranks or for one."""
    copy = start.run_dir.with_name(f"{start.run_dir.name}-shards")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(runner.shards, copy)
    damaged = damage(rng.choice(sorted(copy.iterdir())), rng)
    numbers = rng.choice([[0], [1], [0, 1]])
    ranks = {number: Rank([f"data.shards=[{copy}]"]) for number in numbers}
    return f"{damaged}, ranks {numbers}", runner.run(replace(start, ranks=ranks))


def damaged_checkpoint(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One file of the newest checkpoint is damaged."""
    run_to_a_checkpoint(runner, start)
    folders = sorted((start.run_dir / "checkpoints").glob("step-*"))
    damaged = damage(rng.choice(sorted(folders[-1].iterdir())), rng) if folders else "no checkpoint"
    return damaged, runner.run(start)


def field_between_ranks(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One rank has another value of one field."""
    name, number = rng.choice(sorted(CHANGED)), rng.randrange(2)
    if rng.random() < 0.5:
        run_to_a_checkpoint(runner, start)
    ranks = {number: Rank([f"{name}={CHANGED[name]}"])}
    return f"rank {number}: {name}={CHANGED[name]}", runner.run(replace(start, ranks=ranks))


def field_between_starts(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """A stopped run is started again with another value of one field."""
    run_to_a_checkpoint(runner, start)
    name = rng.choice(sorted(CHANGED))
    changed = [*start.fields, f"{name}={CHANGED[name]}"]
    return f"{name}={CHANGED[name]}", runner.run(replace(start, fields=changed))


def second_job(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """The same run is started twice at once, in one folder."""
    first = runner.launch(start)
    time.sleep(rng.uniform(0, 4))
    status = runner.run(start)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(process.exitcode is None for process in first) and time.monotonic() < deadline:
        if any(process.exitcode for process in first):
            time.sleep(0.5)
            break
        time.sleep(0.05)
    statuses = [process.exitcode for process in first]
    end(first)
    return f"statuses {statuses} and {status}", status if all(first_status == 0 for first_status in statuses) else 1


DISTURBANCES: dict[str, Disturbance] = {
    "files fail": failing_files,
    "folder is stale": stale_folder,
    "rank is killed": killed_rank,
    "shards are damaged": damaged_shards,
    "checkpoint is damaged": damaged_checkpoint,
    "field differs between ranks": field_between_ranks,
    "field changes between starts": field_between_starts,
    "second job": second_job,
}
