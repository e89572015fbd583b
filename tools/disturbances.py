"""The disturbances of `tools/disturb.py`. Each of them disturbs one start of a small run."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from small_runs import FIELDS, STEPS, STORED_SHARDS, TIMEOUT_SECONDS, Rank, Runner, Start, end, run_to_a_checkpoint
from streaming import MDSWriter

from mtbi import recipe as recipes
from mtbi.audio import codec
from mtbi.batches.plan import Plan
from mtbi.model.frame_counts import FrameGeometry
from mtbi.shards.read import Shards
from mtbi.shards.record import COLUMNS

#: Fields that change between two starts, or differ between ranks, each with a value that disturb.DRAWN does not have.
CHANGED = {
    "seed": "7", "interleave.share": "0.25", "plan.tasks_per_utterance": "2", "plan.rows_per_step": "2",
    "plan.row_tokens": "320", "plan.window_utterances": "30", "loss.kl": "0.7", "loss.ce": "0.3",
    "train.learning_rate": "1e-3", "train.grad_clip": "0.1",
    "train.beta2": "0.9", "train.weight_decay": "0.3", "train.warmup_steps": "4", "plan.rows_per_micro_batch": "4",
    "data.workers": "2", "data.prefetch": "1", "model.adapter.stack": "2", "train.log_every_steps": "2",
}  # fmt: skip
FAILURES = (errno.ESTALE, errno.EIO, errno.EACCES, errno.ENOENT, errno.ENOSPC)

#: Takes the runner, an undisturbed start and a random generator; returns a description of the disturbance and the exit status.
Disturbance = Callable[[Runner, Start, random.Random], tuple[str, int]]


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


def copy_of_shards(runner: Runner, start: Start) -> Path:
    """A new copy of the shards beside a run's folder."""
    copy = start.run_dir.with_name(f"{start.run_dir.name}-shards")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(runner.shards, copy)
    return copy


def damaged_shards(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One file of the shards is damaged, for both ranks or for one."""
    copy = copy_of_shards(runner, start)
    damaged = damage(rng.choice(sorted(copy.iterdir())), rng)
    numbers = rng.choice([[0], [1], [0, 1]])
    ranks = {number: Rank([f"data.shards=[{copy}]"]) for number in numbers}
    return f"{damaged}, ranks {numbers}", runner.run(replace(start, ranks=ranks))


def odd_record(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """One utterance of the shards is odd although every checksum is right, for both ranks or for one."""
    copy = copy_of_shards(runner, start)
    oddity, number = rng.choice(sorted(ODDITIES)), rng.choice(trained_utterances(copy, start))
    replace_record(copy, number, ODDITIES[oddity])
    numbers = rng.choice([[0], [1], [0, 1]])
    ranks = {number: Rank([f"data.shards=[{copy}]"]) for number in numbers}
    return f"utterance {number} with {oddity}, ranks {numbers}", runner.run(replace(start, ranks=ranks))


def trained_utterances(shards: Path, start: Start) -> list[int]:
    """The numbers of the utterances that the run trains on."""
    recipe = recipes.load("demo", [*FIELDS, *start.fields])
    steps = Plan(Shards(str(shards)).index, recipe, FrameGeometry.from_config(recipe.model)).steps()
    return sorted({group.utterance for step in islice(steps, STEPS) for row in step.rows for group in row.groups})


def without_last_token(columns: dict[str, Any]) -> dict[str, Any]:
    """The record whose last answer is one token shorter than the index says."""
    tensors = load_tensors(columns["tensors"])
    for name in ("answer_ids", "topk_ids", "topk_logprobs"):
        tensors[name] = tensors[name][:-1]
    tensors["answer_ends"] = np.minimum(tensors["answer_ends"], len(tensors["answer_ids"]))
    return columns | {"tensors": save_tensors(tensors)}


def half_of_the_audio(columns: dict[str, Any]) -> dict[str, Any]:
    """The record with the first half of its recording."""
    wave = codec.decode(columns["audio"])
    return columns | {"audio": codec.encode(wave[: len(wave) // 2])}


#: What makes a record odd, and the odd record for a right one.
ODDITIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no audio": lambda columns: columns | {"audio": b""},
    "half of its audio": lambda columns: (
        columns | {"audio": codec.encode(np.array_split(codec.decode(columns["audio"]), 2)[0])}
    ),
    "audio that is cut off": lambda columns: columns | {"audio": columns["audio"][: len(columns["audio"]) // 2]},
    "an answer less": lambda columns: columns | {"answers": columns["answers"][1:]},
    "an answer token less": without_last_token,
}


def replace_record(folder: Path, number: int, make_odd: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the shard of utterance `number` again with an odd record in its place, and with right checksums."""
    shards, index = Shards(str(folder)), json.loads((folder / "index.json").read_text())
    ends = np.cumsum(shards.index.shard_sizes)
    shard = int(np.searchsorted(ends, number, "right"))
    scratch = folder.with_name(f"{folder.name}-scratch")
    with MDSWriter(out=str(scratch), columns=COLUMNS, hashes=["xxh64"], size_limit=None) as writer:
        for other in range(ends[shard] - shards.index.shard_sizes[shard], ends[shard]):
            columns = shards.columns(other)
            writer.write(make_odd(columns) if other == number else columns)
    [entry] = json.loads((scratch / "index.json").read_text())["shards"]
    name = index["shards"][shard]["raw_data"]["basename"]
    shutil.move(scratch / entry["raw_data"]["basename"], folder / name)
    entry["raw_data"]["basename"] = name
    index["shards"][shard] = entry
    (folder / "index.json").write_text(json.dumps(index))
    shutil.rmtree(scratch)


def refusing_store(runner: Runner, start: Start, rng: random.Random) -> tuple[str, int]:
    """The object store of the shards answers some requests with a fault, once or for good. Unreadable data may be skipped."""
    fault, first = rng.choice(["500", "503", "dropped", "truncated", "expired"]), rng.choice([0, 2, 4, 5, 6, 8, 12])
    times, unreadable = rng.choice([1, 2, 5, 1000]), rng.choice(["stop", "skip"])
    cache = start.run_dir.with_name(f"{start.run_dir.name}-cache")
    fields = [f"data.shards=[{STORED_SHARDS}]", f"data.cache_dir={cache}", f"data.unreadable={unreadable}", "data.retries=1"]
    runner.faults.waiting = [""] * first + [fault] * times
    status = runner.run(replace(start, ranks={number: Rank(fields) for number in range(2)}))
    runner.faults.waiting = []
    return f"{fault} after {first} requests, {times} times, unreadable={unreadable}", status


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
    "record is odd": odd_record,
    "store refuses": refusing_store,
    "checkpoint is damaged": damaged_checkpoint,
    "field differs between ranks": field_between_ranks,
    "field changes between starts": field_between_starts,
    "second job": second_job,
}
