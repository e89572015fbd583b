"""Formats beyond libsndfile: named with the remedy, or decoded by ffmpeg."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec, ffmpeg
from mtbi.errors import UserError


@pytest.fixture
def ffmpeg_program() -> str:
    """The program, which tools/install_servers.sh installs."""
    found = shutil.which("ffmpeg")
    if not found:
        message = "ffmpeg is not installed: run tools/install_servers.sh"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


STARTS = {
    "a.m4a": (b"\0\0\0\x20ftypM4A \0\0\0\0", "MP4 or M4A"),
    "renamed.wav": (b"\0\0\0\x20ftypisom\0\0\0\0", "MP4 or M4A"),
    "a.webm": (b"\x1a\x45\xdf\xa3" + bytes(60), "WebM or Matroska"),
    "a.wma": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(60), "Windows Media (WMA)"),
    "a.amr": (b"#!AMR\n" + bytes(60), "AMR"),
    "a.aac": (b"\xff\xf1\x50\x80" + bytes(60), "AAC"),
    "a.wv": (b"wvpk" + bytes(60), "WavPack"),
    "a.g722": (bytes(64), "G722"),
}


@pytest.mark.parametrize("name", STARTS)
def test_without_ffmpeg_the_format_and_the_remedy_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data, kind = STARTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        codec.load(tmp_path / name)
    assert str(caught.value).startswith(f"needs ffmpeg: {kind} is not")
    assert str(caught.value).endswith(f"ffmpeg -i {name} {Path(name).stem}.flac")


def test_sound_without_a_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(3200))
    with pytest.raises(UserError, match=r"no header: a file \.raw does not say .* a\.raw a\.flac"):
        codec.load(tmp_path / "a.raw")


def test_bytes_never_reach_ffmpeg() -> None:
    with pytest.raises(UserError, match="not readable as audio: MP4 or M4A is not among"):
        codec.load(STARTS["a.m4a"][0])


def test_no_ending_is_both_readable_and_foreign() -> None:
    assert ffmpeg.name(b"", Path("a.txt")) is None
    assert all(ending.startswith(".") and ending == ending.lower() for ending in ffmpeg.ENDINGS)


@pytest.mark.slow  # as what it needs is installed for the slow tests
@pytest.mark.usefixtures("ffmpeg_program")
@pytest.mark.parametrize("ending", ["m4a", "webm", "aac", "wma", "wv", "mka", "oga"])
def test_ffmpeg_decodes_the_rest(ending: str, tmp_path: Path) -> None:
    wave = 0.3 * np.sin(np.arange(32_000) * 0.1)
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    path = tmp_path / f"it's a\n{ending}.{ending}"
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-i", tmp_path / "a.wav", f"file:{path}"], check=True)
    read = codec.read(path)
    assert abs(len(read) - 32_000) < 2500
    assert np.abs(read).max() == pytest.approx(0.3, abs=0.1)
    with pytest.raises(UserError, match="too long"):
        codec.load(path, max_seconds=1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"truncated|ffmpeg cannot decode"):  # versions of ffmpeg tell it in other words
        codec.load(path)


@pytest.mark.slow
@pytest.mark.usefixtures("ffmpeg_program")
def test_playlists_do_not_reach_other_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "secret.wav", np.zeros(16_000), 16_000)
    (tmp_path / "a.m4a").write_text("ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(UserError, match="ffmpeg"):
        codec.load(tmp_path / "a.m4a")
