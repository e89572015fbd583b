from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from mtbi.errors import UserError
from mtbi.model.recogniser import open_recogniser

SIZES = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in
         (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Whisper with random weights and a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("whisper")
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), additional_special_tokens=special)
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, **SIZES, bos_token_id=26, eos_token_id=26, pad_token_id=26,
        decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None, max_length=12, max_target_positions=16,
    )  # fmt: skip
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(int(16_000 * seconds)).astype(np.float32)


def test_whisper_transcribes_recordings_in_their_order(whisper: str) -> None:
    recogniser = open_recogniser(whisper, torch.device("cpu"))
    waveforms = [noise(1), noise(2), np.zeros(8000, np.float32)]
    together = recogniser(waveforms)
    assert together == [recogniser([waveform])[0] for waveform in waveforms]
    assert all(together)
    assert recogniser([]) == []


def test_a_ctc_recogniser_transcribes_each_recording() -> None:
    recogniser = open_recogniser("demo")
    heard = recogniser([noise(0.5), noise(0.5)])
    assert len(heard) == 2
    assert heard[0] == heard[1]


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model of transformers"):
        open_recogniser(str(tmp_path))
