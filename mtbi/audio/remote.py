"""Recordings on object storage (`s3://…`), read by ranges: of a long file or of an archive only what is needed.

A file is read in blocks. The blocks read last are kept, and threads that want the same block wait for one request. So segments
that follow each other in a file, or members of an archive, fetch each byte once, and single small files need one request.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, BinaryIO

from mtbi import object_store
from mtbi.audio import members
from mtbi.errors import UnavailableError, UserError
from mtbi.object_store import Piece

BLOCK_BYTES = 2**20  #: of a request. Half a minute of FLAC at 16 kHz
MOST_BLOCKS = 256  #: that stay in memory


class Blocks:
    """The blocks of remote files that were read last."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[str, int], Future[Piece]] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, address: str, number: int, tag: str = "") -> Piece:
        """Block `number` of a file. Raises UserError as `object_store.read_range` does; then it is not kept."""
        key = (address, number)
        with self.lock:
            known = self.kept.get(key)
            block = known or Future()
            self.kept[key] = block
            self.kept.move_to_end(key)
            while len(self.kept) > MOST_BLOCKS:
                self.kept.popitem(last=False)
        if known is None:
            try:
                block.set_result(object_store.read_range(address, number * BLOCK_BYTES, BLOCK_BYTES, tag))
            except BaseException as error:
                with self.lock:
                    self.kept.pop(key, None)
                block.set_exception(error)
        return block.result()


BLOCKS = Blocks()


class RemoteFile(members.SeekableFile):
    """A remote file as a seekable file. Where the store fails, it ends early, and `failure` says why.

    libsndfile calls it from C, where an exception would be lost.
    """

    def __init__(self, address: str) -> None:
        """Raises UserError where the first block cannot be read."""
        start = BLOCKS.get(address, 0)
        super().__init__(start.total)
        self.address, self.tag = address, start.tag
        self.failure: UserError | None = None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.position >= self.size or self.failure:
            return 0
        number, first = divmod(self.position, BLOCK_BYTES)
        try:
            data = BLOCKS.get(self.address, number, self.tag).data[first : first + len(view)]
        except UserError as error:
            self.failure = error
            return 0
        view[: len(data)] = data
        self.position += len(data)
        return len(data)


@contextmanager
def opened(audio: str) -> Iterator[BinaryIO]:
    """A recording at an address, or inside an archive there, as a seekable binary file.

    Raises UserError where there is no such recording, and UnavailableError where the store fails or refuses: then no recording
    is at fault.
    """
    span = members.span_of(audio)
    if span is None and members.is_member(audio):
        raise UserError("not readable: a Parquet file on object storage; download it")
    try:
        raw = RemoteFile(span[0] if span else audio)
    except object_store.NotFoundError as error:
        raise UserError("no such file: the object store has none at this address") from error
    except UserError as error:
        raise UnavailableError(str(error)) from error
    file: Any = raw
    if span:
        members.refuse_outside(span[1], span[2], raw.size)
        file = members.Window(io.BufferedReader(raw), span[1], span[2])
    try:
        with io.BufferedReader(file) as buffered:
            yield buffered
    finally:
        if raw.failure:
            raise UnavailableError(str(raw.failure)) from raw.failure
