from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.errors import UserError
from mtbi.scenes.read import read_segments
from mtbi.scenes.segments import SegmentFile, SpeakerSegment

SEGLST = """[
 {"session_id": "m1", "speaker": "A", "start_time": 0.5, "end_time": "2", "words": "hello there", "channel": 2},
 {"session_id": "m1", "speaker": 7, "start_time": 1, "end_time": 3, "words": ""}
]
"""
RTTM = """;; a comment
SPKR-INFO m1 1 <NA> <NA> <NA> unknown A <NA>
SPEAKER m1 1 0.5 1.5 <NA> <NA> A <NA> <NA>

SPEAKER m1 1 1 2 <NA> <NA> B <NA>
NOSCORE m1 1 4 5 <NA> <NA> <NA> <NA> <NA>
"""
STM = """;; LABEL "O" "Overall" "all"
m1 1 A 0.5 2 <o,f0,male> hello there
m1 1 B 1 3
m1 A C 2 4 <unk> yes
m1 1 inter_segment_gap 3 4 ignore_time_segment_in_scoring
"""


def read(folder: Path, name: str, text: str | bytes) -> SegmentFile:
    """What a file of that name and content holds."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_segments(path)


def test_seglst_keeps_further_keys_and_takes_numbers_as_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", SEGLST).segments == [
        SpeakerSegment("m1", "A", 0.5, 2.0, "hello there", {"channel": 2}),
        SpeakerSegment("m1", "7", 1.0, 3.0, ""),
    ]


def test_seglst_without_times_or_words(tmp_path: Path) -> None:
    assert not read(tmp_path, "a.json", '[{"session_id": "a", "speaker": "A", "words": "x"}]').has_times
    silent = '[{"session_id": "a", "speaker": "A", "start_time": 0, "end_time": 1}]'
    assert not read(tmp_path, "a.json", silent).has_words


def test_only_speaker_lines_of_rttm_count(tmp_path: Path) -> None:
    file = read(tmp_path, "a.rttm", RTTM)
    assert file.segments == [
        SpeakerSegment("m1", "A", 0.5, 2.0, None, {"channel": "1"}),
        SpeakerSegment("m1", "B", 1.0, 3.0, None, {"channel": "1"}),
    ]
    assert file.skipped == {"SPKR-INFO": 1, "NOSCORE": 1}


def test_stm_labels_are_no_words_and_ignored_segments_are_counted(tmp_path: Path) -> None:
    file = read(tmp_path, "a.stm", STM)
    assert file.segments == [
        SpeakerSegment("m1", "A", 0.5, 2.0, "hello there", {"channel": "1", "label": "<o,f0,male>"}),
        SpeakerSegment("m1", "B", 1.0, 3.0, "", {"channel": "1"}),
        SpeakerSegment("m1", "C", 2.0, 4.0, "<unk> yes", {"channel": "A"}),
    ]
    assert file.skipped == {"ignore_time_segment_in_scoring": 1}


@pytest.mark.parametrize(("text", "kind"), [(SEGLST, "seglst"), (RTTM, "rttm"), (STM, "stm")])
def test_the_content_tells_the_format_where_the_name_does_not(tmp_path: Path, text: str, kind: str) -> None:
    assert read(tmp_path, "system.out", text).format == kind
    assert read(tmp_path, "system.txt", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()).format == kind


GOOD = '{"session_id": "a", "speaker": "A", "start_time": 0, "end_time": 1, "words": "x"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.stm", "", "a.stm: the file is empty"),
        ("a.stm", ";; nothing\n", "a.stm: no segment in this stm file"),
        ("a.stm", "m1 1 A 0 1 x\n\nm1 1 A 0\n", "a.stm:3: 4 fields; an STM line is FILE CHANNEL SPEAKER START END"),
        ("a.stm", "m1 1 0 1 A hello\n", "a.stm:1: the end 'A' is not a number of seconds"),
        ("a.stm", "m1 1 A 0 1 x\nm1 1 A 5 1 x\n", "a.stm:2: the segment ends at 1 s, before it starts at 5 s"),
        ("a.stm", "m1 1 A 0 1e999 x\n", "a.stm:1: 0.0 to inf: times must be finite"),
        ("a.stm", b"m1 1 A 0 1 x\nm1 1 A 1 2 caf\xe9\n", "a.stm:2: not UTF-8: byte 0xe9"),
        ("a.rttm", "SPEAKER m1 1 0 1 <NA> A\n", "a.rttm:1: 7 fields; an RTTM line has 9 or 10"),
        ("a.rttm", "SPEAKER m1 1 0 -1 <NA> <NA> A <NA> <NA>\n", "a.rttm:1: the duration -1 is negative"),
        ("a.rttm", "SPEAKER m1 1 0 <NA> <NA> <NA> A <NA> <NA>\n", "a.rttm:1: the duration '<NA>' is not a number"),
        (
            "a.rttm",
            "SPKR-INFO m1 1 <NA> <NA> <NA> unknown A <NA>\n",
            "no segment in this rttm file (it has other lines: 1 SPKR-INFO)",
        ),
        ("a.rttm", "m1 1 A 0 1 x\n", "a.rttm:1: 'm1' is no type of an RTTM line"),
        ("a.json", "[]", "a.json: no segment in this seglst file"),
        ("a.json", "{}", "a.json:1: the file begins with '{', not with '['"),
        ("a.json", f"[\n{GOOD},\n{{oops}}]", "a.json:3: not JSON"),
        ("a.json", f"[\n{GOOD}\n{GOOD}]", "a.json:3: not JSON: ',' or ']' is missing"),
        ("a.json", f"[{GOOD},\n]", "a.json:2: not JSON: ',' before the end"),
        ("a.json", f"[{GOOD}", "a.json:1: not JSON: ',' or ']' is missing"),
        ("a.json", f"[{GOOD}]\n[]", "a.json:2: text after the list"),
        ("a.json", f'[{GOOD},\n"x"]', "a.json:2: 'x' is not a segment"),
        ("a.json", f'[{GOOD},\n{{"speaker": "A"}}]', "a.json:2: no session_id"),
        ("a.json", GOOD.join("[]").replace('"A"', "null"), "a.json:1: speaker must be text, not None"),
        ("a.json", GOOD.join("[]").replace('"x"', '["x"]'), "a.json:1: words must be one text, not ['x']"),
        ("a.json", GOOD.join("[]").replace("1", '"soon"'), "a.json:1: the end_time 'soon' is not a number of seconds"),
        ("a.json", GOOD.join("[]").replace("1", "[1]"), "a.json:1: end_time must be a number of seconds, not [1]"),
        ("a.json", GOOD.join("[]").replace("1", "NaN"), "a.json:1: 0.0 to nan: times must be finite"),
        ("a.json", f"[{GOOD},\n{GOOD.replace('words', 'text')}]", "a.json:2: no words, which other segments of the file have"),
        ("a.json", f'[{GOOD},\n{{"session_id": "a", "speaker": "A", "words": ""}}]', "a.json:2: no start_time, which other"),
    ],
)
def test_what_is_malformed_is_refused_with_file_and_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, text)
    assert message in str(caught.value)
    assert str(caught.value).count(str(tmp_path)) == 1
