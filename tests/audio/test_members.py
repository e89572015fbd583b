"""Recordings inside archives: the same samples as in the files, without unpacking."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec, members
from mtbi.audio.segments import AudioSegment
from mtbi.errors import UserError


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)


def packed(folder: Path, *names: str) -> dict[str, str]:
    """A tar file of these files, and the address of each."""
    with tarfile.open(folder / "größe.tar", "w") as archive:
        for name in names:
            archive.add(folder / name, name)
    with tarfile.open(folder / "größe.tar") as archive:
        return {info.name: f"{folder / 'größe.tar'}:{info.offset_data}:{info.size}" for info in archive}


def test_addresses() -> None:
    assert members.file_of("a/b.tar:512:99") == "a/b.tar"
    assert members.file_of("a/train-00.parquet:audio:3") == "a/train-00.parquet"
    assert members.span_of("x.TAR:0:12") == ("x.TAR", 0, 12)
    for path in ("a.wav", "a.tar", "a.wav:1:2", "12:30:15", "a.tar:x:2", "a.parquet:3"):
        assert not members.is_member(path)
        assert members.file_of(path) == path


@pytest.mark.parametrize(
    ("ending", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]
)
def test_members_and_their_segments_are_those_of_the_files(ending: str, subtype: str, tmp_path: Path) -> None:
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.{ending}", noise(3, number), 16_000, subtype=subtype)
    addresses = packed(tmp_path, f"0.{ending}", f"1.{ending}")
    for name, address in addresses.items():
        assert np.array_equal(codec.read(address), codec.read(tmp_path / name))
        segment = AudioSegment(1.25, 1.0)
        assert np.array_equal(codec.load(address, segment=segment)[0], codec.load(tmp_path / name, segment=segment)[0])


def test_zip_files_that_do_not_compress(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(1), 16_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.flac", "a.flac")
    data = (tmp_path / "a.flac").read_bytes()
    position = (tmp_path / "a.zip").read_bytes().index(data)
    assert np.array_equal(codec.read(f"{tmp_path}/a.zip:{position}:{len(data)}"), codec.read(data))


def test_mistakes_are_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(1), 16_000)
    packed(tmp_path, "a.flac")
    with pytest.raises(UserError, match="truncated: the archive has"):
        codec.read(f"{tmp_path}/größe.tar:512:99999999")
    with pytest.raises(UserError, match="no such file"):
        codec.read(f"{tmp_path}/gone.tar:512:10")
    with pytest.raises(UserError, match="not readable as audio"):
        codec.read(f"{tmp_path}/größe.tar:0:512")
    with pytest.raises(UserError, match="no such file"):
        codec.read(f"{tmp_path}/gone.parquet:audio:0")
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(UserError, match="not readable as Parquet"):
        codec.read(f"{tmp_path}/a.parquet:audio:0")


def test_rows_of_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = []
    for number in range(10):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise(0.5, number), 16_000, format="FLAC")
        files.append(buffer.getvalue())
    rows = [{"bytes": data, "path": f"{number}.flac"} for number, data in enumerate(files)] + [{"bytes": None, "path": "x"}]
    table = pyarrow.table({"audio": rows, "raw": [*files, b""]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    order = [0, 9, 3, 4, 1, 8]
    with ThreadPoolExecutor(4) as pool:
        for column in ("audio", "raw"):
            waves = pool.map(lambda row, column=column: codec.read(f"{tmp_path}/a.parquet:{column}:{row}"), order)
            for row, wave in zip(order, waves, strict=True):
                assert np.array_equal(wave, codec.read(files[row]))
    part = codec.load(f"{tmp_path}/a.parquet:audio:3", segment=AudioSegment(0.25, 0.1))[0]
    assert np.array_equal(part, codec.load(files[3])[0][4000:5600])
    for row, words in ((10, "no bytes: row 10"), (11, "no such row: the Parquet file has 11 rows")):
        with pytest.raises(UserError, match=words):
            codec.read(f"{tmp_path}/a.parquet:audio:{row}")
    with pytest.raises(UserError, match="not readable as Parquet"):
        codec.read(f"{tmp_path}/a.parquet:gone:0")


@pytest.mark.slow  # as what it needs is installed for the slow tests
def test_ffmpeg_reads_members_in_their_place(tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    for number in range(2):
        soundfile.write(tmp_path / "a.wav", noise(3, number), 16_000)
        subprocess.run(
            ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", tmp_path / "a.wav", tmp_path / f"{number}.m4a"], check=True
        )
    for name, address in packed(tmp_path, "0.m4a", "1.m4a").items():
        assert np.array_equal(codec.read(address), codec.read(tmp_path / name))
        segment = AudioSegment(1.5, 1.0)
        assert np.array_equal(codec.load(address, segment=segment)[0], codec.load(tmp_path / name, segment=segment)[0])
