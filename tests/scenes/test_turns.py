from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from mtbi.errors import UserError
from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.turns import MEETINGS, TurnStatistics, draw_speakers, draw_starts, fit


def scene(session: str, *turns: tuple[str, float, float]) -> list[SpeakerSegment]:
    return [SpeakerSegment(session, speaker, start, end) for speaker, start, end in turns]


def test_statistics_are_those_of_neighbouring_turns() -> None:
    first = scene("m1", ("B", 6, 8), ("A", 0, 2), ("A", 3, 5), ("A", 7.5, 9))
    found = fit([*first, *scene("m2", ("A", 0, 4), ("B", 3, 6), ("A", 6, 7))])
    assert found == TurnStatistics(4 / 5, 2 / 4, pauses=(1,), gaps=(0, 1), overlaps=(0.5, 1))


def test_a_monologue_has_no_statistics() -> None:
    with pytest.raises(UserError, match="no speaker follows another one"):
        fit(scene("m1", ("A", 0, 1), ("A", 2, 3)))


def test_every_speaker_has_a_turn() -> None:
    for seed in range(20):
        order = draw_speakers(MEETINGS, "abc", 5, Random(seed))
        assert (len(order), set(order[:3])) == (5, set("abc"))
    assert draw_speakers(MEETINGS, "a", 3, Random(0)) == ["a"] * 3


def test_own_turns_never_overlap_and_at_most_two_speak_at_once() -> None:
    crowded = TurnStatistics(0.9, 1.0, pauses=(0, 1), gaps=(), overlaps=(1, 9))
    for seed in range(50):
        draw = Random(seed)
        turns = [(speaker, draw.uniform(0.3, 5)) for speaker in draw_speakers(crowded, "abcd", 12, draw)]
        starts = draw_starts(crowded, turns, draw)
        assert starts == sorted(starts)
        spans = [(start, start + length, speaker) for start, (speaker, length) in zip(starts, turns, strict=True)]
        for time, _, _ in spans:
            speaking = [speaker for start, end, speaker in spans if start <= time < end - 1e-9]
            assert len(speaking) == len(set(speaking)) <= 2


def test_simulated_turns_have_the_statistics_of_the_model() -> None:
    draw = Random(0)
    turns = [(speaker, draw.uniform(4, 8)) for speaker in draw_speakers(MEETINGS, "ab", 3000, draw)]
    starts = draw_starts(MEETINGS, turns, draw)
    made = [SpeakerSegment("m", who, start, start + length) for start, (who, length) in zip(starts, turns, strict=True)]
    found = fit(made)
    assert found.change == pytest.approx(MEETINGS.change, abs=0.03)
    assert found.overlap == pytest.approx(MEETINGS.overlap, abs=0.04)
    for name in ("pauses", "gaps"):
        lengths, expected = getattr(found, name), getattr(MEETINGS, name)
        assert lengths[len(lengths) // 2] == pytest.approx(expected[4], abs=0.25)
    assert all(before <= after for before, after in pairwise(found.overlaps))
