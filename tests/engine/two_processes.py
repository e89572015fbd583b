"""Two processes that differ in several ways. Each prints its results as JSON. test_agreement.py runs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.distributed as dist

from launcher.ranks import Ranks, find_ranks
from mtbi import recipe as recipes
from mtbi.engine import agreement, checkpoint, inputs
from mtbi.engine.checkpoint import Snapshot
from mtbi.errors import UnavailableError, UserError

CPU = torch.device("cpu")
ZERO1 = str(Path(__file__).parents[2] / "ds_configs" / "zero1.json")


def snapshot(step: int) -> Snapshot:
    """Of one parameter."""
    return Snapshot({"w": torch.full((2, 3), float(step))}, {"w.exp_avg": torch.ones(2, 3) / step}, {"step": step})


def stale(error: Exception) -> Any:
    """Work that fails."""
    raise error


def settle_with(ranks: Ranks, failing: dict[int, Exception]) -> Any:
    """The processes of `failing` fail."""
    error = failing.get(ranks.rank)
    return agreement.settle(ranks, agreement.attempt(lambda: stale(error) if error else "read"))


def shared(ranks: Ranks, folder: Path) -> Any:
    """The checkpoint that a process receives after the first process has chosen one of its folder."""

    def choose() -> agreement.Chosen | None:
        newest = checkpoint.newest(folder)
        return (newest, checkpoint.load(newest)) if newest else None

    chosen = agreement.share(ranks, CPU, choose)
    if chosen is None:
        return None
    snapshot, delivery = chosen[1], agreement.Delivery(ranks, CPU)
    assert snapshot.trainable["w"].is_meta == bool(ranks.rank)  # the others hold no copy
    values = [delivery.get("w", snapshot.trainable["w"]), delivery.get("w.exp_avg", snapshot.moments["w.exp_avg"])]
    delivery.compare()
    return [chosen[0].name, snapshot.state, *(value.tolist() for value in values)]


def arrived_otherwise(ranks: Ranks) -> None:
    """A bit of what the second process received is another one."""
    delivery = agreement.Delivery(ranks, CPU)
    delivery.get("w", torch.ones(2) if ranks.rank == 0 else torch.empty(2, device="meta"))
    if ranks.rank:
        delivery.total.update(b"x")
    delivery.compare()


def begun(ranks: Ranks, shards: str, run_dir: Path, *overrides: str) -> Any:
    """The start of a run up to the models."""
    fields = ["plan.row_tokens=256", "plan.window_utterances=20", "data.eval_shards=[]", "precision=fp32"]
    recipe = recipes.load("demo", [f"data.shards={shards}", f"run_dir={run_dir}", *fields, *overrides])
    opened = agreement.attempt(lambda: inputs.open_inputs(recipe))
    start = inputs.agree(recipe, ZERO1, ranks, CPU, opened)
    if start.lease:
        start.lease.release()
    return start.progress.step


def main() -> None:
    """Arguments: a folder of shards, a copy of it, and one to write into."""
    shards, copy, work = sys.argv[1:]
    ranks = find_ranks()
    dist.init_process_group("gloo")
    first, own = ranks.rank == 0, Path(work) / f"node{ranks.rank}"
    if first:
        for step in (4, 8):
            checkpoint.save(own, step, snapshot(step))
        checkpoint.save(Path(work) / "later1", 8, snapshot(8))
        damaged = checkpoint.save(Path(work) / "damaged", 4, snapshot(4))
        (damaged / checkpoint.TRAINABLE).write_bytes(b"x")
    (own / "noise").mkdir(parents=True)
    soundfile.write(own / "noise" / f"{ranks.rank}.wav", np.zeros(160), 16_000)
    noise = ["augment.noise=[noise]", "augment.noise_probability=1"]
    os.chdir(own)  # each has its own folder `noise`
    refused = OSError(116, "Stale file handle", "/data/branches.npy")
    mine = [shards, copy] if first else [copy, shards]
    ways: dict[str, Callable[[], Any]] = {
        "all read": lambda: settle_with(ranks, {}),
        "one cannot read": lambda: settle_with(ranks, {1: refused}),
        "the store is away for one": lambda: settle_with(ranks, {1: UnavailableError("s3://b: away")}),
        "all make the same mistake": lambda: settle_with(ranks, dict.fromkeys((0, 1), UserError("data.shards is empty"))),
        "equal facts": lambda: agreement.compare(ranks, {"recipe": {"seed": 1}, "data": {"words": "x" * 100}}),
        "other facts": lambda: agreement.compare(ranks, {"recipe": {"seed": ranks.rank}}),
        "other long facts": lambda: agreement.compare(ranks, {"data": {"words": f"{ranks.rank}" * 100}}),
        "a folder on each node": lambda: shared(ranks, own),
        "other values arrived": lambda: arrived_otherwise(ranks),
        "no checkpoint": lambda: shared(ranks, Path(work) / "none"),
        "a damaged checkpoint": lambda: shared(ranks, Path(work) / "damaged"),
        "equal runs": lambda: begun(ranks, f"[{shards}]", own.with_name("run")),
        "equal bytes in other places": lambda: begun(ranks, f"[{mine[0]}]", own.with_name("run")),
        "another plan": lambda: begun(ranks, f"[{shards}]", own.with_name("run"), f"plan.row_tokens={256 + 64 * ranks.rank}"),
        "shards that one does not see": lambda: begun(ranks, f"[{shards if first else '/nowhere'}]", own.with_name("run")),
        "shards twice on one": lambda: begun(ranks, f"[{shards}]" if first else f"[{shards},{copy}]", own.with_name("run")),
        "other recordings of noise": lambda: begun(ranks, f"[{shards}]", own.with_name("run"), *noise),
        "a later checkpoint on another node": lambda: begun(ranks, f"[{shards}]", Path(work) / f"later{ranks.rank}"),
        "a folder that cannot be written": lambda: begun(ranks, f"[{shards}]", Path("/proc/run")),
    }
    met: dict[str, Any] = {}
    for name, way in ways.items():
        try:
            met[name] = way()
        except UserError as error:
            met[name] = f"{type(error).__name__}: {error}"
    dist.barrier()
    print(json.dumps(met), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
