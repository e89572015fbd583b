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
TO_THE_END = ("-1", "-1.0")  # the end of a segment that lasts to the end of its recording


def import_kaldi(source: Path) -> Iterator[Record]:
    """Kaldi's data folders at any depth: `wav.scp` (lines `ID PATH`), `text` (`ID TRANSCRIPT`), `utt2spk` if it is there.

    The name of a data folder below `source` is the split. Relative paths start from `source`, or else from the data folder.
    """
    for wav_scp in (path for path in paths.walk(source).files if path.name == "wav.scp"):
        yield from read_data_folder(wav_scp.parent, source)


def read_data_folder(folder: Path, source: Path) -> Iterator[Record]:
    """The records of the folder of one `wav.scp`."""
    tables: Tables = {name: {} for name in ("wav.scp", "text", "utt2spk", "segments")}
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
            recording, duration_seconds = find_recording(name, tables)
            audio = find_audio(tables["wav.scp"][recording], folder, source)
            if name not in tables["text"]:
                raise UserError("no transcript: the file text has no line with this id")
        except UserError as error:
            yield Rejected(id=name, audio=audio, reason=str(error))
            continue
        split = folder.name if folder != source else ""
        speaker = tables["utt2spk"].get(name, "")
        yield Utterance(name, audio, tables["text"][name], speaker, duration_seconds, split=split)


def find_recording(name: str, tables: Tables) -> tuple[str, float]:
    """An utterance's recording id and its duration in seconds, 0 where the files do not give it.

    Raises UserError where `wav.scp` has no such recording, and where the utterance is a part of a longer one.
    """
    segment = tables["segments"].get(name, f"{name} 0 -1").split()
    if len(segment) != 3:
        raise UserError("bad record: a line of segments must have the form `ID RECORDING START END`")
    recording, start, end = segment
    if recording not in tables["wav.scp"]:
        raise UserError(f"no recording: wav.scp has no line with the id {recording}")
    part = {"start": start} if end in TO_THE_END else {"start": start, "end": end}
    return recording, records.whole_recording(part).get("duration_s", 0.0)


def find_audio(path: str, folder: Path, source: Path) -> str:
    """The absolute path of a recording. Raises UserError for a command, a piece of an archive, and an address."""
    if path.endswith("|"):
        raise UserError("not a path: wav.scp gives a command; run it, and give the path of the file that it writes")
    if re.search(r"\.ark:\d+$", path):
        raise UserError("not a path: the audio lies in an archive (.ark); write the recordings as files")
    records.refuse_address(path)
    return str(source / path if (source / path).exists() else folder / path)
