"""Word times: the alignment itself on emissions with known times, and real CTC architectures from transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from mtbi.audio import codec
from mtbi.corpus.align import HuggingFaceAligner, align, align_manifest, tile, word_frames
from mtbi.corpus.manifest import ManifestSlice, Utterance, read_manifest, write_manifest
from mtbi.errors import UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {letter: 5 + i for i, letter in enumerate(LETTERS)}
SIZES = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "pad_token_id": 0,
}  # fmt: skip


def emissions(frames: int, peaks: dict[int, int], classes: int = 6) -> Tensor:
    """Log-probabilities: `peaks` gives the class at a frame, blank (0) elsewhere."""
    logits = torch.zeros(frames, classes)
    for frame in range(frames):
        logits[frame, peaks.get(frame, 0)] = 8
    return logits.log_softmax(-1)


def test_known_times_are_found() -> None:
    table = emissions(20, {2: 1, 3: 1, 4: 2, 9: 3, 15: 4, 16: 5, 17: 5})
    assert word_frames(table, [[1, 2], [3], [4, 5]], 0, None) == [(2, 5), (9, 10), (15, 18)]


def test_delimiters_and_equal_neighbours() -> None:
    table = emissions(16, {1: 1, 3: 1, 6: 5, 9: 1, 10: 2})
    assert word_frames(table, [[1, 1], [1, 2]], 0, delimiter=5) == [(1, 4), (9, 11)]
    assert word_frames(emissions(9, {2: 3, 6: 3}), [[3], [3]], 0, None) == [(2, 3), (6, 7)]


def test_a_word_outside_the_vocabulary_takes_the_sound_that_nobody_claims() -> None:
    table = emissions(20, {2: 1, 17: 2} | dict.fromkeys(range(6, 14), 4))
    (first, unknown, last) = word_frames(table, [[1], [], [2]], 0, None) or []
    assert (first, last) == ((2, 3), (17, 18))
    assert unknown[0] <= 6
    assert unknown[1] >= 14


def test_what_cannot_be_aligned() -> None:
    assert word_frames(emissions(3, {}), [[1, 2], [3, 4]], 0, None) is None
    assert word_frames(emissions(3, {}), [[1], [1]], 0, None) is not None
    assert word_frames(emissions(2, {}), [[1], [1]], 0, None) is None  # equal labels need a blank between them
    assert word_frames(emissions(9, {}), [[], []], 0, None) is None
    assert word_frames(emissions(9, {}), [], 0, None) is None


def test_spans_tile_the_utterance() -> None:
    assert tile([(2, 5), (9, 10), (15, 18)], 0.02, 0.405) == [(0.0, 0.14), (0.14, 0.25), (0.25, 0.405)]
    assert tile([(3, 4)], 0.02, 0.1) == [(0.0, 0.1)]


class LoudTones:
    """A recogniser of two tones: class 1 hears 400 Hz, class 2 hears 2 kHz, 100 frames a second."""

    blank, delimiter = 0, None

    def emissions(self, waveform: np.ndarray) -> tuple[Tensor, float]:
        blocks = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
        energy = np.abs(np.fft.rfft(blocks))[:, [4, 20]]
        return torch.from_numpy(np.concatenate([np.full((len(blocks), 1), 10.0), energy], 1)).float().log_softmax(-1), 0.01

    def labels(self, word: str) -> list[int]:
        return {"low": [1], "high": [2]}.get(word, [])


def test_align_finds_tones_in_files_and_survives_bad_ones(tmp_path: Path) -> None:
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


@pytest.fixture(scope="module", params=["wav2vec2", "hubert"])
def ctc_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CTC model with a real character vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token="<pad>", word_delimiter_token="|").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**SIZES)) if request.param == "wav2vec2" else HubertForCTC(HubertConfig(**SIZES))
    model.save_pretrained(folder)
    return folder


def test_transformers_model_on_real_speech(ctc_folder: Path, speech: Path) -> None:
    aligner = HuggingFaceAligner(str(ctc_folder), device="cpu")
    assert (aligner.blank, aligner.delimiter) == (0, 4)
    assert aligner.labels("don't") == [VOCABULARY[letter] for letter in "DON'T"]
    assert aligner.labels("|1928–é") == []
    folder = speech / "librispeech_train_clean_3spk"
    utterances = read_manifest(folder / "manifest.jsonl")[:3]
    wave = codec.read(folder / utterances[0].audio)
    table, seconds_per_frame = aligner.emissions(wave)
    assert seconds_per_frame == 0.02
    assert table.shape == ((len(wave) - 400) // 320 + 1, len(VOCABULARY))
    assert torch.allclose(table.exp().sum(1), torch.ones(len(table)), atol=1e-5)
    for before, after in zip(utterances, align(utterances, folder, aligner), strict=True):
        assert after.words is not None
        assert [word for word, _, _ in after.words] == before.text.split()
        starts, ends = [start for _, start, _ in after.words], [end for _, _, end in after.words]
        assert starts == [0.0, *ends[:-1]]
        assert ends[-1] == pytest.approx(before.duration_s, abs=1e-3)
        assert all(start < end for start, end in zip(starts, ends, strict=True))


def test_a_moment_of_sound_is_too_short_for_a_word(ctc_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(codec.encode(np.full(100, 0.1, np.float32)))
    (utterance,) = align([Utterance("a", "a.flac", "hello")], tmp_path, HuggingFaceAligner(str(ctc_folder), device="cpu"))
    assert utterance.words is None


def test_models_that_cannot_align_are_refused(ctc_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CTC model with tokenizer and preprocessor"):
        HuggingFaceAligner(str(tmp_path))
    for name in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"):
        if (ctc_folder / name).exists():
            (tmp_path / name).write_bytes((ctc_folder / name).read_bytes())
    HubertModel(HubertConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the CTC head is not trained"):
        HuggingFaceAligner(str(tmp_path))


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
        with pytest.raises(UserError, match=r"out\.part-\d-of-2\.jsonl: this part was aligned from another manifest"):
            align_manifest(tmp_path / "m.jsonl", tmp_path / "out.jsonl", LoudTones(), ManifestSlice(number, 2))
