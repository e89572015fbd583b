"""Files of a corpus: every one below a folder, and the one that a path means."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path


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
