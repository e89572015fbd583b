"""The importer of YODAS's folders."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from mtbi.audio.sound_files import is_sound
from mtbi.corpus import archives, paths
from mtbi.corpus.importers import Record, keyed_lines
from mtbi.corpus.manifest import Rejected, Utterance


def import_yodas(source: Path) -> Iterator[Record]:
    """YODAS: `LANGUAGE/text/*.txt` (`ID TEXT`), recordings `ID.wav` below `LANGUAGE/audio`, and `LANGUAGE/duration/*.txt`.

    The recordings may lie in `.tar` archives there, which are not unpacked: `gunzip audio/*.tar.gz` makes them. LANGUAGE is a
    folder such as `en000`: its letters are the language, and its name is the split. Durations (`ID SECONDS`) may be missing.
    The layout is that of https://huggingface.co/datasets/espnet/yodas (arXiv 2406.00899).
    """
    files = paths.walk(source).files
    tables = [path for path in files if path.suffix == ".txt" and path.parent.name == "text"]
    for folder in dict.fromkeys(path.parents[1] for path in tables):
        below = [path for path in files if path.is_relative_to(folder)]
        recordings = {path.stem: str(path) for path in below if is_sound(path) and path.is_relative_to(folder / "audio")}
        for path in (path for path in below if path.is_relative_to(folder / "audio") and path.suffix == ".tar"):
            try:
                recordings |= {Path(member.key).name: member.address for member in archives.members_of(path)}
            except (tarfile.TarError, OSError, EOFError) as error:
                yield Rejected(id=path.name, audio=str(path), reason=f"not readable as tar: {error}")
        lengths = dict(
            line
            for path in below
            if path.suffix == ".txt" and path.parent == folder / "duration"
            for line in keyed_lines(path)
            if isinstance(line, tuple)
        )
        for table in (path for path in tables if path.parents[1] == folder):
            for line in keyed_lines(table):
                yield line if not isinstance(line, tuple) else read_line(*line, recordings, lengths, folder.name)


def read_line(name: str, text: str, recordings: dict[str, str], lengths: dict[str, str], folder: str) -> Record:
    """The utterance of a line of a text file."""
    if name not in recordings:
        return Rejected(
            id=name,
            audio="",
            reason=f"no recording: {name} is not below audio/; decompress the archives there, gunzip audio/*.tar.gz",
        )
    try:
        seconds = float(lengths.get(name, 0))
    except ValueError:
        seconds = 0.0
    return Utterance(name, recordings[name], text, duration_s=seconds, language=folder.rstrip("0123456789"), split=folder)
