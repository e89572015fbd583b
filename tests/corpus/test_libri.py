"""LibriTTS and Multilingual LibriSpeech, in tiny folders of their layouts."""

from __future__ import annotations

from pathlib import Path

from imported import rejected_kinds, write_noise

from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest


def test_libritts(tmp_path: Path) -> None:
    folder = tmp_path / "LibriTTS/dev-clean/1272/128104"
    for name in ("1272_128104_000001_000000", "1272_128104_000003_000001", "1272_128104_000004_000000"):
        write_noise(folder / f"{name}.wav", 1.0, rate=24_000)
    (folder / "1272_128104_000001_000000.original.txt").write_text("Mr. Quilter has 2.")
    (folder / "1272_128104_000001_000000.normalized.txt").write_text("Mister Quilter has two.")
    (folder / "1272_128104_000003_000001.normalized.txt").write_bytes(b"caf\xe9")
    (folder / "1272_128104_000009_000000.normalized.txt").write_text("Lost.")
    (folder / "1272_128104.trans.tsv").write_text("1272_128104_000001_000000\tMr. Quilter has 2.\tMister Quilter has two.\n")
    import_corpus("libritts", tmp_path / "LibriTTS", tmp_path / "out")
    (one,) = read_manifest(tmp_path / "out/manifest.jsonl")
    assert (one.id, one.text, one.speaker, one.split, one.sample_rate, one.language) == (
        "ltts-1272_128104_000001_000000", "Mister Quilter has two.", "ls-1272", "dev-clean", 24_000, "en",
    )  # fmt: skip
    assert rejected_kinds(tmp_path / "out") == {
        "ltts-1272_128104_000003_000001": "transcript not UTF-8",
        "ltts-1272_128104_000004_000000": "no transcript",
        "1272_128104_000009_000000.normalized.txt": "no recording",
    }


def test_multilingual_librispeech(tmp_path: Path) -> None:
    source = tmp_path / "mls_german_opus"
    for split, name in (("train", "1844_931_000000"), ("dev", "2422_931_000001"), ("train", "1844_931_000009")):
        speaker, book, _ = name.split("_")
        write_noise(source / split / "audio" / speaker / book / f"{name}.flac", 1.0)
    (source / "train/transcripts.txt").write_text("1844_931_000000\tschöner tag\n1844_931_000003\tfehlt\n", encoding="utf-8")
    (source / "dev/transcripts.txt").write_text("2422_931_000001\tja\n")
    (source / "train/segments.txt").write_text("1844_931_000000\thttp://archive.org/a.mp3\t401.76\t417.57\n")
    import_corpus("mls", source, tmp_path / "out")
    assert [(u.id, u.text, u.speaker, u.split, u.language) for u in read_manifest(tmp_path / "out/manifest.jsonl")] == [
        ("mls-2422_931_000001", "ja", "mls-2422", "dev", "de"),
        ("mls-1844_931_000000", "schöner tag", "mls-1844", "train", "de"),
    ]
    assert rejected_kinds(tmp_path / "out") == {
        "mls-1844_931_000003": "no such file",
        "train/audio/1844/931/1844_931_000009": "not listed",
    }
