"""The words of several talkers as one text, with a separator where the talker changes, and back again.

Serialised output training (Kanda et al. 2020, arXiv 2003.12687) teaches a system to write such a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtbi.errors import UserError
from mtbi.scenes.segments import SpeakerSegment, by_speaker
from mtbi.text_units import nfc

SEPARATOR = "<sc>"  #: the usual sign of a speaker change


def parse_separator(text: str) -> str:
    """A separator in NFC, without spaces at its ends. Raises UserError for one that is empty or has a space inside."""
    separator = nfc(text.strip())
    if len(separator.split()) != 1:
        raise UserError(f"--separator {text!r}: a separator is a sign or a word without spaces, such as {SEPARATOR}")
    return separator


def serialise(parts: Iterable[str], separator: str = SEPARATOR) -> str:
    """`["how are you", "fine"]` as `how are you <sc> fine`. Parts without words are left out.

    `separator` is one of `parse_separator`. Raises UserError where a part holds it, because the text could not be cut again.
    """
    texts = [text for part in parts if (text := " ".join(nfc(part).split()))]
    if bad := next((text for text in texts if separator in text), None):
        raise UserError(f"the words {bad!r:.80} hold the separator {separator!r}; choose another one with --separator")
    return f" {separator} ".join(texts)


def deserialise(text: str, separator: str = SEPARATOR) -> list[str]:
    """The parts of a text with separators: the inverse of `serialise`. Parts without words are left out."""
    return [words for part in nfc(text).split(separator) if (words := " ".join(part.split()))]


def by_start(segments: Iterable[SpeakerSegment]) -> list[SpeakerSegment]:
    """The segments in the order of their starts; those of one start as they stood."""
    return sorted(segments, key=lambda segment: segment.span[0])


def turns(segments: Sequence[SpeakerSegment]) -> list[str]:
    """The words of each turn, in the order of the segments' starts. Segments of one speaker in a row are one turn."""
    found: list[list[str]] = []
    before = None
    for segment in by_start(segments):
        if segment.speaker != before:
            found.append([])
        found[-1].append(segment.words or "")
        before = segment.speaker
    return [" ".join(words) for words in found]


def talkers(segments: Sequence[SpeakerSegment]) -> dict[str, str]:
    """All words of each speaker in a row, speakers in the order of their first starts."""
    groups = by_speaker(by_start(segments))
    return {speaker: " ".join(segment.words or "" for segment in own) for speaker, own in groups.items()}
