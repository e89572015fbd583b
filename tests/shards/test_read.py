from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from disturbances import ODDITIES, replace_record
from streaming import MDSWriter
from streaming.base.format.mds.reader import MDSReader

from mtbi import object_store
from mtbi.errors import DamagedError, UnavailableError, UserError
from mtbi.shards import read
from mtbi.shards.index import INDEX_NAME
from mtbi.shards.read import Shards


def test_a_damaged_shard_is_reported_with_its_name(shard_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shard_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "shard.00001.mds"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = Shards(str(tmp_path / "copy"))
    assert found[0].id == "u00"
    with pytest.raises(UserError, match=r"shard.00001.mds: damaged"):
        found[found.index.shard_sizes[0]]
    path.unlink()
    with pytest.raises(UserError, match=r"shard.00001.mds: this shard is missing"):
        Shards(str(tmp_path / "copy"))[found.index.shard_sizes[0]]


@pytest.mark.parametrize(
    ("oddity", "message"),
    [
        ("no audio", "utterance 'u07': its samples are not those of the index"),
        ("half of its audio", "utterance 'u07': its samples are not those of the index"),
        ("audio that is cut off", "utterance 'u07' cannot be decoded"),
        ("an answer less", "utterance 'u07' cannot be decoded"),
        ("an answer token less", "utterance 'u07': its answers are not those of the index"),
    ],
)
def test_an_odd_utterance_with_a_right_checksum_is_damaged(
    oddity: str, message: str, shard_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(shard_folder, tmp_path / "copy")
    replace_record(tmp_path / "copy", 7, ODDITIES[oddity])
    odd = Shards(str(tmp_path / "copy"))
    assert (odd[6].id, odd[8].id) == ("u06", "u08")
    with pytest.raises(DamagedError, match=message):
        odd[7]


def test_pickles_are_refused(shard_folder: Path, tmp_path: Path) -> None:
    with MDSWriter(out=str(tmp_path / "bad"), columns={"id": "pkl"}, hashes=["xxh64"]) as writer:
        for _ in range(60):
            writer.write({"id": {"any": "object"}})
    for name in (INDEX_NAME, "utterances.npy", "branches.npy", "words.npy"):
        shutil.copy(shard_folder / name, tmp_path / "bad" / name)
    with pytest.raises(UserError, match=r"index.json is refused: .*column_encodings=\['pkl'\]"):
        Shards(str(tmp_path / "bad"))
    np.save(tmp_path / "bad" / "words.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"words.npy"):
        Shards(str(tmp_path / "bad"))


@pytest.fixture
def slow_remote(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address whose files are those of `shard_folder`; a shard takes a while. S3 itself: test_store."""

    def fetch(_place: str, local: Path, _retries: int) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        if local.suffix == ".mds":
            time.sleep(1.5)
        shutil.copy(shard_folder / local.name, local)

    monkeypatch.setattr(object_store, "fetch", fetch)
    return "s3://speech/digits"


def test_a_ready_shard_is_read_while_another_is_fetched(slow_remote: str, tmp_path: Path) -> None:
    found = Shards(slow_remote, str(tmp_path))
    found[0]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(found.__getitem__, 59)
        time.sleep(0.05)
        found[1]
        assert not other.done()


def test_the_shard_used_longest_ago_is_dropped(slow_remote: str, shard_folder: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in sorted(shard_folder.glob("*.mds"))]
    found = Shards(slow_remote, str(tmp_path), cache_limit_gb=(sizes[0] + max(sizes[1:3])) / 1e9)
    ends = np.cumsum(found.index.shard_sizes).tolist()
    for number in (0, ends[0], 0, ends[1]):
        found[number]
    assert sorted(path.name for path in tmp_path.rglob("*.mds")) == ["shard.00000.mds", "shard.00002.mds"]


def test_a_shard_that_another_reader_drops_at_once_is_fetched_again(
    slow_remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, fetch, dropped = Shards(slow_remote, str(tmp_path)), object_store.fetch, []

    def fetch_and_drop(place: str, local: Path, retries: int = 5) -> None:
        fetch(place, local, retries)
        if len(dropped) < 2:
            local.unlink()
            dropped.append(local)

    monkeypatch.setattr(object_store, "fetch", fetch_and_drop)
    assert found[0].id == found[0].id
    assert len(dropped) == 2


def test_wrong_places_and_versions_are_explained(shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards there"):
        Shards(str(tmp_path))
    shutil.copytree(shard_folder, tmp_path / "copy")
    index = tmp_path / "copy" / INDEX_NAME
    index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
    with pytest.raises(UserError, match="another version"):
        Shards(str(tmp_path / "copy"))


def test_none_of_the_streaming_packages_traps(shard_folder: Path, tmp_path: Path) -> None:
    """Its StreamingDataset keeps names in shared memory and locks in /tmp/streaming that outlive a killed run or are others'.

    Reading shards here needs neither, so leftovers do not matter and nothing is left over.
    """
    leftovers = [Path("/dev/shm/000000_locals"), Path("/dev/shm/000000_barrier")]
    made = [path for path in leftovers if not path.exists()]
    for path in made:
        path.write_bytes(b"of a killed run")
    script = f"""
import os
before = set(os.listdir("/dev/shm"))
from mtbi.shards.read import Shards
found = Shards({str(shard_folder)!r})
samples = sum(len(found[number].waveform) for number in range(60))
print(samples, sorted(name for name in set(os.listdir("/dev/shm")) - before if name[:6].isdigit()))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    try:
        readers = [
            subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) for _ in "ab"
        ]
        outputs = [reader.communicate(timeout=120)[0] for reader in readers]
    finally:
        for path in made:
            path.unlink()
    assert outputs[0] == outputs[1]
    assert outputs[0].endswith(" []\n")
    assert not list(tmp_path.iterdir())


def failing_reader(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Reads of samples raise these errors one after the other, then succeed."""
    left, real = list(errors), MDSReader.get_item
    monkeypatch.setattr(read, "READ_PAUSE_SECONDS", 0.0)

    def get_item(self: MDSReader, place: int) -> dict:
        if left:
            raise left.pop(0)
        return real(self, place)

    monkeypatch.setattr(MDSReader, "get_item", get_item)


def test_a_passing_error_of_the_file_system_is_tried_again(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_reader(monkeypatch, OSError(116, "Stale file handle"), OSError(5, "Input/output error"))
    assert Shards(str(shard_folder))[0].id == "u00"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(5, "Input/output error"), UnavailableError, r"shard\.00000\.mds: cannot be read now \(Input/output error\)"),
        (PermissionError(13, "Permission denied"), UserError, r"shard\.00000\.mds: may not be read \(Permission denied\)"),
        (ValueError("buffer is too small"), DamagedError, r"shard 0 cannot be read \(buffer is too small\)"),
    ],
)
def test_errors_of_reading_tell_the_lost_from_the_unavailable(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[UserError], message: str
) -> None:
    failing_reader(monkeypatch, *[error] * 9)
    with pytest.raises(UserError, match=message) as found:
        Shards(str(shard_folder))[0]
    assert type(found.value) is kind


def test_a_folder_that_goes_away_is_not_a_lost_shard(shard_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    found = Shards(str(copy))
    (copy / "shard.00001.mds").unlink()
    with pytest.raises(DamagedError, match=r"shard\.00001\.mds: this shard is missing"):
        found[found.index.shard_sizes[0]]
    copy.rename(tmp_path / "unmounted")
    with pytest.raises(UnavailableError, match="is its file system mounted"):
        found[0]


def test_a_sample_that_cannot_be_decoded_is_damaged(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Shards(str(shard_folder))
    good = found.columns(0)
    for spoilt in ({"audio": good["audio"][:100]}, {"tensors": good["tensors"][:50]}, {"answers": [{}]}):
        monkeypatch.setattr(found, "columns", lambda number, spoilt=spoilt: {**good, **spoilt})
        with pytest.raises(DamagedError, match="utterance 'u00' cannot be decoded"):
            found[0]
