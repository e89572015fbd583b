"""A tiny Whisper with random weights and a tokenizer of bytes, and the real one where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

LANGUAGES = ("en", "de", "zh", "th", "jw")
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in LANGUAGES),
    "<|transcribe|>",
    "<|notimestamps|>",
)


def byte_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """Whisper's kind of tokenizer: a byte is a token, and so is each of `words`."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in words:
        [(letters, _)] = cut.pre_tokenize_str(word)
        for stop in range(1, len(letters)):
            if letters[: stop + 1] not in vocabulary:
                merges.append((letters[:stop], letters[stop]))
                vocabulary[letters[: stop + 1]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>", eos_token="<|endoftext|>")
    fast.add_tokens(list(SPECIAL[1:]), special_tokens=True)
    return fast


def write_whisper(folder: Path, multilingual: bool) -> Path:
    """The tiny model in a folder, as transformers saves it. It has no `alignment_heads`."""
    tokenizer = byte_tokenizer("今天")
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=80, max_target_positions=64,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start, init_std=0.3,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    ids = {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    GenerationConfig(**ids, is_multilingual=multilingual).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual model that knows five languages."""
    return write_whisper(tmp_path_factory.mktemp("whisper"), multilingual=True)


@pytest.fixture(scope="session")
def tiny_english_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows English only."""
    return write_whisper(tmp_path_factory.mktemp("whisper-en"), multilingual=False)


@pytest.fixture(scope="session")
def whisper_tiny_en() -> str:
    """The folder of the real Whisper tiny.en, in `MTBI_MODELS` or `shared/models` beside the repository."""
    folder = Path(os.environ.get("MTBI_MODELS") or Path(__file__).parents[4] / "shared" / "models") / "whisper-tiny.en"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no model at {folder}: set MTBI_MODELS to the folder that holds whisper-tiny.en/")
    return str(folder)
