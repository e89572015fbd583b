"""Records of other programs: understood, or refused by name; never misread."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mtbi.corpus import manifest
from mtbi.corpus.check import check
from mtbi.errors import UserError

GOOD = {"id": "a", "audio": "a.wav", "text": "one two"}
CUT: dict[str, Any] = {
    "id": "cut-1",
    "start": 0,
    "duration": 2.0,
    "channel": 0,
    "supervisions": [
        {
            "id": "s",
            "recording_id": "r",
            "start": 0.0,
            "duration": 2.0,
            "channel": 0,
            "text": "hi",
            "speaker": "x",
            "language": "en",
        }
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 32000,
        "duration": 2.0,
        "channel_ids": [0],
    },
    "type": "MonoCut",
}


@pytest.fixture(autouse=True)
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds, and the same in two channels."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000)
    soundfile.write("a.wav", noise, 16_000)
    soundfile.write("stereo.wav", np.stack([noise, noise], 1), 16_000)


def reason(**record: Any) -> str:
    """Why a record is rejected; empty if it is kept."""
    Path("m.jsonl").write_text(json.dumps(GOOD | record) + "\n")
    good, rejected = manifest.scan_manifest("m.jsonl")
    good, unfit = check(good, ".")
    assert len(good) + len(rejected) + len(unfit) == 1
    return "".join(record["reason"] for record in rejected + unfit)


@pytest.mark.parametrize(
    ("part", "start", "seconds"),
    [
        ({"start_s": 0.5, "duration_s": 1.0}, 0.5, 1.0),
        ({"offset": 0.0, "duration": 1.0}, 0.0, 1.0),
        ({"offset": "0.5"}, 0.5, 1.5),
        ({"start_s": 0.5}, 0.5, 1.5),
        ({"start": 0, "end": 1.0}, 0.0, 1.0),
        ({"start": 0.5, "end": 2.0}, 0.5, 1.5),
        ({"start": 0.5, "end": 2.4}, 0.5, 1.5),
        ({"clip_start": 0.0, "clip_end": 1.0}, 0.0, 1.0),
        ({"startTime": 0.25, "endTimeMs": 1000}, 0.25, 0.75),
        ({"start_ms": 100, "end_ms": 1000}, 0.1, 0.9),
        ({"begin_time": 0.5, "end_time": 1.5, "duration": 1.0}, 0.5, 1.0),
        ({"t0": 0, "t1": "1.0"}, 0.0, 1.0),
        ({"from": 0.0, "to": 1.0}, 0.0, 1.0),
        ({"timestamp": [0.0, 1.0]}, 0.0, 1.0),
        ({"segment": [0.5, 2.0]}, 0.5, 1.5),
        ({"offset": 0, "duration": 2.4}, 0.0, 2.0),
    ],
    ids=json.dumps,
)
def test_a_part_of_a_recording_is_a_segment(part: dict[str, Any], start: float, seconds: float) -> None:
    utterance = manifest.parse(GOOD | part)
    assert utterance.extra == {}
    ((found,), bad) = check([utterance], ".")
    assert not bad
    assert (found.start_s, found.duration_s) == (start, pytest.approx(seconds))
    assert manifest.parse(found.to_json()) == found


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"duration": 6.0}, "duration differs: 6.00 s in the record, 2.00 s in the file; where the utterance is a part"),
        ({"end": 1.0}, "duration differs"),
        ({"duration_ms": 1000}, "duration differs"),
        (
            {"offset": 1.0, "duration": 6.0},
            "outside the recording: the segment is from 1.00 to 7.00 s, but the file ends at 2.00 s",
        ),
        ({"start": 35.2, "end": 37.2}, "outside the recording"),
        ({"start": 0.5}, "start given: a start without an end"),
        ({"offset": -0.5, "duration": 1.0}, "offset given: no part of a recording in seconds"),
        ({"start_s": 0.5, "duration_s": float("inf")}, "duration_s given: a segment without end"),
        ({"start": 1.5, "end": 0.5}, "start given: the record ends before it begins"),
        ({"start_time": float("nan")}, "start_time given: no part"),
        ({"end_time": "00:01"}, "end_time given: no part"),
        ({"start_sample": 0, "end_sample": 16000}, "given: no part of a recording in seconds; give start_s and duration_s"),
        ({"frame_offset": 0, "num_frames": 16000}, "frame_offset given: no part"),
        ({"end": 1.0, "duration": 2.0}, "end given: it contradicts"),
        ({"offset": 0.5, "start": 0.7, "duration": 1.0}, "given: it contradicts"),
        ({"channel": 1, "audio": "stereo.wav"}, "channel given"),
        ({"start_s": 0.5, "duration_s": 0.05}, "too short"),
    ],
    ids=json.dumps,
)
def test_a_part_that_is_unclear_or_not_there_is_refused(part: dict[str, Any], words: str) -> None:
    assert words in reason(**part)


def test_word_times_of_a_segment_begin_at_its_start() -> None:
    segment = {"start_s": 1.0, "duration_s": 0.9}
    assert reason(words=[["one", 0.0, 0.5], ["two", 0.5, 0.9]], **segment) == ""
    assert "the last word ends at 1.90 s, the recording at 0.90 s" in reason(words=[["one", 1.0, 1.9]], **segment)


@pytest.mark.parametrize(
    "whole",
    [
        {},
        {"offset": 0},
        {"offset": 0, "duration": 2.0},
        {"duration": 2.4},
        {"start": 0, "end": 2.0},
        {"end": 1.9, "duration": 2.0},
        {"segments": [{"start": 0.5, "end": 1.0}]},
        {"channel": 0},
        {"offset": None},
        {"duration": -1},
        {"start_ms": 0, "end_ms": 2000, "duration": 2.0},
        {"frame_offset": 0},
        {"num_frames": 200},
        {"from": "en", "to": "de"},
        {"start": "0", "end": "2.0"},
        {"start": 0, "duration_ms": "unknown"},
        {"timestamp": "2026-01-01"},
        {"timestamp": [0.0, 2.0]},
        {"duration_ms": 2000},
        {"time": 12},
    ],
    ids=json.dumps,
)
def test_a_whole_recording_is_kept(whole: dict[str, Any]) -> None:
    assert reason(**whole) == ""


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([["a", 0, float("nan")]], "no number"),
        ([["a", 0, float("inf")]], "no number"),
        ([["a", -1, 0.5]], "before the one before"),
        ([["a", 0.5, 0.2], ["b", 0.2, 1]], "before the one before"),
        ([["a", 0, 1.5], ["b", 0.5, 2]], "before the one before"),
        ([["a", 0, 700], ["b", 700, 2000]], "the last word ends at 2000.00 s, the recording at 2.00 s"),
        ([["a", 0.1, 0.9], ["b", 1.0, 2.1]], ""),
        ([["a", 0, 1.01], ["b", 1.0, 2.0]], ""),
        ([["a", 0, 1], ["b", 1, 1], ["c", 1, 2]], ""),
        ([], ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("duration", [{}, {"duration_s": 2.0}], ids=["", "duration"])
def test_word_times_rise_to_the_end(words: list, problem: str, duration: dict[str, float]) -> None:
    found = reason(words=words, **duration)
    assert problem in found if problem else found == ""


@pytest.mark.parametrize("key", ["sentence", "transcript", "transcription", "normalized_text"])
def test_other_names_of_the_text(key: str) -> None:
    assert manifest.parse({"audio": "a.wav", key: "hi"}).text == "hi"
    both = manifest.parse({"audio": "a.wav", "text": "ours", key: "theirs"})
    assert (both.text, both.extra) == ("ours", {key: "theirs"})
    assert manifest.parse(both.to_json()) == both


def test_keys_that_contradict_each_other_and_keys_that_nobody_knows() -> None:
    assert "the keys sentence and transcript contradict" in reason(text=None, sentence="a b", transcript="c d")
    assert "the keys audio and audio_filepath contradict" in reason(audio_filepath="b.wav")
    assert reason(audio_filepath="a.wav", sentence="one two") == ""
    assert "no audio path (key `audio` or `audio_filepath`); its keys: audio, id, source, text" in reason(
        audio=None, source="a"
    )
    words = "no transcript: the text is empty or has no word; other keys of the record: target"
    assert reason(text="", target="hi") == words


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        ("https://example.com/a.wav", "an address (https://); download it"),
        ("gs://bucket/a.wav", "an address (gs://)"),
        ("file:///a.wav", "an address (file://)"),
        ("~/a.wav", "`~` stands for a home folder"),
        ("~anna/a.wav", "`~` stands for a home folder"),
        ("a\0.wav", "bad character: the record holds a NUL"),
        ("a\ud83d.wav", "bad character: half of a surrogate pair (\\ud83d)"),
    ],
)
def test_paths_that_only_others_understand(audio: str, words: str) -> None:
    assert words in reason(audio=audio)


def test_text_that_no_file_can_hold() -> None:
    assert "half of a surrogate pair (\\ud83d)" in reason(text="hello \ud83d")
    assert "half of a surrogate pair" in reason(note={"deep": ["\udc00"]})
    assert "NUL" in reason(text="a\0b")
    assert reason(text="back\\u0000slash \U0001f600") == ""


@pytest.mark.parametrize("line", ["[" * 100_000, '{"duration": ' + "1" * 5000 + "}"], ids=["nested", "digits"])
def test_json_without_end_is_a_bad_line(line: str) -> None:
    Path("m.jsonl").write_text(line + "\n" + json.dumps(GOOD) + "\n")
    good, rejected = manifest.scan_manifest("m.jsonl")
    assert [u.id for u in good] == ["a"]
    assert rejected[0]["reason"].startswith("not JSON: line 1")


def test_compressed_manifests() -> None:
    line = json.dumps(GOOD).encode() + b"\n"
    Path("m.jsonl.gz").write_bytes(gzip.compress(line))  # without a file name in it: its fourth byte is 0
    assert [u.id for u in manifest.read_manifest("m.jsonl.gz")] == ["a"]
    for kind, data in {"xz": lzma.compress(line), "bzip2": bz2.compress(line), "zip": b"PK\3\4\x14\0"}.items():
        Path("m.jsonl").write_bytes(data)
        with pytest.raises(UserError, match=rf"m\.jsonl: this is {kind}, but a manifest is JSON lines"):
            manifest.scan_manifest("m.jsonl")


def test_lhotse_cuts_that_are_whole_recordings() -> None:
    with gzip.open("cuts.jsonl.gz", "wt") as file:
        file.write(json.dumps(CUT) + "\n")
    (utterance,) = manifest.read_manifest("cuts.jsonl.gz")
    assert (utterance.id, utterance.text, utterance.speaker, utterance.language) == ("cut-1", "hi", "x", "en")
    assert len(check([utterance], ".")[0]) == 1
    Path("cuts.jsonl.gz").write_bytes(Path("cuts.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(UserError, match="the manifest is compressed, and damaged"):
        manifest.read_manifest("cuts.jsonl.gz")


@pytest.mark.parametrize(
    ("change", "start", "seconds"),
    [
        ({"start": 3.0}, 3.0, 2.0),
        ({"duration": 1.0, "supervisions": [CUT["supervisions"][0] | {"duration": 1.0}]}, 0.0, 1.0),
        ({"start": 3.0, "supervisions": [CUT["supervisions"][0] | {"start": 0.75, "duration": 1.0}]}, 3.75, 1.0),
        ({"start": 0.001, "duration": 9.9, "supervisions": [CUT["supervisions"][0] | {"duration": 10.0}]}, None, 10.0),
    ],
    ids=lambda change: " ".join(change) if isinstance(change, dict) else str(change),
)
def test_lhotse_cuts_that_are_parts_of_recordings(change: dict[str, Any], start: float | None, seconds: float) -> None:
    utterance = manifest.parse(CUT | {"recording": CUT["recording"] | {"duration": 10.0}} | change)
    assert (utterance.start_s, utterance.duration_s) == (start, seconds)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "MixedCut"},
        {"supervisions": []},
        {"supervisions": CUT["supervisions"] * 2},
        {"supervisions": [CUT["supervisions"][0] | {"start": 1.0, "duration": 2.0}]},
        {"supervisions": [CUT["supervisions"][0] | {"start": -1.0}]},
        {"channel": 1},
        {"recording": CUT["recording"] | {"sources": [{"type": "url", "channels": [0], "source": "http://x/a.wav"}]}},
        {"recording": CUT["recording"] | {"sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}},
        {"recording": None},
    ],
    ids=lambda change: " ".join(change),
)
def test_other_cuts_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^lhotse M"):
        manifest.parse(CUT | change)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_is_named(encoding: str) -> None:
    text = json.dumps(GOOD) + "\n"
    with pytest.raises(
        UserError, match=r"not UTF-8: the text is UTF-(16|32)([LB]E)?; convert the file: iconv -f UTF-(16|32)([LB]E)? -t UTF-8"
    ):
        manifest.decode_text(text.encode(encoding))
    if encoding.endswith("e"):
        with pytest.raises(UserError, match=f"UTF-16{encoding[-2:].upper()} -t"):
            manifest.decode_text(text.encode(encoding))
    Path("m.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="UTF-"):
        manifest.read_manifest("m.jsonl")


@pytest.mark.parametrize("text", ["[noise]", "<unk>", "(laughter)", "[noise] <unk> {laugh}", "（笑）", "[vocalized-noise] ."])
def test_tags_alone_are_no_transcript(text: str) -> None:
    assert reason(text=text) == "no transcript: the text has only tags, such as [noise]"


@pytest.mark.parametrize("text", ["[noise] yes", "(yes)", "a < b and c > d", "<unk> one"])
def test_words_beside_tags_are_a_transcript(text: str) -> None:
    assert reason(text=text) == ""
