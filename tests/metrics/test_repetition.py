from __future__ import annotations

import pytest

from mtbi.metrics.repetition import is_repetitive, repeated_units


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("It is a house. It is a house. It is a house. It is", 14),  # the last time is cut off
        ("Well: the the the the the the the the end", 8),
        ("1. Work hard\n2. Work hard\n3. Work hard\n4. Work hard", 12),  # the numbers of a list make no difference
        ("他说好。他说好。他说好。他说好。", 12),
        ("He said no, no, no, no", 0),  # too short to be a loop
        ("one two three four five, one two three four five, and then six", 0),  # twice only
        ("one two three four five six seven eight nine ten", 0),
        ("", 0),
    ],
)
def test_a_loop_is_a_phrase_said_three_times_in_a_row(text: str, units: int) -> None:
    assert repeated_units(text) == units
    assert is_repetitive(text) is (units > 0)


def test_how_often_is_a_setting() -> None:
    twice = "one two three four five six, one two three four five six"
    assert not is_repetitive(twice)
    assert is_repetitive(twice, times=2)


def test_long_phrases_are_found_too() -> None:
    phrase = " ".join(f"word{number}" for number in range(30))
    assert is_repetitive(f"{phrase} {phrase} {phrase}")
