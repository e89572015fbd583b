"""Which records are fit for use: real, odd and broken ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from imported import write_noise

from mtbi.corpus.check import RecordingLimits, check
from mtbi.corpus.manifest import Utterance, read_manifest


def test_real_manifests_with_null_text_and_unknown_keys(speech: Path) -> None:
    several = {u.id: u for u in read_manifest(speech / "multitalker_small" / "manifest.jsonl")}
    assert several["pv-falcon-test"].text == ""
    assert several["pv-falcon-test"].extra["num_speakers"] == 3
    good, rejected = check(several.values(), speech / "multitalker_small")
    assert [(r["id"], r["reason"].split(":")[0]) for r in rejected] == [("pv-falcon-test", "no transcript")]
    assert {u.id for u in good} == {"fw-stereo-diarization", "pv-leopard-diarization-test"}
    ami, bad = check(read_manifest(speech / "ami_30s" / "manifest.jsonl"), speech / "ami_30s")
    assert (len(ami), bad) == (15, [])


def test_measured_duration_and_rate_replace_what_the_manifest_says(speech: Path) -> None:
    told = read_manifest(speech / "ljspeech_samples" / "manifest.jsonl")
    good, rejected = check(
        [replace(u, duration_s=u.duration_s * 1.05, sample_rate=1) for u in told], speech / "ljspeech_samples"
    )
    assert not rejected
    assert [u.id for u in good] == [u.id for u in told]
    for found, expected in zip(good, told, strict=True):
        assert found.duration_s == pytest.approx(expected.duration_s, abs=1e-3)
        assert found.sample_rate == expected.sample_rate == 22050


def test_every_kind_of_unfit_record_has_its_reason_and_the_good_stay(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not a sound\n" * 99)
    write_noise(tmp_path / "whole.flac", 3)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    nan = np.zeros(16000, np.float32)
    nan[3] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 16000, subtype="FLOAT")
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, 16000)
    soundfile.write(tmp_path / "cancelling.wav", np.stack([wave, -wave], 1), 16000)
    cases = [
        (write_noise(tmp_path / "stereo.wav", 1, channels=2), "two channels", None),
        (write_noise(tmp_path / "cd.wav", 1, rate=44100), "44.1 kHz", None),
        (write_noise(tmp_path / "tenth.wav", 0.1), "a tenth of a second", None),
        ("zero.wav", "x", "empty file: 0 bytes"),
        ("text.wav", "x", "not readable as audio"),
        ("cut.flac", "x", "truncated"),
        ("nan.wav", "x", "not finite: 1 of 16000"),
        ("gone.wav", "x", "no such file"),
        (write_noise(tmp_path / "silence.wav", 1, level=0.0), "x", "silence: the peak is -inf dBFS, under -60 dBFS"),
        ("cancelling.wav", "x", "silence"),
        (write_noise(tmp_path / "short.wav", 0.09), "x", "too short: 0.090 s, less than 0.1 s"),
        (write_noise(tmp_path / "long.flac", 600), "x", "too long: 600.0 s, more than 60 s"),
        (write_noise(tmp_path / "low.wav", 1, rate=6000), "x", "sampling rate too low: 6000 Hz"),
        (write_noise(tmp_path / "array.wav", 1, channels=4), "x", "too many channels: 4, more than 2"),
        ("stereo.wav", "", "no transcript"),
        ("stereo.wav", " … – ", "no transcript"),
        ("stereo.wav", "word " * 10_000, "transcript too long: 10000 words, more than 500"),
        ("tenth.wav", "after all the bad ones", None),
    ]
    utterances = [Utterance(f"u{n}", name, text) for n, (name, text, _) in enumerate(cases)]
    good, rejected = check(utterances, tmp_path)
    reasons = {f"u{n}": reason for n, (_, _, reason) in enumerate(cases) if reason}
    assert [u.id for u in good] == [u.id for u in utterances if u.id not in reasons]
    assert [r["id"] for r in rejected] == list(reasons)
    for record in rejected:
        assert record["reason"].startswith(reasons[record["id"]])
        assert record["audio"]
    assert {u.id: (u.duration_s, u.sample_rate) for u in good}["u1"] == (1.0, 44100)


def test_limits_are_arguments(tmp_path: Path) -> None:
    silent = Utterance("s", write_noise(tmp_path / "s.wav", 0.5, level=0.0), "x")
    long = Utterance("l", write_noise(tmp_path / "l.flac", 600), "x")
    limits = RecordingLimits(min_peak_dbfs=-np.inf, max_duration_seconds=600, min_duration_seconds=0.6)
    good, rejected = check([silent, long], tmp_path, limits)
    assert [u.id for u in good] == ["l"]
    assert rejected[0]["reason"] == "too short: 0.500 s, less than 0.6 s"
    assert len(check([silent], tmp_path, RecordingLimits(min_peak_dbfs=-np.inf))[0]) == 1


def test_a_transcript_without_spaces_can_be_too_long(tmp_path: Path) -> None:
    recording = write_noise(tmp_path / "a.wav", 1.0)
    texts = {"short": "今天天气很好。" * 4, "long": "今天天气很好。" * 5, "thai": "กา" * 16}
    utterances = [Utterance(name, recording, text) for name, text in texts.items()]
    good, rejected = check(utterances, tmp_path, RecordingLimits(max_words=24))
    assert [u.id for u in good] == ["short"]
    assert [r["reason"] for r in rejected] == [
        "transcript too long: 30 words, more than 24",
        "transcript too long: 32 words, more than 24",
    ]


def test_the_former_name_of_the_limits_still_imports() -> None:
    with pytest.deprecated_call(match=r"mtbi\.data\.corpus moved to mtbi\.corpus\.manifest"):
        from mtbi.data.corpus import Limits
    assert Limits is RecordingLimits
