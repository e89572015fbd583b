"""Tests that no disturbed run ends with status 0 and a wrong result.

    .venv/bin/python tools/disturb.py OUT --shards runs/demo/data/train/shards --cases 500 --seed 1

Each case has a random recipe, an undisturbed run on two processes, and a run with one disturbance: a file system that fails or
is stale on one rank, an object store that refuses, a killed rank, an odd utterance, a damaged shard or checkpoint, a field that
differs between ranks or between two starts, or a second job in the same folder. Then the disturbance ends. The run is started
again until it ends with status 0, or has failed three more times. The outcome is one of

- `equal`: the run ended with status 0. Weights, moments and position are those of the undisturbed run to the last bit;
- `refused`: no start ended with status 0;
- `reported`: the result differs because a field was changed that may change, and the log names the field;
- `silent`: the run ended with status 0 and another result. A single one fails the experiment.

Processes are forked from one that has imported everything, so a case takes seconds. OUT/disturb.json is written after every
case. Started again, the experiment goes on from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from disturbances import DISTURBANCES
from small_runs import Runner, Start, faulty_store, result

from launcher.distributed import build_collectives
from mtbi import files

RESTARTS = 3
#: Fields that are drawn for each case, and their possible values.
DRAWN: dict[str, Sequence[str]] = {
    "seed": ("1", "2", "3"),
    "interleave.share": ("0", "0.5", "1"),
    "interleave.cut": ("slice", "encode"),
    "plan.rows_per_micro_batch": ("1", "2"),
    "plan.tasks_per_utterance": ("1", "3"),
    "loss.kl": ("0.0", "1.0"),
    "loss.ce": ("0.5", "1.0"),
    "model.adapter.kind": ("mlp", "swiglu"),
    "model.llm_lora.rank": ("0", "4"),
    "data.workers": ("1", "3"),
}


@dataclass
class Case:
    """A case, and its outcome."""

    number: int
    disturbance: str
    detail: str
    fields: list[str]
    stage: int
    statuses: list[int]  #: exit statuses of the disturbed start, then of the starts after the disturbance
    outcome: str
    seconds: float


def draw_fields(rng: random.Random) -> tuple[list[str], int]:
    """A recipe's overrides, and a ZeRO stage."""
    names = rng.sample(sorted(DRAWN), 3)
    return sorted(f"{name}={rng.choice(DRAWN[name])}" for name in names), rng.choice([1, 3])


def reported(run_dir: Path, detail: str) -> bool:
    """Whether the log reports the field that was changed between two starts."""
    name = detail.partition("=")[0]
    return any("changed" in line and name in line for line in (run_dir / "rank-0.log").read_text(errors="replace").splitlines())


def try_case(number: int, runner: Runner, out: Path, seed: int, recipes: list[tuple[list[str], int]]) -> Case:
    """Run one case. It depends on the seed and its number alone."""
    rng, began = random.Random(f"{seed} {number}"), time.monotonic()
    fields, stage = recipes[number // len(DISTURBANCES) % len(recipes)]
    name = list(DISTURBANCES)[number % len(DISTURBANCES)]
    quiet = out / ("quiet-" + hashlib.sha256(f"{fields} {stage}".encode()).hexdigest()[:8])
    if not result(quiet):
        shutil.rmtree(quiet, ignore_errors=True)
        if status := runner.run(Start(quiet, fields, stage)):
            raise RuntimeError(f"the undisturbed run {quiet} ended with {status}: {tail(quiet)}")
    run_dir = out / f"case-{number}"
    for old in out.glob(f"case-{number}*"):
        shutil.rmtree(old)
    start = Start(run_dir, fields, stage)
    detail, status = DISTURBANCES[name](runner, start, rng)
    statuses = [status]
    outcome = "equal" if status == 0 else ""
    if (
        status == 0
        and result(run_dir) != result(quiet)
        and name == "field changes between starts"
        and reported(run_dir, detail)
    ):
        outcome = "reported"
    while not outcome and len(statuses) <= RESTARTS:
        statuses.append(runner.run(start))
        outcome = "equal" if statuses[-1] == 0 else ""
    if outcome == "equal" and result(run_dir) != result(quiet):
        outcome = "silent"
    case = Case(number, name, detail, fields, stage, statuses, outcome or "refused", round(time.monotonic() - began, 1))
    if case.outcome != "silent":
        for old in out.glob(f"case-{number}*"):
            shutil.rmtree(old)
    return case


def tail(run_dir: Path) -> str:
    """The ends of the logs of both ranks."""
    logs = [run_dir / f"rank-{number}.log" for number in range(2)]
    return "\n".join(log.read_text(errors="replace")[-1500:] for log in logs if log.exists())


def experiment(out: Path, shards: Path, count: int, seed: int, recipe_count: int) -> dict[str, Any]:
    """Run all cases that are not done yet; returns the content of disturb.json.

    There are `recipe_count` recipes, whose undisturbed runs are made once.
    """
    rng = random.Random(seed)
    recipes = [draw_fields(rng) for _ in range(recipe_count)]
    path = out / "disturb.json"
    cases = [Case(**case) for case in json.loads(path.read_text())["cases"]] if path.exists() else []
    record: dict[str, Any] = {}
    with faulty_store(shards) as faults:
        runner = Runner(shards, faults)
        for number in range(len(cases), count):
            cases.append(try_case(number, runner, out, seed, recipes))
            case = cases[-1]
            print(f"{number}: {case.disturbance} ({case.detail}): {case.statuses} {case.outcome}, {case.seconds} s", flush=True)
            outcomes = Counter(case.outcome for case in cases)
            by_kind = {name: dict(Counter(c.outcome for c in cases if c.disturbance == name)) for name in DISTURBANCES}
            record = {"seed": seed, "outcomes": dict(outcomes), "by_kind": by_kind, "cases": [asdict(case) for case in cases]}
            files.write_text(path, json.dumps(record, indent=1) + "\n")
    return record or json.loads(path.read_text())


def main() -> int:
    """Run the command; returns 1 if an outcome is `silent`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for runs and disturb.json")
    parser.add_argument("--shards", type=Path, required=True, help="folder of training shards of the miniature world")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--recipes", type=int, default=8, help="number of different recipes (default: 8)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    build_collectives()  # on a fresh machine this takes longer than the runs' watchdogs wait
    record = experiment(out, options.shards.resolve(), options.cases, options.seed, options.recipes)
    print(json.dumps({key: record[key] for key in ("seed", "outcomes", "by_kind")}, indent=1))
    return 1 if record["outcomes"].get("silent") else 0


if __name__ == "__main__":
    sys.exit(main())
