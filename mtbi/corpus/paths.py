"""All files below a corpus's folder, also behind links."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path


def refuse_pipe(path: Path) -> None:
    """Raises OSError for anything but a regular file: reading a pipe would wait for its writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError, also for a pipe."""
    refuse_pipe(path)
    return path.read_bytes()


@dataclass
class Walk:
    """Everything below a folder."""

    files: list[Path] = field(default_factory=list)  #: sorted by path; dangling links are among them
    unread: list[tuple[Path, str]] = field(default_factory=list)  #: folders that were not read, with the reason


@lru_cache(maxsize=1)  # an import walks twice: for its records, and for the files that no record names
def walk(folder: Path) -> Walk:
    """Every file at any depth. Each folder is read once, also linked ones: under its own name if it lies below `folder`."""
    walked = Walk()
    read: dict[tuple[int, int], Path] = {}
    linked = [folder]
    while linked:
        pending, linked = sorted(linked, reverse=True), []
        while pending:
            path = pending.pop()
            try:
                about = path.stat()
                known = read.setdefault((about.st_dev, about.st_ino), path)
                if known != path:
                    walked.unread.append((path, f"linked twice: the folder is read as {known.relative_to(folder) or '.'}"))
                    continue
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                walked.unread.append((path, f"cannot be opened: {error.strerror}"))
                continue
            folders = []
            for entry in entries:
                if not _is_folder(entry):
                    walked.files.append(Path(entry.path))
                elif entry.is_symlink():
                    linked.append(Path(entry.path))
                else:
                    folders.append(Path(entry.path))
            pending += reversed(folders)
    walked.files.sort()
    return walked


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
