"""Files of a corpus: every one below a folder, and the one that a path means."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mtbi.audio import ffmpeg

# fmt: off
#: Endings of what libsndfile reads.
READABLE = frozenset({
    ".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bw64", ".bwf", ".caf", ".flac", ".iff", ".ircam", ".mp1",
    ".mp2", ".mp3", ".mpga", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd",
    ".sph", ".svx", ".voc", ".w64", ".wav", ".wave", ".wv1", ".wv2", ".wve",
})
# fmt: on
#: Endings of sound, whether it can be read or not.
SOUND = READABLE | ffmpeg.ENDINGS


def is_sound(path: Path) -> bool:
    """Whether the ending of a file is one of sound or video."""
    return path.suffix.lower() in SOUND


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError, also for a pipe, which would wait for its writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


@dataclass
class Walk:
    """Everything below a folder."""

    files: list[Path] = field(default_factory=list)  #: sorted, by their names below the folder; dangling links are among them
    unread: list[tuple[Path, str]] = field(default_factory=list)  #: folders that were not read, and why


@lru_cache(maxsize=1)  # an import looks twice: for its records, and for files that none of them names
def walk(folder: Path) -> Walk:
    """Every file at any depth. Linked folders are entered, each folder once: under its own name if it lies below `folder`."""
    found = Walk()
    read: dict[tuple[int, int], Path] = {}
    linked = [folder]
    while linked:
        pending, linked = sorted(linked, reverse=True), []
        while pending:
            place = pending.pop()
            try:
                about = place.stat()
                known = read.setdefault((about.st_dev, about.st_ino), place)
                if known != place:
                    found.unread.append((place, f"linked twice: the folder is read as {known.relative_to(folder) or '.'}"))
                    continue
                entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            except OSError as error:
                found.unread.append((place, f"cannot be opened: {error.strerror}"))
                continue
            folders = []
            for entry in entries:
                if not _is_folder(entry):
                    found.files.append(Path(entry.path))
                elif entry.is_symlink():
                    linked.append(Path(entry.path))
                else:
                    folders.append(Path(entry.path))
            pending += reversed(folders)
    found.files.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def locate(path: str | Path) -> Path:
    """The path, or where no such file exists, the one whose name is the same in another Unicode form (macOS writes NFD)."""
    path = Path(path)
    if str(path).isascii() or "\0" in str(path) or path.exists():
        return path
    for form in ("NFC", "NFD"):
        other = Path(unicodedata.normalize(form, str(path)))
        if other.exists():
            return other
    here = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (here / part).exists():
            wanted = unicodedata.normalize("NFC", part)
            try:
                part = next(name for name in os.listdir(here) if unicodedata.normalize("NFC", name) == wanted)
            except (OSError, StopIteration):
                return path
        here /= part
    return here
