"""Manifests in parts: the files are those of one run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import ManifestSlice, read_manifest, scan_manifest
from mtbi.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A manifest of 23 recordings. Some are silent or missing, an id is used twice, and one file is not listed."""
    folder = tmp_path / "source"
    folder.mkdir()
    lines = []
    for number in range(23):
        tone = 0.1 * np.sin(np.arange(8000 + 400 * number) * 0.1).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", tone * (number % 7 != 3), 16000)
        text = "" if number == 5 else f"RECORDING {number} [noise]"
        record = {"id": f"u{number}", "audio": f"{number}.wav", "text": text, "speaker": f"s{number % 3}", "mood": {"a": [1]}}
        lines.append(record | ({"start_s": 0.1, "duration_s": 0.3} if number == 8 else {}))
    lines[20]["id"] = "again"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n")
    soundfile.write(folder / "unlisted.wav", np.ones(16000) * 0.1, 16000)
    (folder / "22.wav").unlink()
    return folder


def import_in_parts(source: Path, out: Path, of: int) -> list[str]:
    """Import in parts, the last part first; the summaries."""
    parts = reversed(ManifestSlice(1, of).siblings())
    return [str(import_corpus("jsonl", source, out, "sentence", strip_tags=True, part=part)) for part in parts]


@pytest.mark.parametrize("of", [1, 4, 40])
def test_an_import_in_parts_is_the_import(source: Path, tmp_path: Path, of: int) -> None:
    summary = import_corpus("jsonl", source, tmp_path / "whole", "sentence", strip_tags=True)
    summaries = import_in_parts(source, tmp_path / "parts", of)
    assert summaries[-1] == str(summary)
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(read_manifest(tmp_path / "parts" / "manifest.jsonl")) == 18


def test_an_id_is_used_once_in_all_parts(tmp_path: Path) -> None:
    source = tmp_path / "folder"
    for number, name in enumerate(("a", "b", "c")):  # two endings, one id
        source.mkdir(exist_ok=True)
        for ending in ("wav", "flac"):
            soundfile.write(source / f"{name}.{ending}", 0.1 * np.sin(np.arange(8000) * (0.1 + number)), 16000)
        (source / f"{name}.txt").write_text("hello there")
    whole = import_corpus("folder", source, tmp_path / "whole")
    assert whole.reasons == {"id used before": 3}
    for part in ManifestSlice(1, 6).siblings():
        summary = import_corpus("folder", source, tmp_path / "parts", part=part)
    assert summary == whole
    assert (tmp_path / "parts/manifest.jsonl").read_bytes() == (tmp_path / "whole/manifest.jsonl").read_bytes()
    assert (tmp_path / "parts/rejected.jsonl").read_bytes() == (tmp_path / "whole/rejected.jsonl").read_bytes()


def test_a_finished_part_is_kept_and_one_of_other_records_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_corpus("jsonl", source, out, part=ManifestSlice(1, 2))
    assert sorted(path.name for path in out.iterdir()) == ["manifest.part-1-of-2.jsonl", "rejected.part-1-of-2.jsonl"]
    (source / "0.wav").unlink()  # it is not decoded again
    import_corpus("jsonl", source, out, part=ManifestSlice(1, 2))
    import_corpus("jsonl", source, out, part=ManifestSlice(2, 2))
    assert read_manifest(out / "manifest.jsonl")[0].id == "u0"
    lines = (source / "manifest.jsonl").read_text().splitlines(keepends=True)
    (source / "manifest.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"part-\d-of-2.jsonl: this part was made from another manifest"):
        import_corpus("jsonl", source, out, part=ManifestSlice(2, 2))


def test_nothing_kept_in_any_part_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "silence"
    source.mkdir()
    for name in ("a", "b"):
        soundfile.write(source / f"{name}.wav", np.zeros(16000), 16000)
        (source / f"{name}.txt").write_text("hello")
    assert import_corpus("folder", source, tmp_path / "out", part=ManifestSlice(1, 2)).kept == 0
    with pytest.raises(UserError, match="none of the 2 records can be used"):
        import_corpus("folder", source, tmp_path / "out", part=ManifestSlice(2, 2))


def test_a_part_is_read_as_the_slice_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    records = [json.dumps({"id": str(number), "audio": "", "text": "one"}) for number in range(11)]
    path.write_text("\n\n".join(records[:6]) + "\n" + "\n".join(records[6:]))
    for of in (1, 2, 3, 11, 13):
        for part in ManifestSlice(1, of).siblings():
            assert read_manifest(path, part) == part.take(read_manifest(path))
    path.write_text("\n".join([*records, "{"]))
    assert scan_manifest(path, ManifestSlice(1, 2))[1] == []
    assert "line 12 of manifest.jsonl" in scan_manifest(path, ManifestSlice(2, 2))[1][0]["reason"]
