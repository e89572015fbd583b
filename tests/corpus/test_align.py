"""Word times of manifests, with a recogniser of tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtbi.audio import codec
from mtbi.corpus.align import align, align_manifest, tile
from mtbi.corpus.ctc_aligner import CtcAligner
from mtbi.corpus.manifest import ManifestSlice, Utterance, read_manifest, write_manifest
from mtbi.errors import UserError


def test_spans_tile_the_utterance() -> None:
    assert tile([(0.04, 0.1), (0.18, 0.2), (0.3, 0.36)], 0.405) == [(0.0, 0.14), (0.14, 0.25), (0.25, 0.405)]
    assert tile([(0.06, 0.08)], 0.1) == [(0.0, 0.1)]


class LoudTones(CtcAligner):
    """A recogniser of two tones: class 1 hears 400 Hz, class 2 hears 2 kHz, 100 frames a second."""

    blank, delimiter = 0, None

    def emissions(self, waveform: np.ndarray) -> tuple[Tensor, float]:
        blocks = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
        energy = np.abs(np.fft.rfft(blocks))[:, [4, 20]]
        return torch.from_numpy(np.concatenate([np.full((len(blocks), 1), 10.0), energy], 1)).float().log_softmax(-1), 0.01

    def labels(self, word: str) -> list[int]:
        return {"low": [1], "high": [2]}.get(word, [])

    def transcribe(self, waveform: np.ndarray) -> str:
        return ""


def test_align_finds_tones_in_files_and_survives_bad_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    time = np.arange(16000) / 16000
    wave = np.zeros(32000, np.float32)
    wave[4800:8000] = 0.5 * np.sin(2 * np.pi * 400 * time[:3200])  # 0.3 to 0.5 s
    wave[16000:19200] = 0.5 * np.sin(2 * np.pi * 2000 * time[:3200])  # 1.0 to 1.2 s
    (tmp_path / "a.flac").write_bytes(codec.encode(wave))
    (tmp_path / "broken.flac").write_bytes(b"")
    texts = {"a": "low high", "reversed": "high low", "unknown": "never heard", "long": "low " * 500}
    utterances = [Utterance(name, "a.flac", text) for name, text in texts.items()] + [Utterance("broken", "broken.flac", "low")]
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert align_manifest(tmp_path / "m.jsonl", tmp_path / "deeper" / "m.jsonl", LoudTones()) == (2, 3)
    words = {u.id: u.words for u in read_manifest(tmp_path / "deeper" / "m.jsonl")}
    assert words["a"] == [("low", 0.0, 0.75), ("high", 0.75, 2.0)]
    assert words["reversed"] is not None  # a wrong transcript still has a likeliest path
    assert [words[name] for name in ("unknown", "long", "broken")] == [None] * 3
    for reason in ("can spell none of the words", "too short for its words", "cannot be read"):
        assert "1 utterances have no word times: the " in caplog.text
        assert reason in caplog.text


def test_more_utterances_than_are_aligned_together_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtbi.corpus.align.CHUNK_UTTERANCES", 2)
    (tmp_path / "a.flac").write_bytes(codec.encode(np.zeros(32000, np.float32)))
    texts = ["low", "unknown", "high low", "low", "low high low"]
    utterances = [Utterance(str(n), "a.flac" if n != 3 else "", text) for n, text in enumerate(texts)]
    found = list(align(utterances, tmp_path, LoudTones()))
    assert [one.id for one in found] == list("01234")
    assert [one.words and len(one.words) for one in found] == [1, None, 2, None, 3]


def test_scripts_without_spaces_are_aligned_character_by_character(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Characters(LoudTones):
        def labels(self, word: str) -> list[int]:
            return [{"低": 1, "高": 2}[letter] for letter in word if letter in "低高"]

    time = np.arange(16000) / 16000
    wave = np.zeros(32000, np.float32)
    wave[4800:8000] = 0.5 * np.sin(2 * np.pi * 400 * time[:3200])
    wave[16000:19200] = 0.5 * np.sin(2 * np.pi * 2000 * time[:3200])
    (tmp_path / "a.flac").write_bytes(codec.encode(wave))
    texts = {"two": "低高。", "one": "低"}
    found = list(align([Utterance(name, "a.flac", text) for name, text in texts.items()], tmp_path, Characters()))
    words = found[0].words or []
    assert [word for word, _, _ in words] == ["低", "高。"]
    assert words[0][2] == words[1][1] == pytest.approx(0.75, abs=0.03)
    assert "1 aligned utterances have one word only" in caplog.text


def test_parts_of_another_manifest_are_not_joined(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(codec.encode(np.zeros(16000, np.float32)))
    utterances = [Utterance(name, "a.flac", "low high") for name in ("a", "b")]
    write_manifest(tmp_path / "m.jsonl", utterances)
    align_manifest(tmp_path / "m.jsonl", tmp_path / "out.jsonl", LoudTones(), ManifestSlice(1, 2))
    write_manifest(tmp_path / "m.jsonl", [utterances[0], Utterance("b", "a.flac", "high")])
    align_manifest(tmp_path / "m.jsonl", tmp_path / "out.jsonl", LoudTones(), ManifestSlice(2, 2))
    assert [one.text for one in read_manifest(tmp_path / "out.jsonl")] == ["low high", "high"]
    write_manifest(tmp_path / "m.jsonl", [Utterance("a", "a.flac", "low"), utterances[1]])
    for number in (1, 2):
        with pytest.raises(UserError, match=r"out\.part-\d-of-2\.jsonl: this part was made from another manifest"):
            align_manifest(tmp_path / "m.jsonl", tmp_path / "out.jsonl", LoudTones(), ManifestSlice(number, 2))
