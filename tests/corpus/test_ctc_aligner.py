"""CTC forced alignment: on emissions with known times, and with real CTC architectures from transformers."""

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
from mtbi.corpus.align import align
from mtbi.corpus.aligner import Clip
from mtbi.corpus.ctc_aligner import HuggingFaceAligner, word_frames
from mtbi.corpus.manifest import Utterance, read_manifest
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


def test_batches_give_what_single_clips_give(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>", word_delimiter_token="|").save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(tmp_path)
    torch.manual_seed(0)
    masking = Wav2Vec2Config(**SIZES, feat_extract_norm="layer", do_stable_layer_norm=True)
    Wav2Vec2ForCTC(masking).save_pretrained(tmp_path)
    aligner = HuggingFaceAligner(str(tmp_path), device="cpu")
    assert aligner.batch_seconds == 0
    generator = np.random.default_rng(0)
    clips = [
        Clip(generator.standard_normal(samples).astype(np.float32) * 0.1, words)
        for samples, words in [(9000, ["no"]), (23_000, ["one", "two"]), (100, ["a"]), (16_000, ["1"]), (20_000, ["off"])]
    ]
    single = aligner.align(clips)
    aligner.batch_seconds = 3  # two or three of them
    waves = [clip.wave for clip in clips]
    for (one, _), (other, _) in zip(aligner.all_emissions(waves), map(aligner.emissions, waves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert aligner.align(clips) == single
    assert [alignment.spans is None for alignment in single] == [False, False, False, True, False]


def test_scores_that_are_not_finite_are_no_alignment(ctc_folder: Path) -> None:
    aligner = HuggingFaceAligner(str(ctc_folder), device="cpu")
    (alignment,) = aligner.align([Clip(np.full(8000, np.nan, np.float32), ["one"])])
    assert alignment.spans is None
    assert "not finite" in alignment.reason


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
