"""Audio files on disk: their endings, and the file that a path means in either Unicode form."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from mtbi import object_store
from mtbi.audio import ffmpeg, members

# fmt: off
#: Endings of files that libsndfile reads.
READABLE = frozenset({
    ".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bw64", ".bwf", ".caf", ".flac", ".iff", ".ircam", ".mp1",
    ".mp2", ".mp3", ".mpga", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd",
    ".sph", ".svx", ".voc", ".w64", ".wav", ".wave", ".wv1", ".wv2", ".wve",
})
# fmt: on
#: Endings of all files of sound and video, also of those that cannot be read.
SOUND = READABLE | ffmpeg.ENDINGS


def is_sound(path: Path) -> bool:
    """Whether a file has the ending of sound or video."""
    return path.suffix.lower() in SOUND


def below(folder: str | Path, audio: str) -> str:
    """The absolute path or the address that an `audio` path in a manifest of `folder` means."""
    return audio if object_store.is_remote(audio) else os.path.abspath(Path(folder) / audio)


def locate(path: str | Path) -> Path:
    """The path itself if the file exists, else a file of the same name in another Unicode form (macOS writes NFD).

    For a recording inside an archive, the archive is looked for.
    """
    path = Path(path)
    if members.is_member(path):
        archive = members.file_of(path)
        return Path(f"{locate(archive)}{str(path)[len(archive) :]}")
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
