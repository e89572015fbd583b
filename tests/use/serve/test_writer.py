from __future__ import annotations

import pytest
import torch

from mtbi.use.serve.writer import Writer


class Letters:
    """A tokenizer of one UTF-8 byte a token, as byte-level ones fall back to."""

    def decode(self, tokens: list[int], **_: object) -> str:
        return bytes(tokens).decode(errors="replace")


def write(text: str, stops: tuple[str, ...] = (), end: bool = True) -> tuple[Writer, list[str]]:
    """A writer that got a text byte by byte until it was full, and the pieces that it gave out."""
    pieces: list[str] = []
    writer = Writer(Letters(), [7, 0], stops, pieces.append)
    writer.put(torch.empty(1, 0, dtype=torch.long))  # the prompt
    for token in [*text.encode(), *([0] if end else [])]:
        if writer.full():
            break
        writer.put(torch.tensor([token]))
    writer.end()
    return writer, pieces


TEXTS = [
    "seven five three",
    "  two  words \n and a line\n",
    "日本語です。そう",
    "สวัสดี ครับ",
    "a 👩‍👩‍👧 b",
    "नमस्ते दुनिया",
    "",
    "x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(text: str) -> None:
    writer, pieces = write(text)
    assert "".join(pieces) == writer.text == text.strip()
    assert "\ufffd" not in "".join(pieces)
    assert (writer.finish, len(writer.tokens)) == ("stop", len(text.encode()))


def test_words_come_when_the_next_begins() -> None:
    assert write("one two three")[1] == ["one", " two", " three"]
    assert len(write("日本語")[1]) == 3


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one"),
        ("one two three", ("wo th", "three"), "one t"),
        ("aab aac", ("aac",), "aab"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one", ("one",), ""),
        ("日本語です", ("語で",), "日本"),
        ("one tw", ("two",), "one tw"),
        ("b a", ("a", "b a"), ""),
    ],
)
def test_nothing_of_a_stop_text_is_given_out(text: str, stops: tuple[str, ...], expected: str) -> None:
    writer, pieces = write(text, stops)
    assert "".join(pieces) == writer.text == expected
    assert writer.finish == "stop"


def test_an_answer_that_is_cut_off_has_no_end() -> None:
    writer, pieces = write("one two", end=False)
    assert ("".join(pieces), writer.finish, len(writer.tokens)) == ("one two", "length", 7)
    assert not writer.full()
    writer.abandoned.set()
    assert writer.full()
