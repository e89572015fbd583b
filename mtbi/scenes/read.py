"""Reads files of segments: SegLST (JSON), STM and RTTM.

SegLST is a JSON list of objects with `session_id`, `speaker`, `start_time`, `end_time` and `words`; further keys are kept. A
line of STM is `FILE CHANNEL SPEAKER START END [<LABEL>] WORDS…`, a line of RTTM is `SPEAKER FILE CHANNEL START DURATION <NA>
<NA> NAME <NA> [<NA>]` (NIST, RT-09 evaluation plan). Comments begin with `;;`. The channel is kept, and sessions are told apart
by their name alone, as in meeteval.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mtbi.errors import UserError
from mtbi.scenes.segments import SegmentFile, SpeakerSegment

SUFFIXES = {".json": "seglst", ".stm": "stm", ".rttm": "rttm"}
#: The label of an STM line, which stands before its words: `<o,f0,male>` or `<NA>`. Marks such as `<unk>` are words.
_LABEL = re.compile(r"<(?:NA|[^<>\s]*,[^<>\s]*)>")
#: The words of STM lines that the scorers of NIST leave out.
IGNORED = "ignore_time_segment_in_scoring"
_RTTM_TYPES = {
    "SPEAKER", "SPKR-INFO", "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP",
    "SU", "CB", "A/P",
}  # fmt: skip
_SPACE = re.compile(r"\s*")
_KEYS = ("session_id", "speaker", "start_time", "end_time", "words")


def read_segments(path: Path) -> SegmentFile:
    """The segments of a SegLST, STM or RTTM file.

    The name's ending decides the format, else the first line. Raises UserError with file and line for what the format does
    not allow, for a file without segments, and where only some segments have words or times. Raises OSError if the file cannot
    be read.
    """
    text = _text(path)
    kind = SUFFIXES.get(path.suffix.lower()) or _guess(text)
    skipped: Counter[str] = Counter()
    reader = {"seglst": _seglst, "stm": _stm, "rttm": _rttm}[kind]
    numbered = list(reader(path, text, skipped))
    if not numbered:
        others = f" (it has other lines: {_counted(skipped)})" if skipped else ""
        raise UserError(f"{path}: no segment in this {kind} file{others}; a list of segments is needed")
    for name in ("words", "start_time"):
        lacking = [line for line, segment in numbered if getattr(segment, name) is None]
        if lacking and len(lacking) < len(numbered):
            raise UserError(f"{path}:{lacking[0]}: no {name}, which other segments of the file have; give it for all or none")
    return SegmentFile(path, kind, [segment for _, segment in numbered], skipped)


@contextmanager
def _at(path: Path, line: int) -> Iterator[None]:
    """Puts file and line before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}:{line}: {error}") from error


def _counted(counts: Counter[str]) -> str:
    """`2 SPKR-INFO, 1 NOSCORE`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}; convert the file with iconv") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; a SegLST (JSON), STM or RTTM file is needed")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The number and the text of every line that is neither empty nor a comment."""
    for line, content in enumerate(text.split("\n"), 1):
        if (stripped := content.strip()) and not stripped.startswith(";"):
            yield line, stripped


def _guess(text: str) -> str:
    """The format of a text without a telling file name."""
    if text.lstrip()[0] in "[{":
        return "seglst"
    first = next((content.split()[0] for _, content in _lines(text)), "")
    return "rttm" if first in _RTTM_TYPES else "stm"


def _seconds(text: str, name: str) -> float:
    """A time that is written as text. Raises UserError for what is no number."""
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"the {name} {text!r} is not a number of seconds") from error


class StmLine(NamedTuple):
    """The fields of an STM line as they are written."""

    recording: str
    channel: str
    speaker: str
    start: str
    end: str
    label: str  #: such as `<o,f0,male>`; empty without one
    words: str

    @property
    def is_ignored(self) -> bool:
        """Whether the scorers of NIST leave the line out."""
        return self.words.lower() == IGNORED


def split_stm(line: str) -> StmLine:
    """The fields of an STM line that is no comment. Raises UserError where there are too few."""
    fields = line.split(maxsplit=5)
    if len(fields) < 5:
        raise UserError(f"{len(fields)} fields; an STM line is FILE CHANNEL SPEAKER START END WORDS…")
    recording, channel, speaker, start, end = fields[:5]
    words = fields[5].strip() if len(fields) > 5 else ""
    label = found[0] if (found := _LABEL.match(words)) else ""
    return StmLine(recording, channel, speaker, start, end, label, words[len(label) :].strip())


def _stm(path: Path, text: str, skipped: Counter[str]) -> Iterator[tuple[int, SpeakerSegment]]:
    """The segments of an STM file with their lines."""
    for line, content in _lines(text):
        with _at(path, line):
            stm = split_stm(content)
            times = _seconds(stm.start, "start"), _seconds(stm.end, "end")
            more = {"channel": stm.channel} | ({"label": stm.label} if stm.label else {})
            segment = SpeakerSegment(stm.recording, stm.speaker, *times, stm.words, more)
        if stm.is_ignored:
            skipped[IGNORED] += 1
        else:
            yield line, segment


def _rttm(path: Path, text: str, skipped: Counter[str]) -> Iterator[tuple[int, SpeakerSegment]]:
    """The segments of an RTTM file with their lines. Lines of other types than SPEAKER are counted by type."""
    for line, content in _lines(text):
        fields = content.split()
        with _at(path, line):
            if fields[0] != "SPEAKER":
                if fields[0] not in _RTTM_TYPES:
                    raise UserError(f"{fields[0]!r} is no type of an RTTM line, such as SPEAKER; is this file RTTM?")
                skipped[fields[0]] += 1
                continue
            if len(fields) not in (9, 10):
                raise UserError(
                    f"{len(fields)} fields; an RTTM line has 9 or 10: SPEAKER FILE CHANNEL START DURATION <NA> <NA> NAME <NA>"
                )
            start, duration = _seconds(fields[3], "start"), _seconds(fields[4], "duration")
            if duration < 0:
                raise UserError(f"the duration {fields[4]} is negative")
            segment = SpeakerSegment(fields[1], fields[7], start, round(start + duration, 9), None, {"channel": fields[2]})
        yield line, segment


def _seglst(path: Path, text: str, skipped: Counter[str]) -> Iterator[tuple[int, SpeakerSegment]]:
    """The segments of a SegLST file with the lines where they begin."""
    for line, record in _json_items(path, text):
        with _at(path, line):
            if not isinstance(record, dict):
                raise UserError(f"{record!r:.60} is not a segment; a SegLST file is a list of objects with {', '.join(_KEYS)}")
            segment = _segment_of(record)
        yield line, segment


def _segment_of(record: dict[str, Any]) -> SpeakerSegment:
    """One object of SegLST. Raises UserError for missing keys and wrong types."""
    session, speaker = (_name_of(record, key) for key in ("session_id", "speaker"))
    start, end = (_time_of(record, key) for key in ("start_time", "end_time"))
    words = record.get("words")
    if not isinstance(words, str | None):
        raise UserError(f"words must be one text, not {words!r:.60}")
    return SpeakerSegment(session, speaker, start, end, words, {key: record[key] for key in record if key not in _KEYS})


def _name_of(record: dict[str, Any], key: str) -> str:
    """A name; some systems number their speakers."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{key} must be text, not {value!r:.60}" if key in record else f"no {key}")
    return str(value)


def _time_of(record: dict[str, Any], key: str) -> float | None:
    """A time in seconds, as a number or as text; None where there is none."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise UserError(f"{key} must be a number of seconds, not {value!r:.60}")
    return _seconds(value, key) if isinstance(value, str) else None if value is None else float(value)


def _json_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list, each with its line. Raises UserError for what is no JSON list, at the line of the mistake."""

    def space(position: int) -> int:
        return _SPACE.match(text, position).end()  # type: ignore[union-attr]

    def wrong(position: int, what: str) -> UserError:
        return UserError(f"{path}:{text.count(chr(10), 0, position) + 1}: {what}; a SegLST file is one JSON list of segments")

    decoder, position = json.JSONDecoder(), space(0)
    if text[position] != "[":
        raise wrong(position, f"the file begins with {text[position]!r}, not with '['")
    position, line, counted = space(position + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            item, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise wrong(error.pos, f"not JSON: {error.msg}") from error
        yield line, item
        position = space(position)
        if text[position : position + 1] == ",":
            if text[(position := space(position + 1)) : position + 1] == "]":
                raise wrong(position, "not JSON: ',' before the end of the list")
        elif text[position : position + 1] != "]":
            raise wrong(position, "not JSON: ',' or ']' is missing")
    if space(position + 1) != len(text):
        raise wrong(space(position + 1), "text after the list")
