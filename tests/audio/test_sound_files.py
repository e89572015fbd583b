"""Paths in both Unicode forms."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from mtbi.audio.sound_files import locate


def test_a_name_in_another_unicode_form(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))
    (tmp_path / nfd).mkdir()
    (tmp_path / nfd / f"{nfc}.wav").write_bytes(b"")
    real = tmp_path / nfd / f"{nfc}.wav"
    assert locate(real) == real
    assert locate(tmp_path / nfc / f"{nfd}.wav") == real
    assert locate(tmp_path / nfc / "other.wav") == tmp_path / nfc / "other.wav"
    assert locate(tmp_path / "ü.wav") == tmp_path / "ü.wav"
