"""An importer, and a text style for its transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mtbi.corpus.importers import Record
from mtbi.corpus.manifest import Utterance
from mtbi.demo.world import DIGITS


def import_named(source: Path) -> Iterator[Record]:
    """`WORDS.flac` files, where the name is the transcript with `_` between its words."""
    for path in sorted(source.glob("*.flac")):
        yield Utterance(path.stem, str(path), path.stem.replace("_", " "))


def spell_digits(text: str) -> str:
    """Numerals as words: "7 2" → "seven two"."""
    return " ".join(DIGITS[int(word)] if word.isdecimal() else word for word in text.split())
