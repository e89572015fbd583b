"""Who says what when: the segments of a scene, and numbers as the formats write them.

A scene is a recording with several speakers. A segment is a stretch of one speaker. The names are those of SegLST, the format
of meeteval (von Neumann et al. 2023, arXiv 2307.11394).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from mtbi.errors import UserError


@dataclass(frozen=True)
class SpeakerSegment:
    """A stretch of one speaker in one recording.

    Times are seconds from the start of the recording. Both are None where a system gives words and speakers only. `words` is
    None where the source holds no words, as in RTTM, and empty where it says that nothing was said. `more` holds what else the
    source says, such as SegLST's further keys.

    Raises UserError for an empty session or speaker, for one time without the other, for a time that is not finite, and for an
    end before the start.
    """

    session_id: str
    speaker: str
    start_time: float | None
    end_time: float | None
    words: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.session_id.strip() and self.speaker.strip()):
            raise UserError("the session or the speaker is empty")
        if (self.start_time is None) != (self.end_time is None):
            raise UserError("a segment needs both start_time and end_time, or neither")
        if self.start_time is not None and self.end_time is not None:
            if not (math.isfinite(self.start_time) and math.isfinite(self.end_time)):
                raise UserError(f"{self.start_time} to {self.end_time}: times must be finite numbers of seconds")
            if self.end_time < self.start_time:
                raise UserError(
                    f"the segment ends at {number(self.end_time)} s, before it starts at {number(self.start_time)} s; are the "
                    "columns in order, and is the second one an end, not a duration?"
                )

    @property
    def span(self) -> tuple[float, float]:
        """Start and end in seconds. Raises UserError for a segment without times."""
        if self.start_time is None or self.end_time is None:
            raise UserError(f"a segment of {self.speaker} in {self.session_id} has no times")
        return self.start_time, self.end_time


@dataclass(frozen=True)
class SegmentFile:
    """The segments of a file, in its order; at least one.

    `skipped` counts what the format allows and nothing here uses, by name, such as RTTM's other types of lines.
    """

    path: Path
    format: str
    segments: list[SpeakerSegment]
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def has_words(self) -> bool:
        """Whether all segments have words. (A reader refuses files where only some have.)"""
        return all(segment.words is not None for segment in self.segments)

    @property
    def has_times(self) -> bool:
        """Whether all segments have times."""
        return all(segment.start_time is not None for segment in self.segments)

    def sessions(self) -> dict[str, list[SpeakerSegment]]:
        """The segments of each session, sessions in the file's order."""
        return by_session(self.segments)


def by_session(segments: Iterable[SpeakerSegment]) -> dict[str, list[SpeakerSegment]]:
    """The segments of each session, sessions in the order of their first segment."""
    return _grouped(segments, attrgetter("session_id"))


def by_speaker(segments: Iterable[SpeakerSegment]) -> dict[str, list[SpeakerSegment]]:
    """The segments of each speaker, speakers in the order of their first segment."""
    return _grouped(segments, attrgetter("speaker"))


def _grouped(segments: Iterable[SpeakerSegment], name_of: Callable[[SpeakerSegment], str]) -> dict[str, list[SpeakerSegment]]:
    groups: dict[str, list[SpeakerSegment]] = {}
    for segment in segments:
        groups.setdefault(name_of(segment), []).append(segment)
    return groups


def number(value: float) -> str:
    """Seconds with at most six decimals, and without an exponent: `1.44`, not `1.4400000000000013`."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
