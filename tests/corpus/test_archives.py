"""Tar files as they are published: WebDataset, NeMo's tarred data, plain archives."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
from imported import rejected, rejected_kinds, write_noise

from mtbi.cli import main
from mtbi.corpus import recordings
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest


def pack(archive: Path, folder: Path, *names: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as file:
        for name in names:
            file.add(folder / name, name)


def test_webdataset(tmp_path: Path) -> None:
    loose, source = tmp_path / "loose", tmp_path / "in"
    for name in ("000", "001", "002", "003"):
        write_noise(loose / f"{name}.flac", 1.0)
    (loose / "000.txt").write_text("hello\n there")
    (loose / "001.json").write_text(json.dumps({"id": "mine", "text": "yes", "speaker": "ann", "duration": 1.0, "snr": 7}))
    (loose / "002.json").write_text("{")
    (loose / "notes.md").write_text("x")
    pack(source / "train/shard-0.tar", loose, "000.flac", "000.txt", "001.flac", "001.json", "002.flac", "002.json", "notes.md")
    pack(source / "train/shard-1.tar", loose, "000.flac", "000.txt", "003.flac")
    (source / "damaged.tar").write_bytes(b"x" * 2000)
    (source / "packed.tar.gz").write_bytes(b"x")
    os.mkfifo(source / "pipe.tar")
    summary = import_corpus("tar", source, tmp_path / "out")
    found = read_manifest(tmp_path / "out/manifest.jsonl")
    assert [(u.id, u.text, u.speaker, u.extra) for u in found] == [
        ("train/shard-0/000", "hello there", "", {}),
        ("mine", "yes", "ann", {"snr": 7}),
        ("train/shard-1/000", "hello there", "", {}),
    ]
    assert rejected_kinds(tmp_path / "out") == {
        "damaged.tar": "not readable as tar",
        "packed.tar.gz": "compressed",
        "pipe.tar": "not readable as tar",
        "train/shard-0/002": "transcript cannot be read",
        "train/shard-1/003": "no transcript",
    }
    assert (summary.files, summary.files_kept, summary.files_rejected) == (5, 2, 3)
    whole = recordings.read(found[0], tmp_path / "out")
    assert len(whole) == 16_000
    assert np.array_equal(whole, recordings.read(found[2], tmp_path / "out"))


def test_nemo_tarred_data(tmp_path: Path) -> None:
    loose, source = tmp_path / "loose", tmp_path / "in"
    for name in ("data_a.wav", "data_b.wav"):
        write_noise(loose / name, 3.0)
    pack(source / "audio_0.tar", loose, "data_a.wav")
    pack(source / "audio_1.tar", loose, "data_b.wav")
    lines = [
        {"audio_filepath": "data_a.wav", "offset": 0.0, "duration": 1.0, "text": "one", "shard_id": 0},
        {"audio_filepath": "data_a-sub1.wav", "offset": 1.5, "duration": 1.0, "text": "two", "shard_id": 0},
        {"audio_filepath": "data_b.wav", "duration": 3.0, "text": "three", "shard_id": 1, "source_audio_offset": 9.5},
        {"audio_filepath": "data_c.wav", "duration": 3.0, "text": "four", "shard_id": 1},
    ]
    (source / "sharded_manifests").mkdir()
    for shard in (0, 1):
        own = [json.dumps(line) + "\n" for line in lines if line["shard_id"] == shard]
        (source / f"sharded_manifests/manifest_{shard}.json").write_text("".join(own))
    whole = "".join(json.dumps(line) + "\n" for line in lines) + "oops\n"
    for name in ("sharded", "whole"):
        if name == "whole":
            (source / "tarred_audio_manifest.json").write_text(whole)
        import_corpus("tar", source, tmp_path / name)
        found = read_manifest(tmp_path / name / "manifest.jsonl")
        assert [(u.id, u.text, u.start_s, u.duration_s) for u in found] == [
            ("audio_0/data_a", "one", 0.0, 1.0),
            ("audio_0/data_a-sub1", "two", 1.5, 1.0),
            ("audio_1/data_b", "three", None, 3.0),
        ]
    assert rejected_kinds(tmp_path / "sharded") == {"data_c.wav": "no recording"}
    assert rejected(tmp_path / "whole")["tarred_audio_manifest.json:5"].startswith("bad record: line 5 of")


def test_one_archive_at_the_end_of_a_truncated_download(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_noise(tmp_path / f"loose/{name}.wav", 1.0)
        (tmp_path / f"loose/{name}.txt").write_text("hi there")
    pack(tmp_path / "one.tar", tmp_path / "loose", "a.txt", "a.wav", "b.txt", "b.wav")
    data = (tmp_path / "one.tar").read_bytes()
    assert main(["data", "import", "tar", str(tmp_path / "one.tar"), str(tmp_path / "out")]) == 0
    assert [u.id for u in read_manifest(tmp_path / "out/manifest.jsonl")] == ["one/a", "one/b"]
    assert main(["data", "check", str(tmp_path / "out/manifest.jsonl")]) == 0
    (tmp_path / "one.tar").write_bytes(data[: len(data) * 2 // 3])
    assert main(["data", "check", str(tmp_path / "out/manifest.jsonl")]) == 2


def test_wav_files_in_archives_of_kaldi(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.wav", 1.0)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/raw.ark").write_bytes(b"u1 " + data + b"u2 " + data)
    (tmp_path / "in/wav.scp").write_text(f"u1 raw.ark:3\nu2 raw.ark:{6 + len(data)}\nu3 raw.ark:9\n")
    (tmp_path / "in/text").write_text("u1 one\nu2 two\nu3 three\n")
    import_corpus("kaldi", tmp_path / "in", tmp_path / "out")
    assert [(u.id, u.duration_s) for u in read_manifest(tmp_path / "out/manifest.jsonl")] == [("u1", 1.0), ("u2", 1.0)]
    assert rejected_kinds(tmp_path / "out") == {"u3": "not readable as audio"}
