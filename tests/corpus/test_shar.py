"""lhotse's Shar folders, in the layout that `SharWriter` of lhotse 1.33 writes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imported import rejected

from mtbi.audio import codec
from mtbi.corpus import recordings
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.errors import UserError


def cut(name: str, **changes: Any) -> dict[str, Any]:
    source = {"type": "shar", "channels": [0], "source": ""}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 8000, "duration": 0.5}
    said = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 0.5, "channel": 0, "text": f"hello {name}"}
    others = {"start": 0, "duration": 0.5, "channel": 0, "supervisions": [said | {"speaker": "anna", "language": "en"}]}
    return {"id": name, **others, "recording": recording, "type": "MonoCut", **changes}


def wave(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).uniform(-0.5, 0.5, 8000).astype(np.float32)


def write_shard(folder: Path, number: int, cuts: list[dict[str, Any]], recorded: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"cuts.{number:06d}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in cuts)
    with tarfile.open(folder / f"recording.{number:06d}.tar", "w") as archive:
        for name in recorded:
            for ending, data in ((".flac", codec.encode(wave(name))), (".json", json.dumps(cut(name)["recording"]).encode())):
                info = tarfile.TarInfo(name + ending)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_a_shar_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "shar", 0, [cut("talk.1-0"), cut("talk.1-22")], ["talk.1-0", "talk.1-22"])
    write_shard(tmp_path / "shar", 1, [cut("b"), cut("c")], ["b", "c"])
    summary = import_corpus("shar", tmp_path / "shar", tmp_path / "out")
    assert (summary.kept, summary.rejected, summary.files_kept) == (4, 0, 2)
    found = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [one.id for one in found] == ["talk.1-0", "talk.1-22", "b", "c"]
    assert (found[1].text, found[1].speaker, found[1].language) == ("hello talk.1-22", "anna", "en")
    for one in found:
        np.testing.assert_allclose(recordings.read(one, tmp_path / "out"), wave(one.id), atol=1e-4)


def test_cuts_that_cannot_be_read_have_reasons(tmp_path: Path) -> None:
    shar = tmp_path / "shar"
    bad = [cut("two", supervisions=cut("x")["supervisions"] * 2), cut("gone"), {"id": "empty"}, cut("m", type="MultiCut")]
    write_shard(shar, 0, [cut("good"), *bad], ["good", "two", "empty", "m"])
    write_shard(shar, 1, [cut("later")], ["later"])
    (shar / "recording.000001.tar").unlink()
    write_shard(shar, 2, [cut("torn")], ["torn"])
    (shar / "recording.000002.tar").write_bytes(b"no archive" * 100)
    (shar / "notes.jsonl").write_text("{}")
    assert import_corpus("shar", shar, tmp_path / "out").kept == 1
    reasons = rejected(tmp_path / "out")
    assert "one supervision" in reasons["two"]
    assert reasons["gone"].startswith("no recording: the archive has none")
    assert reasons["empty"].startswith("bad record: no cut of lhotse")
    assert "only a MonoCut" in reasons["m"]
    assert "recording.000001.tar is not beside" in reasons["cuts.000001.jsonl.gz"]
    assert reasons["cuts.000002.jsonl.gz"].startswith("not readable as Shar")


def test_the_other_importer_names_this_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "shar", 0, [cut("a")], ["a"])
    with pytest.raises(UserError, match="This looks like lhotse Shar: use the kind 'shar'"):
        import_corpus("librispeech", tmp_path / "shar", tmp_path / "out")
