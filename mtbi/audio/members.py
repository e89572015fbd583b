"""Recordings inside archives, read where they are.

A path with two numbers behind it, `audio_0.tar:1536:48213`, means bytes of an archive that does not compress its members: the
position of the first, and their number. fairseq's speech-to-text data use this form for ZIP files. `part.parquet:audio:12` is
the row 12, counted from 0, of the column `audio` of a Parquet file. Whoever reads such a path needs no list of members.
"""

from __future__ import annotations

import io
import re
import threading
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from mtbi.errors import UserError

BYTES = re.compile(r"(?P<file>.+\.(?:tar|zip|ark)):(?P<first>\d+):(?P<size>\d+)", re.IGNORECASE | re.DOTALL)
ROW = re.compile(r"(?P<file>.+\.parquet):(?P<column>[^:/]+):(?P<row>\d+)", re.IGNORECASE | re.DOTALL)
MOST_FILES = 8  # Parquet files that stay open
MOST_GROUPS = 2  # row groups that stay in memory: threads are on both sides of a border at once


def file_of(audio: str | Path) -> str:
    """The file on the disk that an audio path means: the archive, for a recording inside one."""
    match = BYTES.fullmatch(str(audio)) or ROW.fullmatch(str(audio))
    return match["file"] if match else str(audio)


def is_member(audio: str | Path) -> bool:
    """Whether an audio path means a recording inside an archive."""
    return file_of(audio) != str(audio)


def span_of(audio: str | Path) -> tuple[str, int, int] | None:
    """The archive, first byte and number of bytes of a path that gives them. None for all other paths."""
    match = BYTES.fullmatch(str(audio))
    return (match["file"], int(match["first"]), int(match["size"])) if match else None


def open_member(audio: str | Path) -> BinaryIO:
    """The recording as a seekable binary file. Raises UserError where the archive does not have it, and OSError."""
    if span := span_of(audio):
        path, first, size = span
        file = Path(path).open("rb")  # noqa: SIM115  # the window closes it
        end = file.seek(0, io.SEEK_END)
        try:
            refuse_outside(first, size, end)
        except UserError:
            file.close()
            raise
        return io.BufferedReader(Window(file, first, size))
    match = ROW.fullmatch(str(audio))
    if match is None:
        raise ValueError(f"{audio}: no recording inside an archive")
    return io.BytesIO(read_row(match["file"], match["column"], int(match["row"])))


def refuse_outside(first: int, size: int, end: int) -> None:
    """Raises UserError where a recording does not lie inside an archive of `end` bytes."""
    if first + size > end:
        raise UserError(f"truncated: the archive has {end} bytes, and the recording lies at {first} to {first + size}")


class SeekableFile(io.RawIOBase):
    """A file of `size` bytes that can be read from any position. A subclass says how (`readinto`)."""

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position


class Window(SeekableFile):
    """A stretch of bytes of a file as a file."""

    def __init__(self, file: BinaryIO, first: int, size: int) -> None:
        super().__init__(size)
        self.file, self.first = file, first

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self.file.seek(self.first + self.position)
        data = self.file.read(max(0, min(len(view), self.size - self.position)))
        view[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


_LOCK = threading.Lock()


def pyarrow_parquet() -> Any:
    """The module `pyarrow.parquet`. Raises UserError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("needs pyarrow: a Parquet file is read with it; pip install 'mtbi[parquet]'") from error
    return pyarrow.parquet


def read_row(path: str, column: str, row: int) -> bytes:
    """The bytes of a recording in a Parquet file. Its whole row group is read, and kept for the rows beside it.

    Raises UserError where the file is no Parquet file, or has no such row, column or bytes, and OSError.
    """
    changed = Path(path).stat().st_mtime_ns
    with _LOCK:  # so that threads that want rows of one group read it once
        try:
            starts = _open_parquet(path, changed)[1]
            if row >= starts[-1]:
                raise UserError(f"no such row: the Parquet file has {starts[-1]} rows, and row {row} is asked for")
            group = bisect_right(starts, row) - 1
            data = _row_group(path, changed, column, group)[row - starts[group]].as_py()
        except OSError as error:
            raise UserError(f"cannot be opened: {error.strerror or error}") from error
        except (ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and KeyErrors
            raise UserError(f"not readable as Parquet: {error}") from error
    if not isinstance(data, bytes) or not data:
        raise UserError(f"no bytes: row {row} has no recording in the column {column}")
    return data


@lru_cache(maxsize=MOST_FILES)
def _open_parquet(path: str, changed: int) -> tuple[Any, list[int]]:
    """A file of pyarrow, and the number of the first row of each row group and of the row after the last one."""
    file = pyarrow_parquet().ParquetFile(path)
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    return file, [0, *accumulate(sizes)]


@lru_cache(maxsize=MOST_GROUPS)
def _row_group(path: str, changed: int, column: str, group: int) -> Any:
    """The bytes of all recordings of a row group: of a column of bytes, or of Hugging Face's struct of bytes and path."""
    file = _open_parquet(path, changed)[0]
    nested = f"{column}.bytes" in [file.schema.column(number).path for number in range(len(file.schema))]
    values = file.read_row_group(group, columns=[f"{column}.bytes" if nested else column]).column(column).combine_chunks()
    return values.field("bytes") if nested else values
