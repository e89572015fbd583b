"""All numbers are computed by hand."""

from __future__ import annotations

import pytest

from mtbi.errors import UserError
from mtbi.scenes.diarization import DiarizationErrors, diarization_errors
from mtbi.scenes.segments import SpeakerSegment


def side(*turns: tuple[str, float, float]) -> list[SpeakerSegment]:
    """The segments of one session."""
    return [SpeakerSegment("m1", speaker, start, end) for speaker, start, end in turns]


def errors(reference: list[SpeakerSegment], hypothesis: list[SpeakerSegment], collar: float = 0.0) -> tuple[float, ...]:
    """Speech, missed, false alarm and confusion in seconds."""
    found = diarization_errors(reference, hypothesis, collar)
    return tuple(round(value, 6) for value in (found.speech, found.missed, found.false_alarm, found.confusion))


def test_names_of_speakers_do_not_matter() -> None:
    assert errors(side(("A", 0, 4), ("B", 4, 6)), side(("B", 0, 4), ("A", 4, 6))) == (6, 0, 0, 0)


def test_overlap_counts_for_each_speaker_in_it() -> None:
    # 8 to 9: two speak, one is heard; 9 to 10: the same; 12 to 13: one is heard, nobody speaks
    assert errors(side(("A", 0, 10), ("B", 8, 12)), side(("x", 0, 9), ("y", 9, 13))) == (14, 2, 1, 0)


def test_one_speaker_for_two_is_confusion() -> None:
    found = diarization_errors(side(("A", 0, 6), ("B", 6, 10)), side(("x", 0, 12)))
    assert found == DiarizationErrors(10, 0, 2, 4)
    assert found.rate == pytest.approx(0.6)


def test_the_mapping_is_the_best_of_all_speakers_together() -> None:
    # x shares 4 s with A and 3 s with B, y shares 3 s with A: A-y and B-x have 6 s together, A-x alone has 4 s
    assert errors(side(("A", 0, 7), ("B", 7, 10)), side(("x", 0, 4), ("y", 4, 7), ("x", 7, 10))) == (10, 0, 0, 4)


def test_the_collar_is_on_each_side_of_a_reference_boundary() -> None:
    assert errors(side(("A", 0, 10)), side(("x", 0.4, 10.4)), 0.5) == (9, 0, 0, 0)
    assert errors(side(("A", 0, 10)), side(("x", 0.4, 10.6)), 0.5) == (9, 0, 0.1, 0)


def test_the_mapping_is_made_before_the_collar() -> None:
    # A is y in 10 turns of 1 s, which collars of half a second hide, and x in one turn of 4 s
    turns = [("A", start, start + 1.0) for start in range(10, 30, 2)]
    answer = side(("x", 0, 4), *(("y", start, end) for _, start, end in turns))
    assert errors(side(("A", 0, 4), *turns), answer, 0.5) == (3, 0, 0, 3)


def test_overlapping_turns_of_one_speaker_are_one() -> None:
    assert errors(side(("A", 0, 4), ("A", 3, 6), ("A", 5, 5)), side(("x", 0, 6))) == (6, 0, 0, 0)


def test_silent_sides() -> None:
    assert errors(side(("A", 0, 4)), []) == (4, 4, 0, 0)
    assert errors([], side(("x", 0, 4))) == (0, 0, 4, 0)
    assert diarization_errors([], side(("x", 0, 4))).rate is None
    with pytest.raises(UserError, match="has no times"):
        diarization_errors([SpeakerSegment("m1", "A", None, None, "x")], [])
