"""The importer of STM transcripts: segments of long recordings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mtbi.audio.sound_files import is_sound
from mtbi.corpus import paths, records
from mtbi.corpus.importers import Record
from mtbi.corpus.manifest import Rejected, Utterance, decode_text
from mtbi.corpus.text_style import TAG
from mtbi.errors import UserError
from mtbi.scenes.read import split_stm

ALTERNATIVES = re.compile(r"\{([^{}/]*)/[^{}]*\}")  # `{ um / uh / @ }`, the innermost
OPTIONAL = re.compile(r"(?<!\S)\(([^()\s]+)\)(?!\S)")  # `(farmer)`
PRONUNCIATION = re.compile(r"(?<=\w)\(\d+\)")  # TED-LIUM: `for(2)` is the second pronunciation of "for"


def import_stm(source: Path) -> Iterator[Record]:
    """`.stm` files at any depth: lines `RECORDING CHANNEL SPEAKER BEGIN END [<LABEL>] TRANSCRIPT`, and `RECORDING.wav`.

    Recordings are found by name at any depth, those nearest to the `.stm` file first. The folder of an `.stm` file is the
    split (the one above it where that is named `stm`, as in TED-LIUM). Segments with IGNORE_TIME_SEGMENT_IN_SCORING as their
    transcript are left out. Of alternatives `{ um / uh / @ }` the first is kept, and of optional words `(um)` the word. The
    format is that of https://github.com/usnistgov/SCTK/blob/master/doc/infmts.htm.
    """
    files = paths.walk(source.parent if source.is_file() else source).files
    recordings: dict[str, list[Path]] = {}
    for path in filter(is_sound, files):
        recordings.setdefault(path.stem, []).append(path)
    for table in [source] if source.is_file() else [path for path in files if path.suffix.lower() == ".stm"]:
        try:
            text = decode_text(paths.read_bytes(table))
        except (UserError, OSError) as error:
            yield Rejected(id=table.name, audio="", reason=f"transcript cannot be opened: {error}")
            continue
        folder = table.parent.parent if table.parent.name.lower() == "stm" else table.parent
        split = folder.name if folder != source and folder.is_relative_to(source) else ""
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith(";;"):
                yield read_line(line, f"{table.name}:{number}", recordings, table.parent, split)


def read_line(line: str, place: str, recordings: dict[str, list[Path]], near: Path, split: str) -> Record:
    """The utterance of one line. `place` is its id where it cannot be read."""
    try:
        name, channel, speaker, begin, end, _, transcript = stm = split_stm(line)
    except UserError as error:
        return Rejected(id=place, audio="", reason=f"bad record: {error}")
    found = recordings.get(Path(name).stem) or recordings.get(name) or []
    audio = str(max(found, key=lambda path: shared_folders(path, near))) if found else ""
    identity = f"{name}-{begin}-{end}-{speaker}"
    if stm.is_ignored:
        return Rejected(id=identity, audio=audio, reason="not scored: IGNORE_TIME_SEGMENT_IN_SCORING")
    if not found:
        return Rejected(id=identity, audio="", reason=f"no recording: no sound file is named {name}")
    try:
        times = records.of_segment({"start_s": float(begin), "end": float(end)})
    except (UserError, ValueError) as error:
        reason = str(error) if isinstance(error, UserError) else f"bad record: the times {begin} and {end} are no numbers"
        return Rejected(id=identity, audio=audio, reason=f"{reason} ({place})")
    return Utterance(
        identity,
        audio,
        plain(transcript),
        speaker,
        times["duration_s"],
        split=split,
        start_s=times["start_s"],
        extra={"channel": channel},
    )


def shared_folders(path: Path, near: Path) -> int:
    """How many folders above two paths are the same."""
    return sum(one == other for one, other in zip(path.parts, near.parts, strict=False))


def plain(transcript: str) -> str:
    """The words of a transcript, without the notation for scoring."""
    while (shorter := ALTERNATIVES.sub(r"\1", transcript)) != transcript:
        transcript = shorter
    transcript = re.sub(r"(?<!\S)@(?!\S)", " ", PRONUNCIATION.sub("", transcript))
    return OPTIONAL.sub(lambda match: match[0] if TAG.fullmatch(match[0]) else match[1], transcript)
