"""The keys of a manifest's JSON object: other names of our fields, and keys that choose a part of a recording."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mtbi.errors import UserError
from mtbi.text_units import nfc

#: Words in keys that choose a part of a recording ("offset", "clip_start", "endTimeMs"), and their role.
ROLES = dict.fromkeys(("offset", "start", "begin", "onset", "stime", "tstart", "tmin", "xmin", "t0"), "start")
ROLES |= dict.fromkeys(("end", "stop", "etime", "tend", "tmax", "xmax", "t1"), "end") | dict.fromkeys(
    ("duration", "dur"), "duration"
)
FILLERS = {"audio", "chunk", "clip", "cut", "seg", "segment", "sound", "t", "time", "utt", "utterance", "wav"}
UNITS = dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0)
UNITS |= dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"), 0.001)
UNITS |= dict.fromkeys(("frame", "frames", "sample", "samples"), math.nan)  # their length depends on the file
COUNTS = {"num_frames", "num_samples", "n_frames", "n_samples"}
#: Keys whose value, if it is two numbers, is a start and an end in seconds.
SPANS = {"interval", "segment", "span", "start_end", "time", "timestamp", "timestamps"}
#: A given duration may differ from the measured duration by this many seconds, or by this share of it.
TOLERANCE_SECONDS, TOLERANCE_SHARE = 0.5, 0.1
OVERLAP_SECONDS = 0.05  #: of neighbouring words: other aligners round their times

Fields = dict[str, Any]


def rename(record: Mapping[str, Any], aliases: Mapping[str, str]) -> Fields:
    """The record with our names for the fields, without null values.

    Where a record has `text` and an alias of it, the alias is kept as another key. Raises UserError where two keys of another
    field contradict each other.
    """
    values = {str(key): value for key, value in record.items() if value is not None and str(key) not in aliases}
    source: dict[str, str] = {name: name for name in values}
    for key, name in aliases.items():
        value = record.get(key)
        if value is None:
            continue
        if values.get(name) in (None, ""):
            values[name], source[name] = value, key
        elif values[name] != value and name == "text" and source[name] == "text":
            values[key] = value
        elif values[name] != value:
            raise UserError(f"bad record: the keys {source[name]} and {key} contradict each other")
    return values


def of_segment(values: Fields) -> Fields:
    """The fields with `start_s` and `duration_s` in place of all keys that choose a part of a recording.

    There is no `start_s` where nothing says that the record begins later or ends earlier than the recording. An end without a
    start becomes the duration, which is compared with the recording later. A start without a length is only understood as
    `start_s` or NeMo's `offset`, and lasts to the end: in other keys it may be the place in a recording that was cut long ago.
    Raises UserError for keys that contradict each other, and for a start or a length that cannot be understood.
    """
    values = dict(values)
    found: dict[str, list[tuple[str, float]]] = {"start": [], "end": [], "duration": []}
    for key, role, seconds in list(_choices(values)):
        values.pop(key, None)
        if math.isnan(seconds) or math.isinf(seconds) or (role == "start" and seconds < 0):
            raise UserError(f"{key} given: no part of a recording in seconds; give start_s and duration_s")
        found[role].append((key, seconds))
    key, start = found["start"][0] if found["start"] else ("", 0.0)
    lengths = [(key, seconds - start) for key, seconds in found["end"]] + found["duration"]
    if "duration_s" not in values and lengths:
        values["duration_s"] = round(lengths[0][1], 6)
    contradiction = [other for other, seconds in found["start"] if abs(seconds - start) > 0.001]
    given = _number(values.get("duration_s"))
    contradiction += [other for other, seconds in lengths if not same_duration(seconds, given)]
    if contradiction:
        raise UserError(f"{contradiction[0]} given: it contradicts {key or 'duration_s'}; keep one start and one length")
    if found["start"] and (given > 0 or (lengths and given <= 0)):
        if given <= 0:
            raise UserError(f"{key} given: the record ends before it begins")
        if math.isinf(given):
            raise UserError(
                "duration_s given: a segment without end; leave duration_s out where it lasts to the end of the file"
            )
        values["start_s"] = start
    elif start > 0:
        if not {"start_s", "offset"} & {other for other, _ in found["start"]}:
            raise UserError(f"{key} given: a start without an end or a duration; give start_s and duration_s")
        values["start_s"] = start
    return values


def _choices(values: Fields) -> Iterator[tuple[str, str, float]]:
    """Each key that may choose a part of a recording, its role, and its seconds. NaN where these are unknown."""
    pair = [_number(values.get(key)) for key in ("from", "to")]
    for key, value in values.items():
        role, unit = _role(key)
        if key in SPANS and isinstance(value, list) and len(value) == 2 and not math.isnan(sum(map(_number, value))):
            yield key, "start", _number(value[0])
            yield key, "end", _number(value[1])
        elif key in ("from", "to") and not math.isnan(sum(pair)):
            yield key, "start" if key == "from" else "end", _number(value)
        elif role == "start" and math.isnan(unit):  # 0 samples are 0 seconds, but the end is unknown where samples are counted
            yield key, role, math.nan if _number(value) or COUNTS & set(values) else 0.0
        elif (
            role == "start"
            or role == "end"
            or (role == "duration" and key != "duration_s" and not math.isnan(_number(value) * unit))
        ):
            yield key, role, _number(value) * unit


def _role(key: str) -> tuple[str, float]:
    """The role of a key that chooses a part of a recording, and its unit in seconds. The role of any other key is empty."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().split("_")
    roles = {ROLES[word] for word in words if word in ROLES}
    role = next((role for role in ("end", "start", "duration") if role in roles), "")
    known = set(words) <= ROLES.keys() | FILLERS | UNITS.keys()
    return role if known else "", next((UNITS[word] for word in words if word in UNITS), 1.0)


def _number(value: Any) -> float:
    """A number, also in quotes. NaN for anything else."""
    try:
        return float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def same_duration(given: float, measured: float) -> bool:
    """Whether two durations in seconds are equal within the tolerance."""
    return abs(given - measured) <= max(TOLERANCE_SECONDS, TOLERANCE_SHARE * measured)


def refuse_times(words: Sequence[tuple[str, float, float]], seconds: float) -> None:
    """Raises UserError for word times that do not rise from 0 to the recording's `seconds`. Pauses may lie between."""
    edges = [0.0, *(edge for _, *times in words for edge in times)]
    if not all(map(math.isfinite, edges)):
        raise UserError("word times: a start or an end is no number; align the manifest again with `mtbi data align`")
    if any(right < left - OVERLAP_SECONDS for left, right in pairwise(edges)):
        raise UserError("word times: a start or an end lies before the one before it; align again with `mtbi data align`")
    if edges[-1] > seconds + TOLERANCE_SECONDS:
        reason = f"the last word ends at {edges[-1]:.2f} s, the recording at {seconds:.2f} s; give seconds, or align again"
        raise UserError(f"word times: {reason} with `mtbi data align`")


def is_cut(record: Mapping[str, Any]) -> bool:
    """Whether a record is a cut of lhotse."""
    return str(record.get("type", "")).endswith("Cut") or ("supervisions" in record and "recording" in record)


def of_cut(cut: Mapping[str, Any]) -> Fields:
    """Our fields from a lhotse MonoCut with one supervision. Raises UserError for any other cut.

    Where the supervision lasts as long as the cut, the utterance is the cut; else it is the supervision's part of it.
    """
    kind = str(cut.get("type", "MonoCut"))
    if kind != "MonoCut":
        raise UserError(f"lhotse {kind}: only a MonoCut can be read; save the cuts as files first")
    try:
        recording, supervisions = cut["recording"], cut["supervisions"]
        (supervision,) = supervisions
        (source,) = recording["sources"]
        whole, channel = float(recording["duration"]), cut.get("channel", 0)
        (start, duration), (inner_start, inner) = (
            (float(part["start"]), float(part["duration"])) for part in (cut, supervision)
        )
        if source["type"] != "file" or recording.get("transforms") or "features" in source:
            raise UserError("lhotse MonoCut: the recording is not a plain file")
        if channel not in (0, [0]) or len(source["channels"]) != 1:
            raise UserError("lhotse MonoCut: the cut is one channel of several; save the cuts as files first")
        fields = {"id": cut["id"], "audio": source["source"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "lhotse MonoCut: it must have one recording in one file, and one supervision; `lhotse cut trim-to-supervisions` "
            "makes such cuts"
        ) from error
    if inner_start < -TOLERANCE_SECONDS or inner_start + inner > duration + TOLERANCE_SECONDS:
        raise UserError(
            "lhotse MonoCut: the supervision begins before the cut or ends after it; a part of its text is not heard"
        )
    if abs(inner_start) > TOLERANCE_SECONDS or not same_duration(inner, duration):
        start, duration = start + max(0.0, inner_start), inner
    if start > TOLERANCE_SECONDS or not same_duration(duration, whole):
        fields |= {"start_s": max(0.0, start), "duration_s": duration}
    else:
        fields["duration_s"] = whole
    others = {name: supervision.get(name) for name in ("text", "speaker", "language")}
    return fields | {name: value for name, value in others.items() if value is not None}


def further_turns(turns: Any) -> list[dict[str, str]]:
    """The further turns of a dialogue (`Utterance.follow_ups`). Raises UserError for another form."""
    whole = isinstance(turns, list) and all(
        isinstance(turn, dict)
        and turn.keys() <= {"prompt", "answer"}
        and all(isinstance(text, str) and text.strip() for text in turn.values())
        for turn in turns
    )
    if not whole:
        raise UserError('bad record: follow_ups must look like {"task": [{"prompt": "Backwards?", "answer": "five three"}]}')
    return [{key: nfc(text) for key, text in turn.items()} for turn in turns]


def refuse_address(audio: str) -> None:
    """Raises UserError for a path that only a shell or a download program understands."""
    if address := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", audio):
        raise UserError(f"not a path: the audio is an address ({address[1]}://); download it, and give the path of the file")
    if re.match(r"~[^/\\]*/", audio):
        raise UserError("not a path: `~` stands for a home folder in a shell only; write the whole path")


def refuse_characters(record: Any) -> None:
    """Raises UserError for characters that cannot be stored: half a surrogate pair, or NUL."""
    text = json.dumps(record, ensure_ascii=False)
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):
        raise UserError("bad character: the record holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = ord(text[error.start])
        if 0xDC80 <= character <= 0xDCFF:
            raise UserError(
                f"bad character: byte 0x{character - 0xDC00:02x}, which is not UTF-8, in a file name or text; rename the file"
            ) from error
        raise UserError(f"bad character: half of a surrogate pair (\\u{character:04x}); write the whole character") from error
