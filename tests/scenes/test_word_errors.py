"""All numbers are computed by hand."""

from __future__ import annotations

import random

import pytest

from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.word_errors import CP, ORC, TCORC, TCP, TranscriptErrors, _cells, named_errors, transcript_errors

MEASURES = (CP, TCP, ORC, TCORC)


def side(*turns: tuple[str, float | None, str]) -> list[SpeakerSegment]:
    """Segments of one session from speaker, start and words; each lasts 2 seconds."""
    return [SpeakerSegment("m1", who, start, None if start is None else start + 2, words) for who, start, words in turns]


REFERENCE = side(("A", 0, "one two three four"), ("B", 4, "five six"))


def errors(hypothesis: list[SpeakerSegment], collar: float = 5.0) -> dict[str, int]:
    """The errors of a hypothesis by each measure."""
    found = {measure: transcript_errors(measure, REFERENCE, hypothesis, collar) for measure in MEASURES}
    assert all(one is not None and one.counts.words == 6 for one in found.values())
    return {measure: one.counts.errors for measure, one in found.items() if one is not None}


def test_a_wrong_word_is_wrong_by_every_measure() -> None:
    assert errors(side(("x", 0, "one two three four"), ("y", 4, "five nine"))) == dict.fromkeys(MEASURES, 1)


def test_a_wrong_speaker_is_two_errors_a_word_for_cp_and_none_for_orc() -> None:
    found = errors(side(("x", 0, "one two three four"), ("x", 4, "five six")))
    assert found == {CP: 4, TCP: 4, ORC: 0, TCORC: 0}
    scored = transcript_errors(CP, REFERENCE, side(("x", 0, "one two three four"), ("x", 4, "five six")), 5.0)
    assert scored is not None
    assert scored.counts == TranscriptErrors(6, 0, 2, 2)
    assert scored.speakers == (("A", "x"), ("B", None))


def test_words_at_a_wrong_time_are_wrong_beyond_the_collar() -> None:
    late = side(("x", 0, "one two three four"), ("y", 34, "five six"))
    assert errors(late) == {CP: 0, TCP: 4, ORC: 0, TCORC: 4}
    assert errors(late, collar=40) == dict.fromkeys(MEASURES, 0)


def test_sides_and_segments_without_words() -> None:
    assert errors([]) == errors(side(("x", 0, ""))) == dict.fromkeys(MEASURES, 6)
    assert errors(side(("x", 0, "one two three four"), ("z", 1, ""), ("y", 4, "five six"))) == dict.fromkeys(MEASURES, 0)
    for measure in MEASURES:
        found = transcript_errors(measure, [], REFERENCE, 5.0)
        assert found is not None
        assert (found.counts, found.counts.rate) == (TranscriptErrors(insertions=6), None)


def test_without_times_segments_stand_in_their_order() -> None:
    said = side(("y", None, "five six"), ("x", None, "one two"), ("x", None, "three four"))
    for measure in (CP, ORC):
        found = transcript_errors(measure, REFERENCE, said, 5.0)
        assert found is not None
        assert found.counts.errors == 0


def test_measures_have_their_order_in_random_sessions() -> None:
    draw = random.Random(0)

    def turns() -> list[SpeakerSegment]:
        words = [" ".join(draw.choices("uvwxyz", k=draw.choice([0, 1, 2, 5]))) for _ in range(draw.randint(1, 7))]
        return side(*((draw.choice("ABCD"), round(draw.uniform(0, 20), 2), text) for text in words))

    for _ in range(40):
        reference, hypothesis = turns(), turns()
        found = [transcript_errors(measure, reference, hypothesis, 5.0) for measure in MEASURES]
        cp, tcp, orc, tcorc = (one.counts.errors for one in found if one is not None)
        assert orc <= cp <= tcp
        assert orc <= tcorc


def test_long_sessions_are_scored_greedily() -> None:
    meeting = side(*((f"{turn % 4}", 3.0 * turn, f"a{turn} b{turn} c{turn} d{turn} e{turn}") for turn in range(48)))
    exact, greedy = (transcript_errors(measure, meeting, meeting, 5.0) for measure in (TCORC, ORC))
    assert exact is not None
    assert greedy is not None
    assert (exact.greedy, greedy.greedy) == (False, True)
    assert exact.counts == greedy.counts == TranscriptErrors(240)


def test_the_table_of_orc_wer_is_counted() -> None:
    reference = side(("A", 0, "a b c"), ("B", 20, "d"))
    hypothesis = side(("x", 0, "a b"), ("x", 10, "c"), ("y", 20, "d"))
    assert _cells(reference, hypothesis, None) == (3 + 1) * (3 + 1) * (1 + 1)
    assert _cells(reference, hypothesis, 5.0) == 3 * (2 + 1) * 1 + 1 * 1 * (1 + 1)
    assert _cells(reference, hypothesis, 8.0) == 3 * (3 + 1) * 1 + 1 * (1 + 1) * (1 + 1)  # to 2 + 8, and from 20 - 8


def test_more_speakers_than_a_measure_takes_have_no_score() -> None:
    crowd = side(*((f"s{number}", number, "x") for number in range(21)))
    assert [transcript_errors(measure, crowd, crowd, 5.0) for measure in MEASURES] == [None] * 4
    few = [transcript_errors(measure, crowd[:11], crowd[:11], 5.0) for measure in MEASURES]
    assert [one is None for one in few] == [False, False, True, True]


def test_names_count_for_sa_wer() -> None:
    assert named_errors(REFERENCE, REFERENCE[::-1]) == TranscriptErrors(6)
    exchanged = side(("B", 0, "one two three four"), ("A", 4, "five six"))
    assert named_errors(REFERENCE, exchanged) == TranscriptErrors(6, 4, 2, 2)
    assert named_errors(REFERENCE, side(("C", 0, "one"))).rate == pytest.approx(7 / 6)
