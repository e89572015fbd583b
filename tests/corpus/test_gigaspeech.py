"""GigaSpeech's JSON file, in a tiny folder of its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from imported import rejected, rejected_kinds, write_noise

from mtbi.corpus.gigaspeech import with_marks
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.errors import UserError


def segment(name: str, begin: float, end: float, text: str, **others: Any) -> dict[str, Any]:
    return {"sid": name, "speaker": "N/A", "begin_time": begin, "end_time": end, "text_tn": text} | others


def test_segments_of_long_recordings(tmp_path: Path) -> None:
    write_noise(tmp_path / "audio/podcast/P0001/POD1.flac", 8.0)
    segments = [
        segment("S1", 0.78, 3.13, "FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>", subsets=["{XL}", "{L}", "{S}"]),
        segment("S2", 3.5, 5.0, "IS IT <QUESTIONMARK>", subsets=["{XL}"], speaker="ann"),
        segment("S3", 5.0, 6.0, "<MUSIC>", subsets=["{DEV}"]),
        segment("S4", 7.0, 12.0, "TOO FAR"),
        {"sid": "S5", "begin_time": 1.0},
        segment("S6", 3.0, 2.0, "BACK"),
    ]
    wenet = {"sid": "S7", "begin_time": 1.0, "end_time": 2.0, "text": "今天天气", "confidence": 1.0}
    audios = [
        {"aid": "POD1", "path": "audio/podcast/P0001/POD1.flac", "segments": segments},
        {"aid": "POD2", "path": "audio/podcast/P0001/POD1.flac", "segments": [wenet]},
        {"aid": "POD3"},
    ]
    (tmp_path / "GigaSpeech.json").write_text(json.dumps({"language": "EN", "audios": audios}), encoding="utf-8")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    import_corpus("gigaspeech", tmp_path, tmp_path / "out", "sentence")
    found = read_manifest(tmp_path / "out/manifest.jsonl")
    assert [(u.id, u.text, u.start_s, u.duration_s, u.split, u.speaker, u.language) for u in found] == [
        ("S1", "Four o'clock, said williams.", 0.78, 2.35, "s", "", "en"),
        ("S2", "Is it?", 3.5, 1.5, "xl", "ann", "en"),
        ("S7", "今天天气", 1.0, 1.0, "", "", "en"),
    ]
    assert rejected_kinds(tmp_path / "out") == {
        "S3": "no speech",
        "S4": "outside the recording",
        "S5": "bad record",
        "S6": "begin_time given",
        "GigaSpeech.json:audios[2]": "bad record",
        "broken.json": "not JSON",
    }
    assert rejected(tmp_path / "out")["S3"] == "no speech: the segment is marked with <MUSIC>"
    summary = import_corpus("gigaspeech", tmp_path / "GigaSpeech.json", tmp_path / "small", splits=["xs", "s"])
    assert summary.kept == 1


def test_the_tags_of_punctuation_become_marks() -> None:
    assert with_marks("SO <COMMA> YES<EXCLAMATIONPOINT> NO <PERIOD>") == "SO, YES! NO."


def test_a_folder_without_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"nothing found\. The kind 'gigaspeech' expects: One JSON file with `audios`"):
        import_corpus("gigaspeech", tmp_path, tmp_path / "out")
