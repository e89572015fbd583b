"""Kaldi's data folders, written as docs/your-corpus.md describes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from imported import rejected, rejected_kinds, write_noise

from mtbi.cli import main
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import Utterance, read_manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder `egs` with the recordings a.wav and b.wav of one second."""
    for name in ("a", "b"):
        write_noise(tmp_path / "egs/wav" / f"{name}.wav", 1.0)
    return tmp_path / "egs"


def write_data_folder(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(content)


def read(out: Path) -> list[Utterance]:
    return read_manifest(out / "manifest.jsonl")


def test_data_folders_are_splits_with_speakers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_folder(source / "data/train", wav_scp="u1 wav/a.wav\n", text="u1 HELLO THERE\n", utt2spk="u1 anna\n")
    write_data_folder(source / "data/dev", wav_scp="u2 b.wav\n", text="u2 YES\n")
    shutil.move(source / "wav/b.wav", source / "data/dev/b.wav")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "import", "kaldi", "egs", "work", "--text-style", "sentence"]) == 0
    assert [(u.id, u.text, u.speaker, u.split, u.duration_s) for u in read(tmp_path / "work")] == [
        ("u2", "Yes.", "", "dev", 1.0),
        ("u1", "Hello there.", "anna", "train", 1.0),
    ]
    assert "kept 2 utterances" in capsys.readouterr().out


def test_each_record_that_is_no_utterance_has_a_reason(source: Path, tmp_path: Path) -> None:
    write_data_folder(
        source,
        wav_scp=f"good {source}/wav/a.wav\nsilent wav/b.wav\npiped sph2pipe -f wav c.sph |\npacked raw.ark:17\nfar s3://bucket/d.wav\n",
        text="good one\npiped two\npacked three\nfar four\nlost five\n",
    )
    summary = import_corpus("kaldi", source, tmp_path / "out")
    assert [(u.id, u.split) for u in read(tmp_path / "out")] == [("good", "")]
    assert summary.reasons == {"not a path": 2, "cannot be opened": 1, "no transcript": 1, "no recording": 1}
    assert rejected(tmp_path / "out")["piped"].startswith("not a path: wav.scp gives a command")
    assert rejected(tmp_path / "out")["lost"] == "no recording: wav.scp has no line with the id lost"


def test_segments_of_recordings(source: Path, tmp_path: Path) -> None:
    write_data_folder(
        source,
        wav_scp="a wav/a.wav\nb wav/b.wav\n",
        text="whole one\nend two\nlater three\nrest four\nodd five\nafter six\nback seven\nwords eight\n",
        segments="whole a 0.0 1.0\nend b 0 -1\nlater b 0.5 0.9\nrest a 0.25 -1\nodd b 0\nafter b 0.8 3.0\nback b 0.8 0.2\n"
        "words b x y\n",
        utt2spk="later anna\n",
        spk2gender="anna f\n",
        utt2lang="later da\n",
        utt2dur="rest 0.5\n",
    )
    import_corpus("kaldi", source, tmp_path / "out")
    assert [(u.id, u.text, u.start_s, u.duration_s) for u in read(tmp_path / "out")] == [
        ("whole", "one", 0.0, 1.0),
        ("end", "two", None, 1.0),
        ("later", "three", 0.5, 0.4),
        ("rest", "four", 0.25, 0.5),
    ]
    later = read(tmp_path / "out")[2]
    assert (later.speaker, later.language, later.extra) == ("anna", "da", {"gender": "f"})
    assert rejected_kinds(tmp_path / "out") == {
        "odd": "bad record",
        "after": "outside the recording",
        "back": "start_s given",
        "words": "bad record",
    }


def test_durations_of_whole_recordings_are_compared(source: Path, tmp_path: Path) -> None:
    write_data_folder(source, wav_scp="a wav/a.wav\nb wav/b.wav\n", text="a one\nb two\n", utt2dur="a 1.0\nb 7.5\n")
    import_corpus("kaldi", source, tmp_path / "out")
    assert [u.id for u in read(tmp_path / "out")] == ["a"]
    assert rejected_kinds(tmp_path / "out") == {"b": "duration differs"}
