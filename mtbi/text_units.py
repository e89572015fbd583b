"""The units of a transcript: what is aligned, counted, and given to the LLM as sound or as text.

A unit is a word where the script puts spaces between words. In scripts without them (Han, kana, Thai, …) it is an extended
grapheme cluster, what a reader takes for one character (Unicode Standard Annex #29). A transcript may mix both.

Punctuation belongs to a unit beside it. `join` gives the text of the units back: a unit starts with a space only where the text
has one that the script alone does not call for, as between "用" and "iPhone" in "用 iPhone".
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
#: A cluster, with the vowels before it that are written first but spoken after it (Thai เ, Lao ໄ).
_CLUSTER = regex.compile(r"\p{Logical_Order_Exception}*\X")


def nfc(text: str) -> str:
    """The text in Unicode's normalisation form C: "é" is one code point, however it was typed."""
    return unicodedata.normalize("NFC", text)


def count(text: str) -> int:
    """How many units a text has."""
    return len(units(text))


def unspaced(text: str) -> bool:
    """Whether the text holds a letter of a script without spaces."""
    return not text.isascii() and UNSPACED.search(text) is not None


def units(text: str) -> list[str]:
    """The units of a text, in NFC. For text with spaces between words these are `text.split()`."""
    words = nfc(text).split()
    if not unspaced(text):
        return words
    found: list[str] = []
    for word in words:
        first, *others = _cut(word)
        if found and not _needs_space(found[-1], first):
            first = f" {first}"
        found += [first, *others]
    return found


def _cut(word: str) -> list[str]:
    """The units of a text without spaces."""
    if not unspaced(word):
        return [word]
    found: list[str] = []
    waiting = ""  # opening brackets and quotes, and punctuation at the start: they belong to what comes next
    for cluster in _CLUSTER.findall(word):
        letter = _LETTER.search(cluster)
        if _OPENING.match(cluster) or not (letter or found):
            waiting += cluster
        elif found and not letter and not waiting:
            found[-1] += cluster
        elif found and _needs_space(found[-1], waiting + cluster):  # inside a word of a script with spaces
            found[-1] += waiting + cluster
            waiting = ""
        else:
            found.append(waiting + cluster)
            waiting = ""
    return [*found[:-1], found[-1] + waiting] if found else [waiting]


def _needs_space(left: str, right: str) -> bool:
    """Whether the scripts of two neighbours put a space between them."""
    return not (unspaced(left) or unspaced(right))


def pieces(units: Sequence[str]) -> list[str]:
    """The units with the spaces before them: together they are the text."""
    found = [units[0].lstrip()] if units else []
    for left, right in pairwise(units):
        found.append(f" {right}" if _needs_space(left, right) and not right.startswith(" ") else right)
    return found


def join(units: Sequence[str]) -> str:
    """The text of the units."""
    return "".join(pieces(units))
