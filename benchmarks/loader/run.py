"""From storage to packed tensors: how fast, and does a late resume cost more? `python benchmarks/loader/run.py [--out FOLDER]`

- `decode`: stored utterances to samples ready for packing, on one core, against libsndfile reading the same FLAC bytes
- `build`: rows of packed tensors on one core, decoding included
- `first_batch`: seconds from a Loader's making to its first micro-batch, at step 0 and at step 1,000,000
- `store`: shards through a real S3 server (OpenStack Swift) on this machine, against boto3's own download of the same objects
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import soundfile
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "benchmarks"), str(REPOSITORY / "tools")]

from measuring import header, save, timed  # noqa: E402
from servers.swift import swift_server  # noqa: E402
from training import world  # noqa: E402

from mtbi import object_store  # noqa: E402
from mtbi.audio import codec  # noqa: E402
from mtbi.batches.loader import Loader  # noqa: E402
from mtbi.batches.plan import Plan, Position, Step  # noqa: E402
from mtbi.model.frame_counts import FrameGeometry  # noqa: E402
from mtbi.recipe import Recipe  # noqa: E402
from mtbi.shards.read import Shards  # noqa: E402

LATE = 1_000_000
REPEATS = 5


def medians(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            found[name].append(timed(work))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def decode(shards: Shards) -> dict[str, float]:
    """Utterances a second on one core."""
    stored = [shards.columns(number)["audio"] for number in range(len(shards))]
    hours = float(shards.index.utterances["samples"].sum(dtype="u8")) / codec.SAMPLE_RATE / 3600
    seconds = medians(
        {
            "ours": lambda: [shards[number] for number in range(len(shards))],
            "libsndfile": lambda: [soundfile.read(io.BytesIO(one), dtype="float32") for one in stored],
        }
    )
    return {
        "utterances_per_second": round(len(shards) / seconds["ours"]),
        "audio_seconds_per_second": round(3600 * hours / seconds["ours"]),
        "time_over_libsndfile_alone": round(seconds["ours"] / seconds["libsndfile"], 3),
    }


def first_micro_batch(shards: Shards, recipe: Recipe, position: Position | None) -> None:
    """What a resumed run waits for."""
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    with Loader(shards, plan, position=position, workers=1, prefetch=1) as loader:
        next(next(iter(loader)).micro_batches)


def build(shards: Shards, recipe: Recipe) -> dict[str, float]:
    """Packed slots a second with one thread."""
    steps: list[Step] = []
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    with Loader(shards, plan, workers=1, prefetch=1) as loader:
        began = time.perf_counter()
        for step in itertools.islice(loader, 10):
            list(step.micro_batches)
            steps.append(step.step)
        seconds = time.perf_counter() - began
    return {
        "slots_per_second": round(sum(step.tokens for step in steps) / seconds),
        "audio_seconds_per_second": round(sum(step.audio_seconds for step in steps) / seconds),
    }


def first_batch(shards: Shards, recipe: Recipe) -> dict[str, float]:
    """Seconds at step 0 and at step LATE, where the position comes from a checkpoint."""
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    epoch_steps = sum(1 for _ in itertools.takewhile(lambda step: step.position.epoch == 0, plan.steps()))
    late = next(plan.steps(Position(LATE // epoch_steps))).position
    seconds = medians(
        {
            "step_0": lambda: first_micro_batch(shards, recipe, None),
            f"step_{LATE}": lambda: first_micro_batch(shards, recipe, late),
        }
    )
    return {name: round(value, 3) for name, value in seconds.items()}


def from_store(recipe: Recipe) -> dict[str, float]:
    """Megabytes a second of whole shards, each file fetched anew."""
    local = Path(recipe.data.shards[0])
    with tempfile.TemporaryDirectory(prefix="mtbi-loader-") as place, swift_server(Path(place)) as environment:
        os.environ.update(environment)
        client = boto3.client("s3", endpoint_url=environment["S3_ENDPOINT_URL"])
        client.create_bucket(Bucket="loader")
        names = sorted(path.name for path in local.iterdir())
        object_store.upload(local, names, "s3://loader/shards")
        size = sum((local / name).stat().st_size for name in names)
        folder = Path(place) / "fetched"

        def fetch() -> None:
            for name in names:
                object_store.fetch(f"s3://loader/shards/{name}", folder / name)

        def plain() -> None:
            for name in names:
                client.download_file("loader", f"shards/{name}", str(folder / name))

        def fresh(work: Callable[[], None]) -> Callable[[], None]:
            def call() -> None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                work()

            return call

        seconds = medians({"ours": fresh(fetch), "boto3": fresh(plain)})
    return {
        "megabytes": round(size / 1e6, 1),
        "megabytes_per_second": round(size / 1e6 / seconds["ours"], 1),
        "time_over_boto3_alone": round(seconds["ours"] / seconds["boto3"], 3),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for DATE.json")
    parser.add_argument("--utterances", type=int, default=400, help="in the corpus")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = world.make(Path(folder), options.utterances)
        shards = Shards(recipe.data.shards)
        record = {
            **header("torch", "mosaicml-streaming", "boto3"),
            "decode": decode(shards),
            "build": build(shards, recipe),
            "first_batch_seconds": first_batch(shards, recipe),
            "store": from_store(recipe),
        }
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
