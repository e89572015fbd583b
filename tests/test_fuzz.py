"""Fuzzing: files that a random generator has damaged raise a UserError or are read, and never raise another error.

`MTBI_FUZZ_SECONDS=600 pytest tests/test_fuzz.py` fuzzes each reader for ten minutes; without the variable it takes a moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtbi import recipe as recipes
from mtbi.audio import codec
from mtbi.benchmark import dialogues
from mtbi.corpus import manifest
from mtbi.errors import UserError
from mtbi.shards.read import Shards

SECONDS = float(os.environ.get("MTBI_FUZZ_SECONDS", "0"))
pytestmark = pytest.mark.timeout(900)

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
fuzz = settings(max_examples=100 if not SECONDS else 2_000, deadline=None, suppress_health_check=QUIET, derandomize=not SECONDS)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def for_a_while(check: Callable[[], None]) -> None:
    """Run `check` once, or repeatedly until MTBI_FUZZ_SECONDS are over."""
    until = time.monotonic() + SECONDS
    while True:
        check()
        if time.monotonic() >= until:
            return


def damage(content: bytes, changes: list[tuple[float, int]], keep: float) -> bytes:
    """`content` with some bytes changed and its end cut off. A change is a relative position and a new value."""
    changed = bytearray(content)
    for share, value in changes:
        changed[min(int(share * len(changed)), len(changed) - 1)] = value
    return bytes(changed[: max(1, int(keep * len(changed)))])


DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.one_of(st.just(1.0), st.floats(0, 1))
)


def only_our_errors(read: Callable[[], object]) -> None:
    """Anything but a result or a UserError fails the test."""
    with contextlib.suppress(UserError):
        read()


def test_manifests(tmp_path: Path) -> None:
    fields = ["id", "audio", "text", "speaker", "duration_s", "language", "sample_rate", "split", "words", "answers"]
    good = {"id": "a", "audio": "a.wav", "text": "one two", "words": [["one", 0.0, 0.5], ["two", 0.5, 1.0]]}
    records = st.dictionaries(st.sampled_from(fields), JSON, max_size=6).map(lambda changes: {**good, **changes})

    @fuzz
    @given(st.lists(st.one_of(records, JSON), max_size=4), st.binary(max_size=30))
    def check(lines: list, tail: bytes) -> None:
        path = tmp_path / "manifest.jsonl"
        path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + tail)
        only_our_errors(lambda: manifest.read_manifest(path))
        only_our_errors(lambda: list(dialogues.read_items("group", path, False)))

    for_a_while(check)


def test_recipes(tmp_path: Path) -> None:
    names = [note.path for note in recipes.reference()]

    @fuzz
    @given(st.lists(st.tuples(st.sampled_from(names), JSON), max_size=3), st.text(max_size=30))
    def check(fields: list[tuple[str, object]], text: str) -> None:
        only_our_errors(lambda: recipes.load("demo", [f"{name}={json.dumps(value)}" for name, value in fields]))
        only_our_errors(lambda: recipes.load("demo", [text]))
        path = tmp_path / "recipe.yaml"
        path.write_text("\n".join(f"{name.split('.')[0]}: {json.dumps(value)}" for name, value in fields) + "\n" + text)
        only_our_errors(lambda: recipes.load(path))

    for_a_while(check)


def test_shards(shard_folder: Path, tmp_path: Path) -> None:
    names = ["index.json", "mtbi_index.json", "utterances.npy", "branches.npy", "words.npy", "shard.00000.mds"]
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)

    def read() -> None:
        shards = Shards(str(folder))
        for index in (0, len(shards) - 1):
            _ = shards[index]

    @fuzz
    @given(st.sampled_from(names), DAMAGE)
    def check(name: str, how: tuple[list[tuple[float, int]], float]) -> None:
        content = (shard_folder / name).read_bytes()
        (folder / name).write_bytes(damage(content, *how))
        try:
            only_our_errors(read)
        finally:
            (folder / name).write_bytes(content)

    for_a_while(check)


def test_shard_descriptions(shard_folder: Path, tmp_path: Path) -> None:
    """Valid JSON with other values: paths that leave the folder, wrong types, huge numbers."""
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    strange = JSON | st.sampled_from(["../../etc/passwd", "/etc/passwd", ".hidden", "pkl", "shard.00000.mds\0", 2**70, -1])

    @fuzz
    @given(st.sampled_from(["index.json", "mtbi_index.json"]), st.data())
    def check(name: str, data: st.DataObject) -> None:
        content = (shard_folder / name).read_text()
        record = json.loads(content)
        target = record["shards"][0] if name == "index.json" and data.draw(st.booleans()) else record
        if target is not record and data.draw(st.booleans()):
            target = target["raw_data"]
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(strange)
        (folder / name).write_text(json.dumps(record))
        try:
            only_our_errors(lambda: Shards(str(folder))[0])
        finally:
            (folder / name).write_text(content)

    for_a_while(check)


def test_recordings(corpus: tuple[Path, list]) -> None:
    flac = (corpus[0] / "0.flac").read_bytes()
    wave = codec.load(flac)[0][:, 0]
    contents = [flac, codec.encode(wave, "opus"), b"RIFF" + len(flac).to_bytes(4, "little") + b"WAVEfmt " + flac[:200]]

    @fuzz
    @given(st.sampled_from(contents), DAMAGE)
    def check(content: bytes, how: tuple[list[tuple[float, int]], float]) -> None:
        only_our_errors(lambda: codec.load(damage(content, *how), max_seconds=600))

    for_a_while(check)
