"""Reading shards by random access, from folders and from object storage through a cache.

No shared memory is used, so a killed run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from mtbi import mds, object_store
from mtbi.errors import DamagedError, UnavailableError, UserError
from mtbi.shards import index_sums
from mtbi.shards.index import INDEX_NAME, TABLES, VERSIONS, Index, concatenate, make_index
from mtbi.shards.record import COLUMNS, StoredUtterance, unpack

EVICTED_ATTEMPTS = 5  # times that other readers may drop a shard before it is read; then the cache is too small
READ_ATTEMPTS = 3  # times that the file system may fail to read one utterance (a stale handle, a passing error)
READ_PAUSE_SECONDS = 1.0  # after the first failed attempt; later pauses are longer


class ShardFolder:
    """The shards of one address, fetched on demand into a cache. Raises UserError where there are none."""

    def __init__(self, address: str, cache_dir: str, cache_limit_bytes: int, retries: int) -> None:
        self.address, self.retries, self.cache_limit_bytes = address.rstrip("/"), retries, cache_limit_bytes
        self.remote = object_store.is_remote(address)
        self.local = Path(cache_dir) / address.replace("://", "/").strip("/") if self.remote else Path(address)
        self.checked: set[int] = set()  # shards whose checksum was right
        self.index = self._read_index()
        self.ends = np.cumsum(self.index.shard_sizes)
        self.readers = self._read_shard_list()
        # There is one lock for each shard. While one shard is fetched, others are read and fetched.
        self.locks = [threading.Lock() for _ in self.readers]
        self.evicting = threading.Lock()

    def _file(self, name: str) -> Path:
        path = self.local / name
        if self.remote and not path.exists():
            with object_store.in_turn(path):
                if not path.exists():
                    object_store.fetch(f"{self.address}/{name}", path, self.retries)
        return path

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self._file(name)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.address}: no shards there ({name} is missing). Make them with `mtbi data shard`.") from None
        except OSError as error:
            raise read_error(path, error) from error
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); copy it again or make the shards again.") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}: damaged (not a JSON object); copy it again or make the shards again.")
        return record

    def _read_index(self) -> Index:
        record = self._read_json(INDEX_NAME)
        if (version := record.get("version")) not in VERSIONS:
            raise UserError(f"{self.address}: written by another version of mtbi ({version}); make the shards again.")
        index = make_index(self.address, record, {name: self._read_table(name, layouts) for name, layouts in TABLES.items()})
        try:
            damaged = index_sums.damaged(self.local, TABLES, record)
        except OSError as error:
            raise read_error(self.local, error) from error
        if damaged:
            name = INDEX_NAME if damaged[0] == index_sums.FACTS else f"{damaged[0]}.npy"
            raise UserError(
                f"{self.local / name}: damaged (its checksum is not the one in {INDEX_NAME}); copy it again or make the shards "
                "again."
            )
        return index

    def _read_table(self, name: str, layouts: tuple[np.dtype, ...]) -> np.ndarray:
        path = self._file(f"{name}.npy")
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
        except PermissionError as error:
            raise read_error(path, error) from error
        except Exception as error:  # numpy raises many kinds of exception for a damaged header
            raise UserError(f"{path}: cannot be read ({error}); make the shards again.") from error
        if table.dtype not in layouts:
            raise UserError(f"{path}: not the table of an index; make the shards again.")
        return table

    def _read_shard_list(self) -> list[Any]:
        """An MDS reader for each shard."""
        described = self._read_json("index.json").get("shards")
        if not isinstance(described, list):
            raise UserError(f"{self.address}: index.json is not that of MDS shards; make the shards again.")
        if fault := next(filter(None, map(find_fault, described)), None):
            raise UserError(f"{self.address}: index.json is refused: {fault}; make the shards again.")
        reader = mds.part("streaming.base.format:reader_from_json")
        readers: list[Any] = [reader(str(self.local), "", shard) for shard in described]
        if [reader.samples for reader in readers] != self.index.shard_sizes:
            raise UserError(f"{self.address}: index.json and {INDEX_NAME} disagree; make the shards again.")
        return readers

    def described(self, below: str) -> list[dict[str, Any]]:
        """The shards as `index.json` describes them, with the folder `below` in their names."""
        shards = self._read_json("index.json")["shards"]
        files = [shard["raw_data"] | {"basename": f"{below}/{shard['raw_data']['basename']}"} for shard in shards]
        return [shard | {"raw_data": file} for shard, file in zip(shards, files, strict=True)]

    def _ready(self, shard: int) -> Any:
        """The MDS reader of a shard whose file is here and has the right checksum."""
        digest = mds.part("streaming.base.hashing:get_hash")
        reader = self.readers[shard]
        path = self.local / reader.raw_data.basename
        with self.locks[shard]:
            if shard in self.checked and path.exists():
                if self.cache_limit_bytes and self.remote:
                    touch(path)
                return reader
            for attempt in (1, 2):
                if not self._file(reader.raw_data.basename).exists() and not self.remote:
                    raise self._missing(path)
                # Another reader of this cache may drop the file at this moment. `columns` then tries again.
                if digest("xxh64", path.read_bytes()) == reader.raw_data.hashes["xxh64"]:
                    break
                if attempt == 2 or not self.remote:
                    raise DamagedError(
                        f"{path}: damaged (its checksum is not the one in index.json); copy it again or make the shards again."
                    )
                path.unlink(missing_ok=True)  # it is fetched once more
            self.checked.add(shard)
            self._evict(path)
            return reader

    def _missing(self, path: Path) -> UserError:
        """The error for a local shard that is not there: it is lost, or the whole folder is away."""
        if (self.local / INDEX_NAME).exists():
            return DamagedError(f"{path}: this shard is missing; copy it again or make the shards again.")
        return UnavailableError(f"{self.local}: the folder of shards is gone since the start; is its file system mounted?")

    def _evict(self, keep: Path) -> None:
        """Drop the least recently used shards, but not `keep`, until the cache is below its limit."""
        if not self.remote or not self.cache_limit_bytes:
            return
        with self.evicting:
            touch(keep)
            files = []
            for path in self.local.rglob("shard.*.mds"):
                with contextlib.suppress(FileNotFoundError):  # another process dropped it just now
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self.cache_limit_bytes:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= size

    def columns(self, number: int) -> dict[str, Any]:
        """The stored columns of utterance `number`.

        Raises DamagedError where it is lost or damaged, UnavailableError where the file system or object store does not answer,
        and UserError where access is refused or the cache is too small.
        """
        shard = int(np.searchsorted(self.ends, number, side="right"))
        index = number - (int(self.ends[shard - 1]) if shard else 0)
        path = self.local / self.readers[shard].raw_data.basename
        evictions = failures = 0
        while True:
            try:
                return self._ready(shard).get_item(index)
            except FileNotFoundError as error:  # another reader dropped it from the cache in between
                evictions += 1
                if evictions == EVICTED_ATTEMPTS and self.remote:
                    raise UserError(
                        f"{self.address}: shard {shard} is dropped from {self.local} as fast as it is fetched; "
                        "raise data.cache_limit_gb."
                    ) from error
                if evictions == EVICTED_ATTEMPTS:
                    raise self._missing(path) from error
            except OSError as error:
                failures += 1
                if isinstance(error, PermissionError) or failures == READ_ATTEMPTS:
                    raise read_error(path, error) from error
                time.sleep(READ_PAUSE_SECONDS * failures)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise DamagedError(f"{self.address}: shard {shard} cannot be read ({error}); make the shards again.") from error


def touch(path: Path) -> None:
    """Mark a file as used now. The time is in nanoseconds, because the kernel's own stamps are milliseconds apart."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def read_error(path: Path, error: OSError) -> UserError:
    """The error for a file that is there but that the file system does not give."""
    if isinstance(error, PermissionError):
        return UserError(f"{path}: may not be read ({error.strerror}); check its rights and those of its folders.")
    return UnavailableError(f"{path}: cannot be read now ({error.strerror or error}); check the file system that holds it.")


def find_fault(described: Any) -> str | None:
    """What differs from the description of a shard that `mtbi data shard` writes; None where nothing does.

    The MDS reader gets nothing else: it would unpickle columns, and follow names that lead out of the folder.
    """
    if not isinstance(described, dict):
        return f"a shard is described by an object, not by {described!r}"
    names = sorted(COLUMNS)
    fixed = {
        "column_names": names,
        "column_encodings": [COLUMNS[name] for name in names],
        "column_sizes": [None] * len(names),
        "compression": None,
        "format": "mds",
        "version": 2,
        "zip_data": None,
    }
    wanted = {*fixed, "hashes", "raw_data", "samples", "size_limit"}
    if set(described) != wanted:
        return f"the keys {sorted(set(described) ^ wanted)} of a shard are missing or unknown"
    if other := [f"{key}={described[key]!r}" for key, value in fixed.items() if described[key] != value]:
        return ", ".join(other)
    raw, limit = described["raw_data"], described["size_limit"]
    if not has_checksum(raw):
        return f"no xxh64 checksum in {raw!r}"
    if not re.fullmatch(r"(part-\d+-of-\d+/)?shard\.\d{5,}\.mds", str(raw["basename"])):
        return f"the shard name {raw['basename']!r}"
    counts = (described["samples"], raw["bytes"], 1 if limit is None else limit)
    if not all(isinstance(count, int) and 0 <= count < 2**63 for count in counts) or described["hashes"] != ["xxh64"]:
        return f"samples, bytes, size_limit {counts} or hashes {described['hashes']!r}"
    return None


def has_checksum(raw: Any) -> bool:
    """Whether the description of a shard's file has the right keys, an xxh64 checksum among them."""
    if not isinstance(raw, dict) or set(raw) != {"basename", "bytes", "hashes"}:
        return False
    return isinstance(raw["hashes"], dict) and isinstance(raw["hashes"].get("xxh64"), str)


class Shards:
    """One or several addresses as one list of utterances, by random access from any number of threads and processes.

    Raises UserError where an address holds no shards, cannot be reached, or is damaged.
    """

    def __init__(
        self,
        addresses: str | list[str],
        cache_dir: str = "",
        cache_limit_gb: float = 0.0,
        retries: int = 5,
        several_teachers: bool = False,
    ) -> None:
        """`addresses` are folders or `s3://…`. With `several_teachers` their LLMs may differ in size."""
        addresses = [addresses] if isinstance(addresses, str) else addresses
        cache = cache_dir or str(Path(tempfile.gettempdir()) / f"mtbi-cache-{os.getuid()}")
        self.folders = [ShardFolder(address, cache, int(cache_limit_gb * 1e9), retries) for address in addresses]
        self.index = concatenate([folder.index for folder in self.folders], addresses, several_teachers)
        self.ends = np.cumsum([len(folder.index.utterances) for folder in self.folders])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def columns(self, number: int) -> dict[str, Any]:
        """The stored columns of utterance `number`, counted over all addresses. Raises as `ShardFolder.columns` does."""
        folder = int(np.searchsorted(self.ends, number, side="right"))
        return self.folders[folder].columns(number - (int(self.ends[folder - 1]) if folder else 0))

    def record(self, number: int) -> tuple[dict[str, Any], StoredUtterance]:
        """The stored columns of utterance `number`, and the utterance. Raises as `ShardFolder.columns` does.

        An utterance that differs from its rows in the index is damaged too: the plan would lay out another one.
        """
        columns = self.columns(number)
        name = columns.get("id")
        try:
            utterance = unpack(columns)
            difference = self.index.difference(number, utterance)
        except (UserError, SafetensorError, ValueError, TypeError, KeyError, IndexError) as error:
            raise DamagedError(f"utterance {name!r} cannot be decoded ({error}); make the shards again.") from error
        if difference:
            raise DamagedError(f"utterance {name!r}: its {difference} are not those of the index; make the shards again.")
        return columns, utterance

    def __getitem__(self, number: int) -> StoredUtterance:
        """Utterance `number`, counted over all addresses. Raises as `record` does."""
        return self.record(number)[1]
