"""Writes segments as SegLST (JSON), STM, RTTM, or as SRT subtitles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mtbi import files
from mtbi.errors import UserError
from mtbi.scenes import read
from mtbi.scenes.segments import SpeakerSegment, number

SUFFIXES = {**read.SUFFIXES, ".srt": "srt"}


def write_segments(path: Path, segments: Sequence[SpeakerSegment]) -> None:
    """Write segments in the format of the name's ending: `.json` (SegLST), `.stm`, `.rttm` or `.srt`.

    STM and RTTM have the order of the segments, SRT that of their times. SRT leaves out segments without words. Raises
    UserError for another ending and for what the format cannot hold, OSError if the file cannot be written.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: the name must end in {', '.join(SUFFIXES)}")
    try:
        text = {"seglst": seglst, "stm": stm, "rttm": rttm, "srt": srt}[kind](segments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    files.write_text(path, text)


def record(segment: SpeakerSegment) -> dict[str, Any]:
    """A segment as an object of SegLST, without the keys that it has no value for."""
    values: dict[str, Any] = {"session_id": segment.session_id, "speaker": segment.speaker}
    if segment.start_time is not None:
        values["start_time"], values["end_time"] = (float(number(time)) for time in segment.span)
    if segment.words is not None:
        values["words"] = segment.words
    return {**values, **segment.more}


def seglst(segments: Iterable[SpeakerSegment]) -> str:
    """The text of a SegLST file, one segment a line."""
    lines = (json.dumps(record(segment), ensure_ascii=False) for segment in segments)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def stm(segments: Iterable[SpeakerSegment]) -> str:
    """The text of an STM file. Raises UserError for segments without words, and for names with spaces."""
    lines = []
    for segment in segments:
        if segment.words is None:
            raise UserError("STM needs words, and these segments have none; write RTTM or SegLST")
        start, end = map(number, segment.span)
        names = *_names(segment, "STM"), start, end, *filter(None, [str(segment.more.get("label", ""))])
        lines.append(" ".join([*names, *segment.words.split()]))
    return "".join(f"{line}\n" for line in lines)


def rttm(segments: Iterable[SpeakerSegment]) -> str:
    """The text of an RTTM file, which holds no words. Raises UserError for names with spaces."""
    lines = []
    for segment in segments:
        session, channel, speaker = _names(segment, "RTTM")
        start, end = segment.span
        lines.append(f"SPEAKER {session} {channel} {number(start)} {number(end - start)} <NA> <NA> {speaker} <NA> <NA>\n")
    return "".join(lines)


def _names(segment: SpeakerSegment, kind: str) -> tuple[str, str, str]:
    """Session, channel (1 if it is not known) and speaker. Raises UserError for one that is not a single word."""
    names = segment.session_id, str(segment.more.get("channel", 1)), segment.speaker
    for name in names:
        if len(name.split()) != 1 or name != name.strip():
            raise UserError(f"{kind} cannot hold the name {name!r}, which has a space; rename it, or write SegLST")
    return names


def srt(segments: Iterable[SpeakerSegment]) -> str:
    """The text of an SRT file: subtitles with the speaker in brackets. Raises UserError for several sessions."""
    spoken = sorted((segment for segment in segments if segment.words), key=lambda segment: segment.span)
    if len(sessions := {segment.session_id for segment in spoken}) != 1:
        known = f" ({', '.join(sorted(sessions)[:3])}, …); choose one with --session" if sessions else ""
        raise UserError(f"SRT holds the words of one session, not of {len(sessions)}{known}")
    blocks = []
    for count, segment in enumerate(spoken, 1):
        start, end = map(_clock, segment.span)
        blocks.append(f"{count}\n{start} --> {end}\n[{segment.speaker}] {' '.join((segment.words or '').split())}\n")
    return "\n".join(blocks)


def _clock(seconds: float) -> str:
    """`01:02:03,450`. A time before the recording's start becomes its start."""
    whole, thousandths = divmod(round(max(0.0, seconds) * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{thousandths:03}"
