"""Parquet files as Hugging Face datasets writes them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from imported import rejected_kinds

from mtbi.cli import main
from mtbi.corpus import recordings
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def flac(seed: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).normal(0, 0.1, 16_000), 16_000, format="FLAC")
    return buffer.getvalue()


def write(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = len(next(iter(columns.values())))
    audio = [{"bytes": flac(number), "path": f"{number}.flac"} for number in range(rows)]
    parquet.write_table(pyarrow.table({"audio": audio, **columns}), path, row_group_size=2)


def test_rows_are_utterances(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write(
        source / "data/train-00000-of-00002.parquet",
        text=["one", "two", None],
        speaker_id=[7, 7, 8],
        begin_time=[5.0, 9.0, 1.0],
    )
    write(source / "data/test-00000-of-00001.parquet", text=["three"], id=["mine"], speaker_id=[9])
    summary = import_corpus("parquet", source, tmp_path / "out")
    found = read_manifest(tmp_path / "out/manifest.jsonl")
    assert [(u.id, u.text, u.speaker, u.split, u.duration_s, u.start_s) for u in found] == [
        ("mine", "three", "9", "test", 1.0, None),
        ("data/train-00000-of-00002-000000", "one", "7", "train", 1.0, None),
        ("data/train-00000-of-00002-000001", "two", "7", "train", 1.0, None),
    ]
    assert rejected_kinds(tmp_path / "out") == {"data/train-00000-of-00002-000002": "no transcript"}
    assert (summary.files, summary.files_kept) == (2, 2)
    wave = recordings.read(found[2], tmp_path / "out")
    assert np.array_equal(wave, soundfile.read(io.BytesIO(flac(1)), dtype="float32")[0])
    assert main(["data", "check", str(tmp_path / "out/manifest.jsonl")]) == 0


def test_the_columns_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "train-0.parquet", str(tmp_path / "out")
    write(path, raw_text=["ONE"], cased=["One."])
    assert main(["data", "import", "parquet", str(path), out]) == 2
    message = capsys.readouterr().err
    assert "train-0.parquet: no column is known to hold the transcripts; choose one with --text-column." in message
    assert "There are: audio (struct), raw_text (string), cased (string)" in message
    assert main(["data", "import", "parquet", str(path), out, "--text-column", "cased"]) == 0
    assert [u.text for u in read_manifest(tmp_path / "out/manifest.jsonl")] == ["One."]
    with pytest.raises(UserError, match=r"--text-column gone: train-0\.parquet has no such column; there are: audio"):
        import_corpus("parquet", path, out, columns={"text_column": "gone"})
    with pytest.raises(UserError, match="--text-column: the kind 'folder' has no columns"):
        import_corpus("folder", tmp_path, out, columns={"text_column": "text"})
    write(path, text=["ONE"], sentence=["One."])
    with pytest.raises(UserError, match="several columns may hold the transcripts"):
        import_corpus("parquet", path, out)


def test_a_damaged_file_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    write(tmp_path / "in/a-0.parquet", text=["one"])
    (tmp_path / "in/b-0.parquet").write_bytes((tmp_path / "in/a-0.parquet").read_bytes()[:300])
    os.mkfifo(tmp_path / "in/c-0.parquet")
    assert import_corpus("parquet", tmp_path / "in", tmp_path / "out").kept == 1
    assert set(rejected_kinds(tmp_path / "out").items()) == {
        ("b-0", "not readable as Parquet"),
        ("c-0", "not readable as Parquet"),
    }
