"""Work of two processes that test_together.py starts. The first argument is the name of a function below."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.distributed import start_distributed
from launcher.ranks import Ranks, find_ranks
from mtbi import files, object_store
from mtbi import recipe as recipes
from mtbi.engine import checkpoint, inputs
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.checkpointing import Checkpointer, Progress
from mtbi.engine.engine import Engine
from mtbi.engine.log import new_counts
from mtbi.engine.solved_start import SolvedStart
from mtbi.model.generate import generate

ZERO3 = str(Path(__file__).parents[2] / "ds_configs" / "zero3.json")


def answers(ranks: Ranks, out: Path) -> None:
    """Under ZeRO-3, prompts and answers of other lengths on each rank; the answers are those of each prompt alone."""
    device = start_distributed(ranks)
    recipe = recipes.load("demo", ["precision=fp32", f"run_dir={out}"])
    engine = Engine(recipe, ZERO3, 1, device, ranks, None)
    engine.model.llm.generation_config.eos_token_id = None  # so that only the limit ends an answer
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    prompts = [
        [torch.tensor([5, 6]), wave[:4000], torch.tensor([7])],
        [torch.tensor([9, 8, 7, 5]), wave, torch.tensor([6] * 9)],
    ]
    together = [generate(engine.model, [prompt], 12, -1)[0] for prompt in prompts]
    own = generate(engine.model, [prompts[ranks.rank]] * (1 + ranks.rank), 3 + 9 * ranks.rank, -1)
    assert own == [together[ranks.rank][: 3 + 9 * ranks.rank]] * (1 + ranks.rank)
    print(f"rank {ranks.rank}: {len(own[0])} tokens", flush=True)


def upload(ranks: Ranks, out: Path) -> None:
    """The first process's last copy takes five seconds."""
    device = start_distributed(ranks)

    class Idle:  # of the engine, closing needs the device alone
        pass

    engine = Idle()
    engine.device = device  # type: ignore[attr-defined]
    activities: list[str] = []
    recipe = recipes.load("demo", [f"run_dir={out}", "train.copy_to=s3://somewhere/run"])
    checkpointer = Checkpointer(recipe, ranks, engine, engine, report_activity=activities.append)  # type: ignore[arg-type]
    began = time.monotonic()
    if checkpointer.copies:
        object_store.upload = lambda *_: time.sleep(2.5)
        checkpointer.copies.push(checkpoint.save(out, 4, Snapshot({}, {}, {"step": 4})), needed=True)
    assert checkpointer.close() == ""
    assert time.monotonic() - began > 4.5, "left before the copy was made"
    assert len(activities) > 3, "nothing was reported to the watchdog"
    print(f"rank {ranks.rank}: left after the copy", flush=True)


def behind(ranks: Ranks, out: Path) -> None:
    """Checkpoints on a slow disk, one of them refused. The process ends while the last one is written."""
    device = start_distributed(ranks)

    class Idle:  # of the engine, the device and a snapshot; of the metrics, the counts and lines
        counts = new_counts()
        lines: list[str] = []  # noqa: RUF012

        def snapshot(self, state: dict[str, Any], keep: bool = True) -> Snapshot:
            return Snapshot({"w": torch.ones(1000)}, {}, state)

        def write_line(self, text: str) -> None:
            self.lines.append(text)

    engine, flush, save = Idle(), files.flush, checkpoint.save
    engine.device = device  # type: ignore[attr-defined]
    recipe = recipes.load("demo", [f"run_dir={out}"])
    checkpointer = Checkpointer(recipe, ranks, engine, engine)  # type: ignore[arg-type]
    progress = Progress(step=2, counts=engine.counts)
    checkpointer.save(progress)
    assert checkpoint.folder_of(out, 2).exists(), "a needed checkpoint is not complete"
    files.flush = lambda path: (time.sleep(0.5), flush(path))  # five files and folders
    began = time.monotonic()
    progress.step = 4
    checkpointer.save(progress, needed=False)
    assert time.monotonic() - began < 1, "training waited for the disk"
    assert not checkpoint.folder_of(out, 4).exists()
    engine.counts["loss_spikes"] += 7  # by a step that is taken while step 4 is written
    progress.step = 6
    checkpointer.save(progress, needed=False)
    assert time.monotonic() - began > 2
    assert checkpoint.load_state(checkpoint.folder_of(out, 4))["counts"]["loss_spikes"] == 0
    checkpointer.complete()
    assert checkpoint.load_state(checkpoint.folder_of(out, 6))["counts"]["loss_spikes"] == 7

    def refuse(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    progress.step, checkpoint.save = 8, refuse
    checkpointer.save(progress, needed=False)
    checkpointer.complete()
    assert engine.counts["failed_checkpoints"] == 1, "another process does not know"
    assert [line for line in engine.lines if "step 8: the checkpoint could not be written" in line] or ranks.rank
    progress.step, checkpoint.save = 10, save
    checkpointer.save(progress, needed=False)
    time.sleep(0.7)
    print(f"rank {ranks.rank}: ended while a checkpoint was written", flush=True)


def solved(ranks: Ranks, out: Path) -> None:
    """The weights of a new run before its first step, as digests. A further argument is a folder of shards."""
    device = start_distributed(ranks)
    recipe = recipes.load("demo", ["precision=fp32", f"run_dir={out}", f"data.shards=[{sys.argv[3]}]", "train.start=solved"])
    data = inputs.open_inputs(recipe)
    digests = {}
    silence = data.chat.tokenizer.encode(recipe.train.start_silence, add_special_tokens=False)
    for name, start in {"random": None, "solved": SolvedStart(recipe, silence, data.shards, data.plan, ranks).run}.items():
        engine = Engine(recipe, ZERO3, 1, device, ranks, None, start=start)
        weights = engine.snapshot({}).trainable["adapter.kind.output.weight"]
        digests[name] = hashlib.sha256(weights.numpy().data).hexdigest()
    print(json.dumps(digests), flush=True)


if __name__ == "__main__":
    {"answers": answers, "behind": behind, "solved": solved, "upload": upload}[sys.argv[1]](find_ranks(), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # as mtbi/train.py ends
