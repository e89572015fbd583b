from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.errors import UserError
from mtbi.scenes.read import read_segments
from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.write import write_segments

SEGMENTS = [
    SpeakerSegment("m1", "B", 3601.25, 3602.0, "später ja", {"channel": "2"}),
    SpeakerSegment("m1", "A", 0.1 + 0.2, 2.0, "hello there", {"channel": "1", "label": "<o,f0,male>"}),
    SpeakerSegment("m1", "A", -0.01, 0.2, "", {"channel": "1"}),
]
NEAT = [SEGMENTS[0], SpeakerSegment("m1", "A", 0.3, 2.0, "hello there", SEGMENTS[1].more), SEGMENTS[2]]


@pytest.mark.parametrize("name", ["a.json", "a.stm"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    write_segments(tmp_path / name, SEGMENTS)
    assert read_segments(tmp_path / name).segments == NEAT


def test_rttm_holds_starts_and_durations(tmp_path: Path) -> None:
    write_segments(tmp_path / "a.rttm", SEGMENTS)
    assert (tmp_path / "a.rttm").read_text() == (
        "SPEAKER m1 2 3601.25 0.75 <NA> <NA> B <NA> <NA>\n"
        "SPEAKER m1 1 0.3 1.7 <NA> <NA> A <NA> <NA>\n"
        "SPEAKER m1 1 -0.01 0.21 <NA> <NA> A <NA> <NA>\n"
    )
    assert [one.span for one in read_segments(tmp_path / "a.rttm").segments] == [one.span for one in NEAT]


def test_seglst_without_times_has_no_keys_for_them(tmp_path: Path) -> None:
    segments = [SpeakerSegment("m1", "A", None, None, "x")]
    write_segments(tmp_path / "a.json", segments)
    assert (tmp_path / "a.json").read_text() == '[\n{"session_id": "m1", "speaker": "A", "words": "x"}\n]\n'


def test_subtitles_stand_in_the_order_of_time(tmp_path: Path) -> None:
    write_segments(tmp_path / "a.srt", SEGMENTS)
    assert (tmp_path / "a.srt").read_text(encoding="utf-8") == (
        "1\n00:00:00,300 --> 00:00:02,000\n[A] hello there\n\n2\n01:00:01,250 --> 01:00:02,000\n[B] später ja\n"
    )


@pytest.mark.parametrize(
    ("name", "segments", "message"),
    [
        ("a.txt", SEGMENTS, "must end in .json, .stm, .rttm, .srt"),
        ("a.stm", [SpeakerSegment("m1", "A", 0.0, 1.0)], "STM needs words"),
        ("a.stm", [SpeakerSegment("m1", "A", None, None, "x")], "a segment of A in m1 has no times"),
        ("a.stm", [SpeakerSegment("m1", "A B", 0.0, 1.0, "x")], "STM cannot hold the name 'A B'"),
        ("a.rttm", [SpeakerSegment("m 1", "A", 0.0, 1.0)], "RTTM cannot hold the name 'm 1'"),
        ("a.srt", [SpeakerSegment(name, "A", 0.0, 1.0, "x") for name in "ab"], "not of 2 (a, b, …); choose one with --session"),
        ("a.srt", [SpeakerSegment("a", "A", 0.0, 1.0)], "not of 0"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, segments: list[SpeakerSegment], message: str) -> None:
    with pytest.raises(UserError) as caught:
        write_segments(tmp_path / name, segments)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert not any(tmp_path.iterdir())
