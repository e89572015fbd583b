"""Manifests and the checks on real, odd and broken records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.corpus import manifest
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import Limits, Utterance
from mtbi.errors import UserError


def sound(path: Path, seconds: float, rate: int = 16_000, channels: int = 1, level: float = 0.3) -> str:
    noise = np.random.default_rng(0).uniform(-level, level, (round(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path.name


def test_manifest_round_trip_keeps_every_field(tmp_path: Path) -> None:
    full = Utterance(
        "a", "a.wav", "née Ørsted", "sp", 1.5, "da", 16000, "train", [("née", 0.0, 0.5), ("Ørsted", 0.5, 1.5)], {"count": "two"}
    )
    full.extra = {"gender": "F", "segments": [{"start": 0}]}
    manifest.write_manifest(tmp_path / "m.jsonl", [full, Utterance("b", "b.wav", "")])
    assert manifest.read_manifest(tmp_path / "m.jsonl") == [full, Utterance("b", "b.wav", "")]
    assert "Ørsted" in (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_an_interrupted_write_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    manifest.write_manifest(path, [Utterance("old", "a.wav", "x")])

    def broken():
        yield Utterance("new", "a.wav", "x")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        manifest.write_manifest(path, broken())
    assert [u.id for u in manifest.read_manifest(path)] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_real_manifests_with_null_text_and_unknown_keys(speech: Path) -> None:
    several = {u.id: u for u in manifest.read_manifest(speech / "multitalker_small" / "manifest.jsonl")}
    assert several["pv-falcon-test"].text == ""
    assert several["pv-falcon-test"].extra["num_speakers"] == 3
    good, rejected = manifest.check(several.values(), speech / "multitalker_small")
    assert [(r["id"], r["reason"].split(":")[0]) for r in rejected] == [("pv-falcon-test", "no transcript")]
    assert {u.id for u in good} == {"fw-stereo-diarization", "pv-leopard-diarization-test"}
    ami, bad = manifest.check(manifest.read_manifest(speech / "ami_30s" / "manifest.jsonl"), speech / "ami_30s")
    assert (len(ami), bad) == (15, [])


def test_measured_duration_and_rate_replace_what_the_manifest_says(speech: Path) -> None:
    told = manifest.read_manifest(speech / "ljspeech_samples" / "manifest.jsonl")
    good, rejected = manifest.check(
        [replace(u, duration_s=u.duration_s * 1.05, sample_rate=1) for u in told], speech / "ljspeech_samples"
    )
    assert not rejected
    assert [u.id for u in good] == [u.id for u in told]
    for found, expected in zip(good, told, strict=True):
        assert found.duration_s == pytest.approx(expected.duration_s, abs=1e-3)
        assert found.sample_rate == expected.sample_rate == 22050


def test_nemo_and_lhotse_keys(tmp_path: Path) -> None:
    line = {
        "audio_filepath": "wavs/x1.wav",
        "duration": 2,
        "text": "hi",
        "lang": "en",
        "sampling_rate": 16000,
        "speaker_id": 7,
        "pred": "ho",
    }
    (tmp_path / "m.jsonl").write_text("\ufeff" + json.dumps(line) + "\n\n", encoding="utf-8")
    assert manifest.read_manifest(tmp_path / "m.jsonl") == [
        Utterance("wavs/x1", "wavs/x1.wav", "hi", "7", 2, "en", 16000, extra={"pred": "ho"})
    ]


BAD_LINES = {
    "not JSON": b"{oops",
    "not UTF-8": '{"id": "l", "audio": "l.wav", "text": "caf\u00e9"}'.encode("latin1"),
    "bad record: a manifest line": b"[1]",
    "bad record: no audio path": b'{"id": "n", "text": "x"}',
    "bad record: text is a list": b'{"id": "t", "audio": "t.wav", "text": ["x"]}',
    "bad record: duration_s is a str": b'{"id": "d", "audio": "t.wav", "text": "x", "duration": "3"}',
    "bad record: words must be": b'{"id": "w", "audio": "t.wav", "text": "x", "words": [["x", 1]]}',
    "id used before: line": b'{"id": "good", "audio": "g.wav", "text": "x"}',
    "path upwards": b'{"id": "u", "audio": "a/../../secret.wav", "text": "x"}',
    "offset given": b'{"id": "o", "audio": "o.wav", "text": "x", "offset": 3.5}',
}


def test_bad_lines_are_told_apart_and_good_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = b'{"id": "good", "audio": "g.wav", "text": "x"}'
    path.write_bytes(b"\n".join([good, *BAD_LINES.values(), b'{"id": "last", "audio": "a/../l.wav", "text": "x"}']))
    utterances, rejected = manifest.scan_manifest(path)
    assert [u.id for u in utterances] == ["good", "last"]
    for number, (record, reason) in enumerate(zip(rejected, BAD_LINES, strict=True), 2):
        assert record["reason"].startswith(reason)
        assert f"line {number} of m.jsonl" in record["reason"]
    assert "byte 0xe9" in rejected[1]["reason"]
    with pytest.raises(UserError, match=r"m\.jsonl: 10 bad line\(s\), the first is m\.jsonl:2: not JSON"):
        manifest.read_manifest(path)
    with pytest.raises(UserError, match="cannot be read"):
        manifest.read_manifest(tmp_path / "none.jsonl")


def test_every_kind_of_unfit_record_has_its_reason_and_the_good_stay(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not a sound\n" * 99)
    sound(tmp_path / "whole.flac", 3)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    nan = np.zeros(16000, np.float32)
    nan[3] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 16000)
    soundfile.write(tmp_path / "cancelling.wav", np.stack([wave, -wave], 1), 16000)
    cases = [
        (sound(tmp_path / "stereo.wav", 1, channels=2), "two channels", None),
        (sound(tmp_path / "cd.wav", 1, rate=44100), "44.1 kHz", None),
        (sound(tmp_path / "tenth.wav", 0.1), "a tenth of a second", None),
        ("zero.wav", "x", "empty file: 0 bytes"),
        ("text.wav", "x", "not readable as audio"),
        ("cut.flac", "x", "truncated"),
        ("nan.wav", "x", "not finite: 1 of 16000"),
        ("gone.wav", "x", "no such file"),
        (sound(tmp_path / "silence.wav", 1, level=0.0), "x", "silence: the peak is -inf dBFS, under -60 dBFS"),
        ("cancelling.wav", "x", "silence"),
        (sound(tmp_path / "short.wav", 0.09), "x", "too short: 0.090 s, less than 0.1 s"),
        (sound(tmp_path / "long.flac", 600), "x", "too long: 600.0 s, more than 60 s"),
        (sound(tmp_path / "low.wav", 1, rate=6000), "x", "sampling rate too low: 6000 Hz"),
        (sound(tmp_path / "array.wav", 1, channels=4), "x", "too many channels: 4, more than 2"),
        ("stereo.wav", "", "no transcript"),
        ("stereo.wav", " … – ", "no transcript"),
        ("stereo.wav", "word " * 10_000, "transcript too long: 10000 words, more than 500"),
        ("tenth.wav", "after all the bad ones", None),
    ]
    utterances = [Utterance(f"u{n}", name, text) for n, (name, text, _) in enumerate(cases)]
    good, rejected = manifest.check(utterances, tmp_path)
    reasons = {f"u{n}": reason for n, (_, _, reason) in enumerate(cases) if reason}
    assert [u.id for u in good] == [u.id for u in utterances if u.id not in reasons]
    assert [r["id"] for r in rejected] == list(reasons)
    for record in rejected:
        assert record["reason"].startswith(reasons[record["id"]])
        assert record["audio"]
    assert {u.id: (u.duration_s, u.sample_rate) for u in good}["u1"] == (1.0, 44100)


def test_limits_are_arguments(tmp_path: Path) -> None:
    silent = Utterance("s", sound(tmp_path / "s.wav", 0.5, level=0.0), "x")
    long = Utterance("l", sound(tmp_path / "l.flac", 600), "x")
    limits = Limits(min_peak_dbfs=-np.inf, max_duration_seconds=600, min_duration_seconds=0.6)
    good, rejected = manifest.check([silent, long], tmp_path, limits)
    assert [u.id for u in good] == ["l"]
    assert rejected[0]["reason"] == "too short: 0.500 s, less than 0.6 s"
    assert len(manifest.check([silent], tmp_path, Limits(min_peak_dbfs=-np.inf))[0]) == 1


def test_a_transcript_without_spaces_can_be_too_long(tmp_path: Path) -> None:
    recording = sound(tmp_path / "a.wav", 1.0)
    texts = {"short": "今天天气很好。" * 4, "long": "今天天气很好。" * 5, "thai": "กา" * 16}
    utterances = [Utterance(name, recording, text) for name, text in texts.items()]
    good, rejected = manifest.check(utterances, tmp_path, Limits(max_words=24))
    assert [u.id for u in good] == ["short"]
    assert [r["reason"] for r in rejected] == [
        "transcript too long: 30 words, more than 24",
        "transcript too long: 32 words, more than 24",
    ]


def test_relocated_audio_is_found_from_the_new_folder(tmp_path: Path) -> None:
    moved = manifest.relocate(Utterance("a", "deep/a.wav", "x"), tmp_path / "corpus", tmp_path)
    assert moved.audio == "corpus/deep/a.wav"
    assert manifest.relocate(moved, tmp_path, tmp_path / "elsewhere").audio == str(tmp_path / "corpus/deep/a.wav")


def test_an_utterance_of_text_alone_has_an_id_and_stays_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    lines = [{"id": "t", "audio": "", "text": "hello there"}, {"audio": "", "text": "nameless"}]
    (source / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = import_corpus("jsonl", source, tmp_path / "out")
    assert (summary.kept, summary.rejected, summary.hours, summary.shared) == (1, 1, 0.0, 0)
    [utterance] = manifest.read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert (utterance.id, utterance.audio, utterance.text) == ("t", "", "hello there")
    assert "needs an `id`" in (tmp_path / "out" / "rejected.jsonl").read_text()
