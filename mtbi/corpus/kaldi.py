"""The importer of Kaldi's data folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mtbi.corpus import paths, records
from mtbi.corpus.importers import Record, keyed_lines
from mtbi.corpus.manifest import Rejected, Utterance
from mtbi.errors import UserError

Tables = dict[str, dict[str, str]]  # file name → id → the rest of the line
TABLES = ("wav.scp", "text", "utt2spk", "segments", "spk2gender", "utt2lang", "utt2dur")
TO_THE_END = ("-1", "-1.0")  # the end of a segment that lasts to the end of its recording


def import_kaldi(source: Path) -> Iterator[Record]:
    """Kaldi's data folders at any depth: `wav.scp` (lines `ID PATH`), `text` (`ID TRANSCRIPT`), and where they are there
    `segments` (`ID RECORDING START END`), `utt2spk`, `spk2gender`, `utt2lang` and `utt2dur`.

    The name of a data folder below `source` is the split. Relative paths start from `source`, or else from the data folder.
    The formats are those of https://kaldi-asr.org/doc/data_prep.html.
    """
    for wav_scp in (path for path in paths.walk(source).files if path.name == "wav.scp"):
        yield from read_data_folder(wav_scp.parent, source)


def read_data_folder(folder: Path, source: Path) -> Iterator[Record]:
    """The records of the folder of one `wav.scp`."""
    tables: Tables = {name: {} for name in TABLES}
    for name, table in tables.items():
        if (folder / name).exists():
            for line in keyed_lines(folder / name):
                if isinstance(line, tuple):
                    table[line[0]] = line[1]
                else:
                    yield line
    for name in dict.fromkeys([*(tables["segments"] or tables["wav.scp"]), *tables["text"]]):
        audio = ""
        try:
            recording, start_s, duration_s = find_recording(name, tables)
            audio = find_audio(tables["wav.scp"][recording], folder, source)
            if name not in tables["text"]:
                raise UserError("no transcript: the file text has no line with this id")
        except UserError as error:
            yield Rejected(id=name, audio=audio, reason=str(error))
            continue
        speaker = tables["utt2spk"].get(name, "")
        gender = tables["spk2gender"].get(speaker, "")
        yield Utterance(
            name,
            audio,
            tables["text"][name],
            speaker,
            duration_s,
            tables["utt2lang"].get(name, ""),
            split=folder.name if folder != source else "",
            start_s=start_s,
            extra={"gender": gender} if gender else {},
        )


def find_recording(name: str, tables: Tables) -> tuple[str, float | None, float]:
    """An utterance's recording id, its start in seconds (None: it is the recording), and its duration in seconds (0: unknown).

    Raises UserError where `wav.scp` has no such recording, and for a line of `segments` that cannot be understood.
    """
    recording, start, end = name, "0", "-1"
    if name in tables["segments"]:
        parts = tables["segments"][name].split()
        if len(parts) not in (3, 4):  # the fourth is a channel, which Kaldi does not read either
            raise UserError("bad record: a line of segments must have the form `ID RECORDING START END`")
        recording, start, end = parts[:3]
    if recording not in tables["wav.scp"]:
        raise UserError(f"no recording: wav.scp has no line with the id {recording}")
    duration = tables["utt2dur"].get(name, "0")
    try:
        if end in TO_THE_END:
            start_s = float(start)
            return recording, start_s or None, max(0.0, float(duration))
        fields = records.of_segment({"start_s": float(start), "end": float(end)})
    except ValueError as error:
        raise UserError(f"bad record: the times {start} and {end}, or the duration {duration}, are no numbers") from error
    return recording, fields["start_s"], fields["duration_s"]


def find_audio(path: str, folder: Path, source: Path) -> str:
    """The absolute path of a recording. Raises UserError for a command and for an address."""
    if path.endswith("|"):
        raise UserError("not a path: wav.scp gives a command; run it, and give the path of the file that it writes")
    records.refuse_address(path)
    file, position = match.groups() if (match := re.fullmatch(r"(.*\.ark):(\d+)", path)) else (path, None)
    found = source / file if (source / file).exists() else folder / file
    return str(found) if position is None else in_archive(found, int(position))


def in_archive(archive: Path, position: int) -> str:
    """The audio path of a WAV file at a position of Kaldi's archive. Raises UserError where none begins there."""
    try:
        with archive.open("rb") as file:
            file.seek(position)
            start = file.read(12)
    except OSError as error:
        raise UserError(f"cannot be opened: {archive.name}: {error.strerror}") from error
    if start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise UserError(f"not readable as audio: no WAV file begins at byte {position} of {archive.name}")
    return f"{archive}:{position}:{8 + int.from_bytes(start[4:8], 'little')}"
