"""How fast and how tight is planning? `python benchmarks/planning/run.py [--utterances 100000000] [--out FOLDER]` prints JSON.

An index of so many utterances lies on disk, memory-mapped as a real one is; their dialogues and words point into pools of a
million entries. Measured: seconds and peak memory until the first step is known, microseconds an utterance after that, the
share of token slots used for LibriSpeech-like and for long-tailed lengths, and how long GPUs wait for the slowest of them where
all start each micro-batch together (computed for Whisper large-v3 and an LLM of 8 billion parameters: 1.02 = 2%), with rows in
the plan's order and, as the baseline, in random order.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import header, peak_gib, save

from mtbi import recipe as recipes
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.plan import Plan, Row, Step
from mtbi.model.frame_counts import WHISPER_STAGES, FrameGeometry
from mtbi.shards.index import BRANCH, UTTERANCE, WORD, Index

POOL = 1_000_000
SHARD_UTTERANCES = 512
BRANCHES = 6
PIECE = 5_000_000
GPUS = (8, 64)
GEOMETRY = FrameGeometry(WHISPER_STAGES, stack=8)
#: (parameters, width, layers) of Llama 3.1 8B and of Whisper large-v3's encoder
LLM, ENCODER = (8.0e9, 4096, 32), (0.635e9, 1280, 32)
FACTS = {"fingerprint": "", "llm": "", "prefix_ids": list(range(20)), "end_id": 0, "top_k": 32, "prompt_first": False}
FIELDS = [
    "plan.row_tokens=4096", "plan.rows_per_step=128", "plan.tasks_per_utterance=4", "plan.window_samples=65536",
    "interleave.share=0.5", "interleave.span_words_max=6",
]  # fmt: skip


def librispeech_seconds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Most near 14 seconds, as in train-clean-100."""
    near = rng.normal(14.3, 1.2, count)
    return np.clip(np.where(rng.random(count) < 0.7, near, rng.uniform(1.5, 13, count)), 1.5, 16.7)


def long_tailed_seconds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Most are short, some as long as the encoder takes, as in spontaneous speech from the web."""
    return np.clip(rng.lognormal(1.2, 0.9, count), 0.4, 30)


LENGTHS = {"librispeech_like": librispeech_seconds, "long_tailed": long_tailed_seconds}


def make_tables(folder: Path, utterances: int, kind: str) -> None:
    """The tables of an index, on disk."""
    rng = np.random.default_rng(0)
    branches = np.zeros(POOL, BRANCH)
    branches["prompt_tokens"] = rng.integers(8, 24, POOL)
    branches["answer_tokens"] = np.clip(rng.lognormal(3.2, 0.6, POOL), 1, 128)
    words = np.zeros(POOL, WORD)
    words["tokens"] = rng.integers(1, 3, POOL)
    words["start"] = np.arange(POOL) % 80 * 6000  # of some utterance: what counts here is their number
    np.save(folder / "branches.npy", branches)
    np.save(folder / "words.npy", words)
    table = np.lib.format.open_memmap(folder / "utterances.npy", "w+", UTTERANCE, (utterances,))
    for start in range(0, utterances, PIECE):
        part = table[start : start + PIECE]
        seconds = LENGTHS[kind](rng, len(part))
        part["samples"] = seconds * 16_000
        part["branches"] = BRANCHES
        part["first_branch"] = rng.integers(0, POOL - BRANCHES, len(part))
        part["words"] = np.clip(seconds * 2.7, 1, 80)
        part["first_word"] = rng.integers(0, (POOL - 80) // 80, len(part)) * 80
        table.flush()


def operations(row: Row, row_tokens: int) -> float:
    """Of a row: forward and input gradients of the frozen LLM, forward of the encoder, attention of both."""
    parameters, width, layers = LLM
    llm = 4 * parameters * row_tokens + 12 * width * layers * sum(group.tokens**2 / 2 for group in row.groups)
    parameters, width, layers = ENCODER
    frames = [50 * group.samples / SAMPLE_RATE for group in row.groups]
    return llm + sum(2 * parameters * one + 4 * width * layers * one**2 for one in frames)


def waits(steps: list[Step], gpus: int, row_tokens: int, rng: np.random.Generator | None = None) -> float:
    """Time of the slowest GPU in each micro-batch of one row a GPU, over the mean of all; `rng` shuffles the rows of a step."""
    slowest = mean = 0.0
    for step in steps:
        costs = np.array([operations(row, row_tokens) for row in step.rows])
        if rng is not None:
            rng.shuffle(costs)
        together = costs[: len(costs) // gpus * gpus].reshape(-1, gpus)
        slowest, mean = slowest + together.max(1).sum(), mean + together.mean(1).sum()
    return round(float(slowest / mean), 4)


def plan_it(folder: Path, steps: int) -> dict[str, Any]:
    """Plan the first step and some more; in a process of its own, so that the peak of memory is planning's."""
    tables = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("utterances", "branches", "words")}
    whole, rest = divmod(len(tables["utterances"]), SHARD_UTTERANCES)
    sizes = [SHARD_UTTERANCES] * whole + [rest] * bool(rest)
    index = Index(**FACTS, encoded="", feature_width=0, tasks=["task"], shard_sizes=sizes, **tables)
    recipe = recipes.load("demo", FIELDS)
    before, began = peak_gib(), time.perf_counter()
    following = Plan(index, recipe, GEOMETRY).steps()
    next(following)
    first, began = time.perf_counter() - began, time.perf_counter()
    planned = list(islice(following, steps))
    seconds = time.perf_counter() - began
    count = sum(len(row.groups) for step in planned for row in step.rows)
    used = sum(step.tokens for step in planned) / sum(len(step.rows) * recipe.plan.row_tokens for step in planned)
    return {
        "seconds_to_first_step": round(first, 2),
        "peak_gib": round(peak_gib(), 2),
        "peak_gib_before_planning": round(before, 2),
        "microseconds_an_utterance": round(1e6 * seconds / count, 2),
        "slots_used": round(used, 4),
        "slowest_gpu": {gpus: waits(planned, gpus, recipe.plan.row_tokens) for gpus in GPUS},
        "slowest_gpu_random_order": {
            gpus: waits(planned, gpus, recipe.plan.row_tokens, np.random.default_rng(0)) for gpus in GPUS
        },
    }


def measure(utterances: int, kind: str, steps: int) -> dict[str, Any]:
    """One index."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        make_tables(Path(folder), utterances, kind)
        return {"lengths": kind, "utterances": utterances, **pool.submit(plan_it, Path(folder), steps).result()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=300, help="steps timed after the first")
    parser.add_argument("--out", type=Path, help="folder for DATE.json")
    options = parser.parse_args()
    found = [measure(options.utterances, kind, options.steps) for kind in LENGTHS]
    record = {**header("numpy"), "measured": found}
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
