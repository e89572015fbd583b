"""The manifest: JSON lines, one object for each utterance. Reading, writing, and slices of it for array jobs."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mtbi import files, object_store
from mtbi.audio import members
from mtbi.corpus import records
from mtbi.errors import UserError
from mtbi.text_units import nfc

#: A record that is left out: `id`, `audio` and `reason`. Summaries count the part of the reason before the colon.
Rejected = dict[str, str]

#: Names of our fields in the manifests of NeMo, lhotse and others.
ALIASES = {
    "audio_filepath": "audio",
    "duration": "duration_s",
    "lang": "language",
    "sampling_rate": "sample_rate",
    "speaker_id": "speaker",
    "sentence": "text",
    "transcript": "text",
    "transcription": "text",
    "normalized_text": "text",
}
#: What text of two or four bytes a character begins with.
WIDE_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
GZIP_MARK = b"\x1f\x8b"
#: What files begin with that are no lines of text.
OTHER_MARKS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"BZh": "bzip2", b"PK\3\4": "zip", b"PAR1": "Parquet"}


@dataclass
class Utterance:
    """One recording, or a segment of one, with its transcript."""

    id: str  #: unique in its manifest
    audio: str  #: path relative to the manifest's folder, or absolute; empty = an utterance of text alone, without sound
    text: str  #: transcript; empty when there is none
    speaker: str = ""
    duration_s: float = 0.0  #: seconds; 0 = not measured
    language: str = ""
    sample_rate: int = 0  #: Hz of the file; 0 = not measured
    split: str = ""
    words: list[tuple[str, float, float]] | None = None  #: (unit, start, end) in seconds of the utterance; the spans tile it
    answers: dict[str, str] = field(default_factory=dict)  #: right answers by task, where known
    start_s: float | None = None  #: seconds from the file's start at which the utterance begins; None = it is the whole file
    #: Further turns of dialogues by task, in order: `prompt` (where it is not the task's own), `answer` (where it is known).
    follow_ups: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  #: other keys of the manifest

    def to_json(self) -> dict[str, Any]:
        """The object of the manifest's line. Empty fields are left out; the keys of `extra` stand beside the others."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        always = {"id", "audio", "text"} if self.start_s is None else {"id", "audio", "text", "start_s"}
        return {key: value for key, value in known.items() if value or key in always} | self.extra


_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str, int),
    "speaker": (str, int),
    "duration_s": (int, float),
    "start_s": (int, float),
    "sample_rate": (int,),
}
_TYPES |= {"words": (list,), "answers": (dict,), "follow_ups": (dict,)}


def parse(record: Any) -> Utterance:
    """An utterance from a manifest's JSON object. `null` counts as absent.

    Raises UserError for a wrong type, a missing audio path, a part of a recording whose bounds are unclear, word times that do
    not rise, further turns of another form, or characters that no file can hold.
    """
    if not isinstance(record, dict):
        raise UserError("bad record: a manifest line must be a JSON object")
    records.refuse_characters(record)
    values = records.of_cut(record) if records.is_cut(record) else records.of_segment(records.rename(record, ALIASES))
    names = [f.name for f in fields(Utterance) if f.name != "extra"]
    known: dict[str, Any] = {name: values.pop(name) for name in names if name in values}
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, _TYPES.get(name, (str,))):
            raise UserError(f"bad record: {name} is a {type(value).__name__}")
    if "audio" not in known:
        keys = ", ".join(sorted(map(str, record))) or "none"
        raise UserError(f"bad record: no audio path (key `audio` or `audio_filepath`); its keys: {keys}")
    if not known["audio"] and "id" not in known:
        raise UserError("bad record: an utterance without sound (an empty `audio`) needs an `id`")
    if not known["audio"].startswith("s3://"):
        records.refuse_address(known["audio"])
    start = f"-{known['start_s']:.3f}" if "start_s" in known else ""
    whole = known["audio"] if members.is_member(known["audio"]) else os.path.splitext(known["audio"])[0]
    known.setdefault("id", whole + start)
    known |= {name: str(known[name]) for name in ("id", "speaker") if name in known}
    if "words" in known:
        try:
            known["words"] = [(nfc(str(word)), float(start), float(end)) for word, start, end in known["words"]]
        except (TypeError, ValueError) as error:
            raise UserError("bad record: words must be a list of [word, start seconds, end seconds]") from error
        records.refuse_times(known["words"], known.get("duration_s") or math.inf)
    known["text"] = nfc(known.get("text", ""))
    if "answers" in known:
        known["answers"] = {
            task: nfc(answer) if isinstance(answer, str) else answer for task, answer in known["answers"].items()
        }
    if "follow_ups" in known:
        known["follow_ups"] = {task: records.further_turns(turns) for task, turns in known["follow_ups"].items()}
    return Utterance(**known, extra=values)


def decode_text(data: bytes) -> str:
    """Text from UTF-8, without a byte order mark. Raises UserError that names the offending byte, or UTF-16."""
    wide = next((name for mark, name in WIDE_MARKS.items() if data.startswith(mark)), "")
    if not wide and b"\0" in data:  # the same without a mark: for Latin letters every other byte is 0
        wide = "UTF-16BE" if data[::2].count(0) > data[1::2].count(0) else "UTF-16LE"
    if wide:
        raise UserError(f"not UTF-8: the text is {wide}; convert the file: iconv -f {wide} -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert the file, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def scan_manifest(path: Path | str, part: ManifestSlice | None = None) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances of a manifest, or of a part of it, and the rejected lines.

    A line is rejected if it is not UTF-8 or not JSON, has a wrong type, repeats an id, or has a path that leads out of the
    manifest's folder. Raises UserError when the file itself cannot be read.
    """
    good: list[Utterance] = []
    rejected: list[Rejected] = []
    for found in each_line(path, part):
        if isinstance(found, Utterance):
            good.append(found)
        else:
            rejected.append(found)
    return good, rejected


def each_line(path: Path | str, part: ManifestSlice | None = None) -> Iterator[Utterance | Rejected]:
    """Each utterance and each rejected line of `scan_manifest`. Of a part, the other lines are counted but not parsed."""
    path = Path(path)
    seen: set[str] = set()
    lines: Iterator[tuple[int, bytes]] = ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())
    if part:
        lines = islice(lines, *part.bounds(sum(1 for line in _lines(path) if line.strip())))
    for number, line in lines:
        bad = Rejected(id=f"{path.name}:{number}", audio="")
        try:
            record = json.loads(decode_text(line))
            bad["audio"] = _audio_of(record)
            utterance = parse(record)
            bad = Rejected(id=utterance.id, audio=utterance.audio)
            if utterance.id in seen:
                raise UserError(f"id used before: line {number} of {path.name} repeats {utterance.id!r}")
            # A manifest from elsewhere must not leave its folder unnoticed. An absolute path is easy to see.
            if not os.path.isabs(utterance.audio) and os.path.normpath(utterance.audio).startswith(".."):
                raise UserError("path upwards: the audio lies outside the manifest's folder; give its absolute path")
        except json.JSONDecodeError as error:
            yield bad | {"reason": f"not JSON: line {number} of {path.name}, {error.msg} at column {error.colno}"}
        except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists without end
            yield bad | {"reason": f"not JSON: line {number} of {path.name} has a number or a nesting without end"}
        except UserError as error:
            yield bad | {"reason": f"{error} (line {number} of {path.name})"}
        else:
            seen.add(utterance.id)
            yield utterance


def _audio_of(record: Any) -> str:
    """The path that a record names, also where the record is bad. Empty where it names none."""
    audio = next((record[key] for key in ("audio", "audio_filepath") if key in record), "") if isinstance(record, dict) else ""
    return audio if isinstance(audio, str) else ""


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a manifest. It may be compressed by gzip."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if other := next((name for mark, name in OTHER_MARKS.items() if start.startswith(mark)), None):
                raise UserError(f"this is {other}, but a manifest is JSON lines, as plain text or compressed by gzip")
            packed = start.startswith(GZIP_MARK)
            if not packed and (b"\0" in start or any(start.startswith(mark) for mark in WIDE_MARKS)):
                decode_text(start)
            with gzip.open(file) if packed else file as lines:
                yield from lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the manifest is compressed, and damaged ({error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: the manifest cannot be read ({error.strerror})") from error


def read_manifest(path: Path | str, part: ManifestSlice | None = None) -> list[Utterance]:
    """Every utterance of a manifest, or of a part of it.

    Raises UserError (file, line, reason) for a bad line. `mtbi data import jsonl` leaves such lines out.
    """
    good, rejected = scan_manifest(path, part)
    if rejected:
        first = rejected[0]
        raise UserError(
            f"{path}: {len(rejected)} bad line(s), the first is {first['id']}: {first['reason']}. "
            f"Keep the good ones with `mtbi data import jsonl {path} OUT`."
        )
    return good


def write_lines(path: Path | str, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines under a temporary name and rename the file, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(line) for line in lines)


def _line(record: dict[str, Any]) -> str:
    """A record as a line of JSON."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # a list of rejected records names files whose names are not UTF-8
        return json.dumps(record) + "\n"
    return line


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """The number of rejected records for each kind of reason, the commonest first."""
    return dict(Counter(record["reason"].split(":")[0] for record in rejected).most_common())


def write_manifest(path: Path | str, utterances: Iterable[Utterance]) -> None:
    """Write a manifest. Relative audio paths must start from its folder (see `relocate`)."""
    write_lines(path, (utterance.to_json() for utterance in utterances))


def relocate(utterance: Utterance, folder: Path, out: Path) -> Utterance:
    """The utterance for a manifest in `out` instead of `folder`. A path inside `out` becomes relative, any other absolute."""
    if not utterance.audio or object_store.is_remote(utterance.audio):
        return utterance
    path = os.path.abspath(folder / utterance.audio)  # not Path.resolve: links into a corpus are left as they are
    base = os.path.abspath(out)
    return replace(utterance, audio=os.path.relpath(path, base) if Path(path).is_relative_to(base) else path)


@dataclass(frozen=True)
class ManifestSlice:
    """One of several equal stretches of a manifest, for array jobs. Slices are numbered from 1 to `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> ManifestSlice:
        """The slice of `--part 3/8`. Raises UserError for another form."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        chosen = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= chosen.number <= chosen.of:
            raise UserError(f"--part {text}: a part has the form 3/8, between 1/8 and 8/8")
        return chosen

    def __str__(self) -> str:
        return f"part-{self.number}-of-{self.of}"

    def bounds(self, count: int) -> tuple[int, int]:
        """Where this slice of `count` things begins and ends."""
        return count * (self.number - 1) // self.of, count * self.number // self.of

    def take(self, utterances: list[Utterance]) -> list[Utterance]:
        """The utterances of this slice."""
        return utterances[slice(*self.bounds(len(utterances)))]

    def siblings(self) -> list[ManifestSlice]:
        """All slices, this one included."""
        return [ManifestSlice(number, self.of) for number in range(1, self.of + 1)]
