"""The manifest: one JSON object a line for each utterance, and the checks that decide which utterances are fit for use."""

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
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.contrib.concurrent import thread_map

from mtbi import files, text_units
from mtbi.audio import codec
from mtbi.corpus import records, text_style
from mtbi.errors import UserError
from mtbi.text_units import nfc

#: Why a record was left out: `id`, `audio` and `reason`; the part of the reason before the colon is what summaries count.
Rejected = dict[str, str]

#: Names that NeMo, lhotse and others use for our fields.
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
CHECK_THREADS = min(8, os.cpu_count() or 1)  # decoding releases the interpreter lock


@dataclass
class Utterance:
    """One recording with its transcript."""

    id: str  #: unique in its manifest
    audio: str  #: path relative to the manifest's folder, or absolute; empty = an utterance of text alone, without sound
    text: str  #: transcript; empty when there is none
    speaker: str = ""
    duration_s: float = 0.0  #: seconds; 0 = not measured
    language: str = ""
    sample_rate: int = 0  #: Hz of the file; 0 = not measured
    split: str = ""
    words: list[tuple[str, float, float]] | None = None  #: (unit, start, end) in seconds; the spans tile the utterance
    answers: dict[str, str] = field(default_factory=dict)  #: right answers by task, where known
    extra: dict[str, Any] = field(default_factory=dict)  #: keys of the manifest that we do not know

    def to_json(self) -> dict[str, Any]:
        """The manifest line: empty fields left out, `extra` beside the others."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {key: value for key, value in known.items() if value or key in ("id", "audio", "text")} | self.extra


@dataclass(frozen=True)
class Limits:
    """What `check` accepts. FSDD's shortest digit lasts 0.14 s; LibriSpeech's longest utterance 35 s."""

    min_duration_seconds: float = 0.1
    max_duration_seconds: float = 60.0
    min_sample_rate_hz: int = 8000  #: telephone speech
    max_channels: int = 2  #: two are mixed down; more are a microphone array or one speaker a channel
    min_peak_dbfs: float = -60.0  #: after mixing down; below it a recording is silence. `-inf` keeps silence
    #: About 3 minutes of speech: a longer transcript belongs to another recording. Of scripts without spaces, characters.
    max_words: int = 500


_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str, int),
    "speaker": (str, int),
    "duration_s": (int, float),
    "sample_rate": (int,),
}
_TYPES |= {"words": (list,), "answers": (dict,)}


def parse(record: Any) -> Utterance:
    """An utterance from a manifest's JSON object; `null` counts as absent.

    Raises UserError for a wrong type, a missing audio path, a part of a recording, word times that do not rise, or characters
    that no file can hold.
    """
    if not isinstance(record, dict):
        raise UserError("bad record: a manifest line must be a JSON object")
    records.refuse_characters(record)
    values = records.of_cut(record) if records.is_cut(record) else records.whole_recording(records.rename(record, ALIASES))
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
    records.refuse_address(known["audio"])
    known.setdefault("id", os.path.splitext(known["audio"])[0])
    known |= {name: str(known[name]) for name in ("id", "speaker") if name in known}
    if "words" in known:
        try:
            known["words"] = [(nfc(str(word)), float(start), float(end)) for word, start, end in known["words"]]
        except (TypeError, ValueError) as error:
            raise UserError("bad record: words must be a list of [word, start seconds, end seconds]") from error
        records.refuse_times(known["words"], known.get("duration_s") or math.inf)
    known["text"] = nfc(known.get("text", ""))
    if "answers" in known:
        known["answers"] = {task: nfc(one) if isinstance(one, str) else one for task, one in known["answers"].items()}
    return Utterance(**known, extra=values)


def decode_text(data: bytes) -> str:
    """UTF-8 text, a byte order mark dropped. Raises UserError that names the offending byte, or UTF-16."""
    wide = next((name for mark, name in WIDE_MARKS.items() if data.startswith(mark)), "")
    if not wide and b"\0" in data:  # the same without a mark: for Latin letters every other byte is 0
        wide = "UTF-16BE" if data[::2].count(0) > data[1::2].count(0) else "UTF-16LE"
    if wide:
        raise UserError(f"not UTF-8: the text is {wide}; convert the file: iconv -f {wide} -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at place {error.start}; "
            "convert the file, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def scan_manifest(path: Path | str) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances of a manifest, and the lines that are none.

    Those are not UTF-8, not JSON, have wrong types, an id used before, or a path that leads out of the manifest's folder.
    Raises UserError when the file itself cannot be read.
    """
    path = Path(path)
    good: list[Utterance] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = Rejected(id=f"{path.name}:{number}", audio="")
        try:
            record = json.loads(decode_text(line))
            where["audio"] = _audio_of(record)
            utterance = parse(record)
            where = Rejected(id=utterance.id, audio=utterance.audio)
            if utterance.id in seen:
                raise UserError(f"id used before: line {number} of {path.name} repeats {utterance.id!r}")
            # A manifest from elsewhere must not reach out of its folder by stealth; an absolute path is plain to see.
            if not os.path.isabs(utterance.audio) and os.path.normpath(utterance.audio).startswith(".."):
                raise UserError("path upwards: the audio lies outside the manifest's folder; give its absolute path")
        except json.JSONDecodeError as error:
            rejected.append(where | {"reason": f"not JSON: line {number} of {path.name}, {error.msg} at column {error.colno}"})
        except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists without end
            rejected.append(where | {"reason": f"not JSON: line {number} of {path.name} has a number or a nesting without end"})
        except UserError as error:
            rejected.append(where | {"reason": f"{error} (line {number} of {path.name})"})
        else:
            seen.add(utterance.id)
            good.append(utterance)
    return good, rejected


def _audio_of(record: Any) -> str:
    """The path that a record names, whether it is good or not; empty where it names none."""
    audio = next((record[key] for key in ("audio", "audio_filepath") if key in record), "") if isinstance(record, dict) else ""
    return audio if isinstance(audio, str) else ""


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a manifest, which may be compressed by gzip."""
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


def read_manifest(path: Path | str) -> list[Utterance]:
    """Every utterance of a manifest.

    Raises UserError (file, line, reason) if one line is bad; `mtbi data import jsonl` sorts such lines out.
    """
    good, rejected = scan_manifest(path)
    if rejected:
        first = rejected[0]
        raise UserError(
            f"{path}: {len(rejected)} bad line(s), the first is {first['id']}: {first['reason']}. "
            f"Keep the good ones with `mtbi data import jsonl {path} OUT`."
        )
    return good


def write_lines(path: Path | str, lines: Iterable[dict[str, Any]]) -> None:
    """JSON lines, written under a temporary name and renamed, so that a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(line) for line in lines)


def _line(record: dict[str, Any]) -> str:
    line = json.dumps(record, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # a list of rejected records names files whose names are not UTF-8
        return json.dumps(record) + "\n"
    return line


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many records each kind of reason kept out, the commonest first."""
    return dict(Counter(record["reason"].split(":")[0] for record in rejected).most_common())


def write_manifest(path: Path | str, utterances: Iterable[Utterance]) -> None:
    """Write a manifest in one piece. Relative audio paths must be relative to its folder (see `relocate`)."""
    write_lines(path, (utterance.to_json() for utterance in utterances))


def relocate(utterance: Utterance, folder: Path, out: Path) -> Utterance:
    """The utterance for a manifest in `out` instead of `folder`: a path inside `out` becomes relative, any other absolute."""
    if not utterance.audio:
        return utterance
    path = os.path.abspath(folder / utterance.audio)  # not Path.resolve: links into a corpus are left as they are
    base = os.path.abspath(out)
    return replace(utterance, audio=os.path.relpath(path, base) if Path(path).is_relative_to(base) else path)


def check(
    utterances: Iterable[Utterance], folder: Path | str, limits: Limits | None = None
) -> tuple[list[Utterance], list[Rejected]]:
    """Decode each recording once and sort out what cannot be used; both lists keep the order given.

    `folder` is what relative audio paths start from. The good ones have `duration_s` and `sample_rate` as measured.
    """
    limits, folder = limits or Limits(), Path(folder)

    def measure(utterance: Utterance) -> Utterance | Rejected:
        try:
            return _measure(utterance, folder, limits)
        except UserError as error:
            return Rejected(id=utterance.id, audio=utterance.audio, reason=str(error))

    results = thread_map(measure, list(utterances), max_workers=CHECK_THREADS, desc="check", unit="utterance", disable=None)
    return [r for r in results if isinstance(r, Utterance)], [r for r in results if not isinstance(r, Utterance)]


def refuse_other_duration(utterance: Utterance, seconds: float) -> None:
    """Raises UserError where the record gives another duration than that of the recording: it is about a part of it."""
    given = utterance.duration_s
    if 0 < given < math.inf and not records.same_duration(given, seconds):
        raise UserError(f"duration differs: {given:.2f} s in the record, {seconds:.2f} s in the file; cut the file first")


def _measure(utterance: Utterance, folder: Path, limits: Limits) -> Utterance:
    """The utterance with its measured duration and rate. Raises UserError with the reason why it is unfit."""
    records.refuse_characters(utterance.to_json())
    words = text_units.count(utterance.text)
    if not re.search(r"\w", utterance.text):
        keys = f"; other keys of the record: {', '.join(utterance.extra)}" if utterance.extra and not utterance.text else ""
        raise UserError(f"no transcript: the text is empty or has no word{keys}")
    if not re.search(r"\w", text_style.TAG.sub(" ", utterance.text)):
        raise UserError("no transcript: the text has only tags, such as [noise]")
    if words > limits.max_words:
        raise UserError(f"transcript too long: {words} words, more than {limits.max_words}")
    if not utterance.audio:
        return utterance
    samples, rate_hz = codec.load(folder / utterance.audio, max_seconds=limits.max_duration_seconds)
    duration = len(samples) / rate_hz
    if duration < limits.min_duration_seconds:
        raise UserError(f"too short: {duration:.3f} s, less than {limits.min_duration_seconds:g} s")
    if rate_hz < limits.min_sample_rate_hz:
        raise UserError(f"sampling rate too low: {rate_hz} Hz, less than {limits.min_sample_rate_hz} Hz")
    if samples.shape[1] > limits.max_channels:
        raise UserError(f"too many channels: {samples.shape[1]}, more than {limits.max_channels}")
    if samples.shape[1] > 1 and "channel" in utterance.extra:
        raise UserError(f"channel given: one of {samples.shape[1]} channels cannot be chosen; write the channels as files")
    refuse_other_duration(utterance, duration)
    records.refuse_times(utterance.words or [], duration)
    peak = float(np.abs(samples.mean(axis=1)).max())
    level = 20 * math.log10(peak) if peak else -math.inf
    if level < limits.min_peak_dbfs:
        raise UserError(f"silence: the peak is {level:.0f} dBFS, under {limits.min_peak_dbfs:g} dBFS")
    return replace(utterance, duration_s=round(duration, 4), sample_rate=rate_hz)


@dataclass(frozen=True)
class Part:
    """One of several equal stretches of a corpus, for array jobs: part 1 to `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """`3/8`. Raises UserError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        part = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= part.number <= part.of:
            raise UserError(f"--part {text}: a part has the form 3/8, between 1/8 and 8/8")
        return part

    def __str__(self) -> str:
        return f"part-{self.number}-of-{self.of}"

    def take(self, utterances: list[Utterance]) -> list[Utterance]:
        """This part's utterances."""
        first, stop = (len(utterances) * edge // self.of for edge in (self.number - 1, self.number))
        return utterances[first:stop]

    def siblings(self) -> list[Part]:
        """All parts, this one included."""
        return [Part(number, self.of) for number in range(1, self.of + 1)]
