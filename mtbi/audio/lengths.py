"""Compare the length in the header of an audio file with the data in the file.

Recorders that write to a pipe, and programs that were stopped, leave wrong lengths: 0, all ones, or about 2 GiB. Such a
placeholder means "to the end of the file". `inspect` distinguishes a placeholder from a file that was cut. It also gives the
bytes to replace so that libsndfile reads to the end.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mtbi.errors import UserError

#: sox announces 0x7f000008 (AIFF) or 0x7ffff000 (WAV) bytes to a pipe, others 2**31 or 2**32 - 1.
PLACEHOLDER_BYTES = 0x7F000000
UNKNOWN = 0xFFFFFFFF
MOST_CHUNKS = 10_000  # that are read: a file of zeros would have millions
CONTAINERS = {
    b"RIFF": "WAV",
    b"RIFX": "WAV",
    b"RF64": "RF64",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"riff": "W64",
    b"NIST": "SPHERE",
}
CONTAINERS |= {b"Crea": "VOC"}
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


@dataclass(frozen=True)
class Length:
    """The length that a header announces, and the length of the data."""

    container: str
    announced: int | None = None  #: bytes of sound; None = to the end of the file
    present: int = 0  #: bytes from the start of the sound to the end of the file
    flac_samples: int = 0  #: samples a channel that a FLAC header announces; 0 = unknown
    patches: dict[int, bytes] = field(default_factory=dict)  #: bytes to replace, by position

    @property
    def cut(self) -> bool:
        """Whether the end of the sound is missing."""
        return self.announced is not None and self.announced > self.present + 1


class Patched(io.RawIOBase):
    """A seekable binary file with some of its bytes replaced."""

    def __init__(self, file: BinaryIO, patches: dict[int, bytes]) -> None:
        self.file, self.patches = file, patches

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        start, view = self.file.tell(), memoryview(buffer).cast("B")
        data = self.file.read(len(view))
        view[: len(data)] = data
        for position, new in self.patches.items():
            first, stop = max(position, start), min(position + len(new), start + len(data))
            if first < stop:
                view[first - start : stop - start] = new[first - position : stop - position]
        return len(data)


def inspect(file: BinaryIO, size: int) -> Length:
    """The length that the header announces. `size` is the size of the file in bytes.

    `mtbi.audio.mp3` counts the length of MP3. The length of Ogg stands at the end of the data.
    """
    file.seek(0)
    start = file.read(32)
    if start[:4] == b"fLaC" and len(start) >= 26 and start[4] & 0x7F == 0:  # STREAMINFO, 36 bits of samples from byte 21
        samples = int.from_bytes(start[21:26], "big") & (1 << 36) - 1
        return Length("FLAC", flac_samples=samples, patches={21: bytes([start[21] & 0xF0, 0, 0, 0, 0])})
    container = CONTAINERS.get(start[:4], "")
    return _inspect(file, size, container, start) or Length(container)


def _inspect(file: BinaryIO, size: int, container: str, start: bytes) -> Length | None:
    if container in ("WAV", "RF64"):
        return _riff(file, size, container, ">" if start[:4] == b"RIFX" else "<")
    if container == "AIFF":
        return next(
            (_length(container, s, size - at) for name, s, at in _chunks(file, size, ">", 12) if name in (b"SSND", b"BODY")),
            None,
        )
    if container == "AU" and len(start) >= 12:
        offset, announced = struct.unpack(">II", start[4:12])
        return _length(container, announced or UNKNOWN, size - offset, {} if announced else {8: struct.pack(">I", UNKNOWN)})
    if container == "W64":
        return _w64(file, size)
    if container == "VOC" and len(start) >= 30 and start[26] in (1, 9):
        return Length(container, int.from_bytes(start[27:30], "little"), size - 30)
    return _sphere(file, size) if container == "SPHERE" else None


def _length(container: str, announced: int, present: int, patches: dict[int, bytes] | None = None) -> Length:
    """The length of `present` bytes of sound, with no announced length where that is a placeholder."""
    placeholder = announced >= PLACEHOLDER_BYTES and announced > present
    return Length(container, None if placeholder else announced, present, patches=patches or {})


def _chunks(file: BinaryIO, size: int, order: str, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, length and position of the contents of each chunk of an IFF or RIFF file."""
    for _ in range(MOST_CHUNKS):
        if position + 8 > size:
            return
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        yield name, length, position + 8
        position += 8 + length + length % 2


def _whole_chunks(file: BinaryIO, size: int, order: str, position: int) -> bool:
    """Whether only whole chunks follow, such as tags. If so, the length of the chunk before them is right."""
    for name, length, start in _chunks(file, size, order, position):
        if not (name.isascii() and name.decode().isprintable()) or start + length > size:
            return False
        position = start + length + length % 2
    return size - position < 8


def _riff(file: BinaryIO, size: int, container: str, order: str) -> Length | None:
    file.seek(4)
    riff_bytes, big, big_at = struct.unpack(f"{order}I", file.read(4))[0], 0, 0
    for name, length, start in _chunks(file, size, order, 12):
        if name == b"ds64" and container == "RF64":
            file.seek(start)
            big, big_at = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1], start + 8
        if name != b"data":
            continue
        present = size - start
        if container == "RF64" and length == UNKNOWN:
            patches = {big_at: struct.pack("<Q", present)} if big_at and not big else {}
            return _length(container, big or UNKNOWN, present, patches)
        # Where the RIFF chunk ends with its data, other data may follow. A length of 0 is the placeholder of a pipe's writer.
        rest_is_sound = length == 0 or (riff_bytes + 8 != start + length and present - length > length // 10)
        if length < present and rest_is_sound and not _whole_chunks(file, size, order, start + length + length % 2):
            return Length(container, None, present, patches={start - 4: struct.pack(f"{order}I", min(present, UNKNOWN))})
        if length in (size, size - 8):  # some programs count the header too
            length = present
        return _length(container, length, present)
    return None


def _w64(file: BinaryIO, size: int) -> Length | None:
    position = 40  # chunk lengths count their own header of 24 bytes
    for _ in range(MOST_CHUNKS):
        if position + 24 > size:
            break
        file.seek(position)
        name, length = struct.unpack("<16sQ", file.read(24))
        if name == W64_DATA:
            return _length("W64", length - 24, size - position - 24)
        position += max(24, (length + 7) // 8 * 8)
    return None


def _sphere(file: BinaryIO, size: int) -> Length | None:
    file.seek(0)
    header = file.read(1024)
    fields = {words[0]: words[2] for line in header.split(b"\n") if len(words := line.split()) == 3}
    try:
        offset = int(header.split()[1])
        frames, width = int(fields[b"sample_count"]), int(fields[b"channel_count"]) * int(fields[b"sample_n_bytes"])
    except (KeyError, ValueError, IndexError):
        return None
    return _length("SPHERE", frames * width, size - offset)


def ogg_links(data: bytes) -> list[bytes]:
    """The recordings of an Ogg file. Some programs write several in a row, and decoders read only the first.

    Raises UserError where the last page is cut.
    """
    starts, began, position, page = [0], False, 0, 0
    while (position := data.find(b"OggS", position)) >= 0:
        begins = len(data) > position + 5 and bool(data[position + 5] & 2)
        if begins and not began and position:
            starts.append(position)
        began, page, position = begins, position, position + 4
    table = data[page + 27 :][: data[page + 26]] if len(data) > page + 26 else b""
    missing = page + 27 + len(table) + sum(table) - len(data)
    if not table or missing > 0:
        raise UserError("truncated: the last page of the Ogg file is not whole")
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
