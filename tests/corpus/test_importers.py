"""Each layout that a corpus comes in, on real recordings."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from imported import rejected

from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.errors import UserError


def test_folder_with_text_files_and_speakers(speech: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("anna", "berta"):
        (source / name).mkdir(parents=True)
        shutil.copy(speech / "ljspeech_samples/audio/lj-LJ001-0002.flac", source / name / "a.flac")
    (source / "anna/a.txt").write_text("in being comparatively\n modern.\n")
    (source / "berta/a.txt").write_bytes("na\u00efve".encode("latin1"))
    shutil.copy(source / "anna/a.flac", source / "anna/b.flac")
    summary = import_corpus("folder", source, tmp_path / "out")
    assert [(u.id, u.text, u.speaker) for u in read_manifest(tmp_path / "out/manifest.jsonl")] == [
        ("anna/a", "in being comparatively modern.", "anna")
    ]
    assert summary.reasons == {"no transcript": 1, "transcript not UTF-8": 1}
    assert "rejected 2" in str(summary)
    assert set(rejected(tmp_path / "out")) == {"anna/b", "berta/a"}


def test_librispeech_layout_with_sentence_case(speech: Path, tmp_path: Path) -> None:
    folder = tmp_path / "LibriSpeech/train-clean-100/19/198"
    folder.mkdir(parents=True)
    for number in (0, 1):
        shutil.copy(speech / f"librispeech_train_clean_3spk/audio/19/19-198-000{number}.flac", folder)
    lines = [b"19-198-0000 NORTHANGER ABBEY", b"19-198-0001 THIS LITTLE WORK", b"19-198-0002 BUT GONE", b"19-198-0003 CAF\xc9"]
    (folder / "19-198.trans.txt").write_bytes(b"\n".join(lines) + b"\n")
    summary = import_corpus("librispeech", tmp_path / "LibriSpeech", tmp_path / "LibriSpeech", text_style="sentence")
    first, second = read_manifest(tmp_path / "LibriSpeech/manifest.jsonl")
    assert (first.id, first.text, first.speaker, first.split) == (
        "ls-19-198-0000",
        "Northanger abbey.",
        "ls-19",
        "train-clean-100",
    )
    assert first.audio == "train-clean-100/19/198/19-198-0000.flac"
    assert second.text == "This little work."
    assert summary.reasons == {"not UTF-8": 1, "no such file": 1}


def test_common_voice(speech: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    source = speech / "an4_mini/audio"
    shutil.copy(
        source / "an4-an251-fash-b.flac", tmp_path / "clips/one.mp3"
    )  # the decoder looks at the content, not at the name
    shutil.copy(source / "an4-an253-fash-b.flac", tmp_path / "clips/two.mp3")
    header = b"client_id\tpath\tsentence\tup_votes\tlocale\n"
    (tmp_path / "train.tsv").write_bytes(
        header + b'abcdefghijklmnopqrst\tone.mp3\tShe said "yes\t2\ten\n' + b"x\tbad.mp3\tcaf\xe9\t2\ten\n\n" + b"\t\t\t\t\n"
    )
    (tmp_path / "test.tsv").write_bytes(header + b"y\ttwo.mp3\tGo.\t2\ten\ny\t../../etc/gone.mp3\tGone.\t2\ten\n")
    (tmp_path / "validated.tsv").write_bytes(header + b"y\ttwo.mp3\tnever read\t2\ten\n")
    summary = import_corpus("commonvoice", tmp_path, tmp_path / "out")
    one, two = read_manifest(tmp_path / "out/manifest.jsonl")
    assert (one.id, one.text, one.speaker, one.split, one.language) == (
        "cv-one",
        'She said "yes',
        "cv-abcdefghijklmnop",
        "train",
        "en",
    )
    assert (two.text, two.split) == ("Go.", "test")
    assert summary.reasons == {"not UTF-8": 1, "bad record": 1, "no such file": 1}
    (tmp_path / "train.tsv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"train\.tsv: not a Common Voice table"):
        import_corpus("commonvoice", tmp_path, tmp_path / "out")


def test_jsonl_with_real_oddities(speech: Path, tmp_path: Path) -> None:
    summary = import_corpus("jsonl", speech / "multitalker_small" / "manifest.jsonl", tmp_path)
    assert (summary.kept, summary.reasons) == (2, {"no transcript": 1})
    assert import_corpus("jsonl", speech / "ami_30s", tmp_path).kept == 15


def test_jsonl_from_elsewhere_reaches_outside_only_when_allowed(speech: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "foreign", tmp_path / "out"
    source.mkdir()
    inside = source / "a.flac"
    shutil.copy(speech / "an4_mini/audio/an4-an251-fash-b.flac", inside)
    outside = speech / "an4_mini/audio/an4-an253-fash-b.flac"
    lines = [
        {"audio_filepath": str(inside), "duration": 1.0, "text": "yes"},
        {"id": "b", "audio_filepath": str(outside), "text": "go"},
        {"id": "c", "audio_filepath": "../../etc/passwd", "text": "go"},
    ]
    broken = b'{"id": "d", "audio": "a.flac", "text": "\xff"}\n'
    (source / "manifest.jsonl").write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + broken)
    assert import_corpus("jsonl", source, out).reasons == {"path upwards": 1, "not UTF-8": 1, "outside": 1}
    assert [u.text for u in read_manifest(out / "manifest.jsonl")] == ["yes"]
    assert import_corpus("jsonl", source, out, allow_outside=True).kept == 2


def test_word_times_follow_the_new_spelling(speech: Path, tmp_path: Path) -> None:
    shutil.copy(speech / "an4_mini/audio/an4-an251-fash-b.flac", tmp_path / "a.flac")
    line = {"id": "a", "audio": "a.flac", "text": "YES I", "words": [["YES", 0, 0.5], ["I", 0.5, 1.0]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    import_corpus("jsonl", tmp_path / "in.jsonl", tmp_path / "out", text_style="sentence")
    (utterance,) = read_manifest(tmp_path / "out/manifest.jsonl")
    assert utterance.words == [("Yes", 0.0, 0.5), ("I.", 0.5, 1.0)]


def test_transcripts_are_in_one_unicode_form_and_what_cannot_be_interleaved_is_counted(speech: Path, tmp_path: Path) -> None:
    shutil.copy(speech / "an4_mini/audio/an4-an251-fash-b.flac", tmp_path / "a.flac")
    texts = {"a": unicodedata.normalize("NFD", "größe und Straße"), "b": "今天天气", "c": "天"}
    lines = [{"id": name, "audio": "a.flac", "text": text} for name, text in texts.items()]
    lines[0]["answers"] = {"repeat": texts["a"]}
    lines[1]["words"] = [["今天", 0, 0.5], ["天气", 0.5, 1.0]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = import_corpus("jsonl", tmp_path / "in.jsonl", tmp_path / "out")
    assert summary.single == 1
    assert "1 utterances (33.3%) have one word only: they cannot be interleaved" in str(summary)
    first, second, _ = read_manifest(tmp_path / "out/manifest.jsonl")
    assert first.text == first.answers["repeat"] == unicodedata.normalize("NFC", texts["a"])
    assert second.words == [("今天", 0.0, 0.5), ("天气", 0.5, 1.0)]


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'librispech' is unknown: did you mean 'librispeech'"):
        import_corpus("librispech", tmp_path, tmp_path)
    with pytest.raises(UserError, match="nowhere: no such file"):
        import_corpus("fsdd", tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match=r"nothing found\. The kind 'fsdd' expects: The Free Spoken Digit Dataset"):
        import_corpus("fsdd", tmp_path, tmp_path)
    (tmp_path / "0_anna_1.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 records can be used \(\{'empty file': 1\}\); see .*rejected\.jsonl"):
        import_corpus("fsdd", tmp_path, tmp_path / "out")


def test_a_pipe_in_place_of_a_transcript_is_rejected_and_not_waited_for(speech: Path, tmp_path: Path) -> None:
    clip = min((speech / "fsdd" / "audio").rglob("*.flac"))
    for name in ("good.flac", "bad.flac"):
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "good.txt").write_text("hi there")
    for name in ("bad.txt", "1-2.trans.txt"):
        os.mkfifo(tmp_path / name)
    assert import_corpus("folder", tmp_path, tmp_path / "out").kept == 1
    reason = "transcript cannot be opened: not a regular file"
    assert rejected(tmp_path / "out")["bad"] == reason
    with pytest.raises(UserError, match="transcript cannot be opened"):
        import_corpus("librispeech", tmp_path, tmp_path / "out")
