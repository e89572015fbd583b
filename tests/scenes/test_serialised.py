from __future__ import annotations

import pytest

from mtbi.errors import UserError
from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.serialised import deserialise, parse_separator, serialise, talkers, turns

PARTS = [
    ["how are you", "fine", "good"],
    ["a  b\nc", "", "ja, später"],
    ["你好", "用 iPhone"],
    ["e\u0301te\u0301"],
    [],
]


@pytest.mark.parametrize("separator", ["<sc>", "|", "§§", "[turn]"])
@pytest.mark.parametrize("parts", PARTS)
def test_cutting_is_the_inverse_of_serialising(parts: list[str], separator: str) -> None:
    text = serialise(parts, separator)
    cut = deserialise(text, separator)
    assert cut == [" ".join(part.replace("e\u0301", "é").split()) for part in parts if part]
    assert serialise(cut, separator) == text


def test_what_a_system_writes_is_cut_whatever_its_spaces() -> None:
    assert deserialise("<sc>one two<sc> three <sc><sc>\nfour <sc>") == ["one two", "three", "four"]
    assert deserialise(" <sc> ") == deserialise("") == []
    assert deserialise("no separator at all") == ["no separator at all"]


def test_words_that_hold_the_separator_are_refused() -> None:
    with pytest.raises(UserError, match=r"the words 'x <sc> y' hold the separator '<sc>'"):
        serialise(["x <sc> y", "z"])
    with pytest.raises(UserError, match="hold the separator 'and'"):
        serialise(["sand"], "and")


def test_a_separator_is_one_word() -> None:
    assert parse_separator(" <sc> ") == "<sc>"
    for wrong in ("", "  ", "a b", "a\nb"):
        with pytest.raises(UserError, match="a separator is a sign or a word without spaces"):
            parse_separator(wrong)


def test_segments_of_one_speaker_in_a_row_are_one_turn() -> None:
    said = [("ann", 3.0, "three"), ("ann", 0.0, "one"), ("bob", 1.0, "two"), ("ann", 4.0, "four"), ("bob", 5.0, "five")]
    segments = [SpeakerSegment("s", speaker, start, start + 0.5, words) for speaker, start, words in said]
    assert turns(segments) == ["one", "two", "three four", "five"]
    assert list(talkers(segments).items()) == [("ann", "one three four"), ("bob", "two five")]
