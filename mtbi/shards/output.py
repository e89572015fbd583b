"""Where new shards are written: a folder or an address of object storage, in one piece or in parts by an array job.

A part is a folder of shards of its own, `OUT/part-3-of-64`. It is complete once it has an index. The process that finishes the
last part joins all of them by an index in OUT: the tables one after another, and MDS's list of shards with the folders of the
parts in their names, as streaming's `merge_index` writes it. No shard is copied. The tables are those of a run without parts;
only the shards end at other utterances.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mtbi import mds, object_store
from mtbi.corpus.manifest import ManifestSlice
from mtbi.errors import UserError
from mtbi.shards.index import INDEX_NAME, TABLES, concatenate, write_index
from mtbi.shards.read import ShardFolder
from mtbi.shards.record import COLUMNS

RETRIES = 12  # of each download, as in reading (`data.retries`)
UPLOAD_ATTEMPTS = 8  # about two minutes
MADE_FROM = "made_from"  #: the entry of an index for the digest of what its parts were made from


class ShardOutput:
    """New shards at `out`, or one part of them. `made_from` is a digest of the parts' source, equal for all of them."""

    def __init__(self, out: str, part: ManifestSlice | None = None, made_from: str = "") -> None:
        self.out, self.part = out.rstrip("/"), part
        self.address = f"{self.out}/{part}" if part else self.out
        self.remote = object_store.is_remote(out)
        self.facts = {MADE_FROM: made_from} if part else {}  #: what the index holds beside the facts of its shards

    def finished(self) -> int | None:
        """The number of utterances of a part that is complete already, else None.

        Raises UserError where the address holds other things than parts with the same source.
        """
        if not self.part:
            refuse_used(self.out) if self.remote else refuse_filled(self.out)
            return None
        whole = read_json(self.out, INDEX_NAME)
        if whole is not None and whole.get(MADE_FROM) != self.facts[MADE_FROM]:
            raise used(self.out, "other shards")
        if not self.remote and (others := self.other_divisions()):
            raise UserError(f"{self.out}: holds {others[0]}, a part of another division; delete it, or choose another folder.")
        record = read_json(self.address, INDEX_NAME)
        if record is None:
            return None
        if record.get(MADE_FROM) != self.facts[MADE_FROM]:
            raise other_source(self.address)
        return int(record["utterances"])

    def other_divisions(self) -> list[str]:
        """The parts in a local folder that do not belong to this division."""
        names = {str(sibling) for sibling in self.part.siblings()} if self.part else set()
        return sorted({path.name for path in Path(self.out).glob("part-*-of-*") if path.suffix != ".partial"} - names)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new local folder for shards and index. After the block it is the output, whole or not at all.

        Locally the folder gets its name when it is complete. To object storage the index goes last.
        """
        if not self.remote:
            partial = Path(f"{self.address}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a killed run
            yield partial
            Path(self.address).parent.mkdir(parents=True, exist_ok=True)
            partial.replace(self.address)
            return
        with tempfile.TemporaryDirectory(prefix="mtbi-shards-") as scratch:
            local = Path(scratch) / "shards"
            yield local
            upload_whole(local, self.address)

    @contextmanager
    def shards(self, local: Path, shard_bytes: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A function that writes one record into MDS shards in the folder `local`.

        On the way to object storage, a full shard is uploaded while the next one is written, and deleted here: two shards at a
        time take space. Raises UserError where the store refuses or fails.
        """
        writing = mds.part("streaming:MDSWriter")(out=str(local), columns=COLUMNS, hashes=["xxh64"], size_limit=shard_bytes)
        with ThreadPoolExecutor(1) as thread, writing as writer:
            uploads: list[Future[None]] = []

            def write(columns: dict[str, Any]) -> None:
                writer.write(columns)
                if self.remote and len(writer.shards) > len(uploads):
                    for upload in uploads[-1:]:
                        upload.result()
                    name = writer.shards[-1]["raw_data"]["basename"]
                    uploads.append(thread.submit(move, local / name, self.address))

            yield write
            for upload in uploads[-1:]:
                upload.result()

    def join(self) -> bool:
        """Write the index of all parts, where all are complete. Returns whether `out` is complete.

        Two processes may do so at once: they write the same. Raises UserError where the parts have different sources or LLMs,
        and where none has an utterance.
        """
        if not self.part:
            return True
        addresses = [f"{self.out}/{sibling}" for sibling in self.part.siblings()]
        filled = []
        for address in reversed(addresses):  # the last parts are the likeliest to be missing
            record = read_json(address, INDEX_NAME)
            if record is None:
                return False
            if record.get(MADE_FROM) != self.facts[MADE_FROM]:
                raise other_source(address)
            filled += [address] if record["utterances"] else []
        if not filled:
            raise UserError(f"{self.out}: none of the parts has an utterance; run `mtbi behave` on this manifest.")
        if read_json(self.out, INDEX_NAME) is None:
            self.write_joined(filled[::-1])
        return True

    def write_joined(self, addresses: list[str]) -> None:
        """Write the index of the parts at `addresses`. The tables are written piece by piece, not collected in memory."""
        with tempfile.TemporaryDirectory(prefix=".join-", dir=None if self.remote else self.out) as scratch:
            local = Path(scratch) / "joined"
            local.mkdir()
            folders = [ShardFolder(address, f"{scratch}/parts", 0, RETRIES) for address in addresses]

            def on_disk(name: str, layout: np.dtype, rows: int) -> np.ndarray:
                return np.lib.format.open_memmap(local / f"{name}.npy", "w+", layout, (rows,))

            joined = concatenate([folder.index for folder in folders], addresses, False, on_disk)
            for name in TABLES:
                table, path = getattr(joined, name), local / f"{name}.npy"
                if path.exists():
                    table.flush()
                else:  # of a single part
                    np.save(path, table, allow_pickle=False)
            described = [folder.described(Path(folder.address).name) for folder in folders]
            record = {"version": 2, "shards": [shard for shards in described for shard in shards]}
            (local / "index.json").write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
            write_index(local, joined.facts() | self.facts)
            if self.remote:
                upload_whole(local, self.out)
                return
            for name in index_last(local):
                (local / name).replace(Path(self.out) / name)


def move(path: Path, address: str) -> None:
    """Upload a file into a remote folder, and delete it here."""
    object_store.upload(path.parent, [path.name], address, UPLOAD_ATTEMPTS)
    path.unlink()


def index_last(folder: Path) -> list[str]:
    """The names in a folder of shards, with the index that makes it complete at the end."""
    return [*sorted(path.name for path in folder.iterdir() if path.name != INDEX_NAME), INDEX_NAME]


def upload_whole(folder: Path, address: str) -> None:
    """Upload the files of a folder of shards, the index last."""
    object_store.upload(folder, index_last(folder), address, UPLOAD_ATTEMPTS)


def read_json(address: str, name: str) -> dict[str, Any] | None:
    """A JSON object in a folder or on object storage. None where there is none. Raises UserError for a damaged one."""
    with tempfile.TemporaryDirectory(prefix="mtbi-shards-") as scratch:
        path = Path(address) / name
        if object_store.is_remote(address):
            path = Path(scratch) / name
            with contextlib.suppress(object_store.NotFoundError):
                object_store.fetch(f"{address}/{name}", path, RETRIES)
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise UserError(f"{address}/{name}: damaged ({error}); delete its folder, and make it again.") from error


def refuse_used(out: str) -> None:
    """Raises UserError where a remote address holds shards: caches would mix their copies with the new shards."""
    with tempfile.TemporaryDirectory(prefix="mtbi-shards-") as scratch:
        try:
            object_store.fetch(f"{out}/{INDEX_NAME}", Path(scratch) / INDEX_NAME, retries=2)
        except object_store.NotFoundError:
            return
    raise used(out, "shards")


def used(out: str, what: str) -> UserError:
    """The error for an address that holds something."""
    return UserError(f"{out}: holds {what} already; choose another address, or delete them there and in the caches.")


def other_source(address: str) -> UserError:
    """The error for a part that does not fit the others."""
    return UserError(f"{address}: this part was made from another source; delete it, and run its command again.")


def refuse_filled(out: str) -> None:
    """Raises UserError where a local folder holds something."""
    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"{out}: not empty; shards go into a new folder. Choose another one, or delete it.")
