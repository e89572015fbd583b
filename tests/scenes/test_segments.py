from __future__ import annotations

from pathlib import Path

import pytest

from mtbi.errors import UserError
from mtbi.scenes.segments import SegmentFile, SpeakerSegment, by_session, number


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("s", "A", 2.0, 1.5, "x"), "ends at 1.5 s, before it starts at 2 s"),
        (("s", "A", 0.0, float("nan"), "x"), "finite"),
        (("s", "A", float("-inf"), 1.0, "x"), "finite"),
        (("s", "A", 0.0, None, "x"), "both start_time and end_time, or neither"),
        (("s", " ", 0.0, 1.0, "x"), "speaker is empty"),
        (("", "A", 0.0, 1.0, "x"), "session or the speaker is empty"),
    ],
)
def test_impossible_segments_are_refused(fields: tuple[str, str, float, float, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpeakerSegment(*fields)


def test_a_segment_may_be_a_moment_or_without_times() -> None:
    assert SpeakerSegment("s", "A", 1.0, 1.0, "x").span == (1.0, 1.0)
    with pytest.raises(UserError, match="a segment of A in s has no times"):
        _ = SpeakerSegment("s", "A", None, None, "x").span


def test_sessions_keep_their_order() -> None:
    segments = [SpeakerSegment(session, "A", 0.0, 1.0) for session in "bab"]
    assert [(session, len(own)) for session, own in by_session(segments).items()] == [("b", 2), ("a", 1)]


def test_a_file_knows_what_it_holds() -> None:
    spoken = SegmentFile(Path("a"), "seglst", [SpeakerSegment("s", "A", None, None, "")])
    heard = SegmentFile(Path("a"), "rttm", [SpeakerSegment("s", "A", 0.0, 1.0)])
    assert (spoken.has_words, spoken.has_times) == (True, False)
    assert (heard.has_words, heard.has_times) == (False, True)


def test_numbers_are_short_and_without_exponents() -> None:
    numbers = {0.1 + 0.2: "0.3", 1e-7: "0", -1e-9: "0", 100.0: "100", 1e6: "1000000", 1.44: "1.44"}
    assert [number(value) for value in numbers] == list(numbers.values())
