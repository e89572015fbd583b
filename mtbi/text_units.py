"""The units of a transcript. Units are aligned and counted, and interleaving gives each one to the LLM as sound or as text.

In scripts with spaces between words a unit is a word. In scripts without them (Han, kana, Thai, …) a unit is an extended
grapheme cluster: one character to a reader (Unicode Standard Annex #29). A transcript may mix both.

Punctuation belongs to a unit beside it. `join` restores the text from its units. A unit starts with a space only where the text
has a space that the scripts alone do not require, as between "用" and "iPhone" in "用 iPhone".
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import regex

#: A letter, digit or sign of a script that is written without spaces between words.
UNSPACED = regex.compile(
    r"(?=[\p{L}\p{N}\p{M}])(?:\p{scx=Han}|\p{scx=Hiragana}|\p{scx=Katakana}|\p{Bopomofo}|\p{Thai}|\p{Lao}|\p{Khmer}|\p{Myanmar}"
    r"|\p{Tibetan}|\p{Tai_Le}|\p{New_Tai_Lue}|\p{Tai_Tham}|\p{Tai_Viet}|\p{Javanese}|\p{Balinese})"
)
_LETTER = regex.compile(r"[\p{L}\p{N}\p{M}]")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]")
#: A cluster with the vowels that are written before it but spoken after it (Thai เ, Lao ໄ).
_CLUSTER = regex.compile(r"\p{Logical_Order_Exception}*\X")


def nfc(text: str) -> str:
    """The text in Unicode's normalisation form C: "é" is one code point, however it was typed."""
    return unicodedata.normalize("NFC", text)


def count(text: str) -> int:
    """The number of units of a text."""
    return len(units(text))


def unspaced(text: str) -> bool:
    """Whether the text holds a letter of a script without spaces."""
    return not text.isascii() and UNSPACED.search(text) is not None


def units(text: str) -> list[str]:
    """The units of a text, in NFC. For text with spaces between words they are `text.split()`."""
    words = nfc(text).split()
    if not unspaced(text):
        return words
    result: list[str] = []
    for word in words:
        first, *others = _cut(word)
        if result and not _needs_space(result[-1], first):
            first = f" {first}"
        result += [first, *others]
    return result


def _cut(word: str) -> list[str]:
    """The units of a text without spaces."""
    if not unspaced(word):
        return [word]
    result: list[str] = []
    waiting = ""  # opening brackets and quotes, and punctuation at the start: they belong to the next unit
    for cluster in _CLUSTER.findall(word):
        letter = _LETTER.search(cluster)
        if _OPENING.match(cluster) or not (letter or result):
            waiting += cluster
        elif result and not letter and not waiting:
            result[-1] += cluster
        elif result and _needs_space(result[-1], waiting + cluster):  # inside a word of a script with spaces
            result[-1] += waiting + cluster
            waiting = ""
        else:
            result.append(waiting + cluster)
            waiting = ""
    return [*result[:-1], result[-1] + waiting] if result else [waiting]


def _needs_space(left: str, right: str) -> bool:
    """Whether the scripts of two neighbours put a space between them."""
    return not (unspaced(left) or unspaced(right))


def pieces(units: Sequence[str]) -> list[str]:
    """The units with the spaces before them. Joined, they are the text."""
    texts = [units[0].lstrip()] if units else []
    for left, right in pairwise(units):
        texts.append(f" {right}" if _needs_space(left, right) and not right.startswith(" ") else right)
    return texts


def join(units: Sequence[str]) -> str:
    """The text of the units."""
    return "".join(pieces(units))
