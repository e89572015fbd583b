"""Random Whisper, wav2vec 2.0, HuBERT and WavLM models, saved to disk as a user's would be."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

CONVOLUTIONAL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MODELS = {
    "whisper": lambda: WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=64, max_source_positions=150, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    ),
    "wav2vec2": lambda: Wav2Vec2Model(Wav2Vec2Config(**CONVOLUTIONAL)),
    "wav2vec2-stable": lambda: Wav2Vec2Model(Wav2Vec2Config(**CONVOLUTIONAL, **STABLE)),
    "hubert": lambda: HubertModel(HubertConfig(**CONVOLUTIONAL)),
    "wavlm": lambda: WavLMModel(WavLMConfig(**CONVOLUTIONAL)),
}  # fmt: skip


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`saved(kind)`: the folder of a random model."""
    made: dict[str, str] = {}

    def save(kind: str) -> str:
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = str(tmp_path_factory.mktemp(kind))
            MODELS[kind]().save_pretrained(made[kind])
            if kind != "whisper":
                Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(made[kind])
        return made[kind]

    return save


@pytest.fixture(scope="session")
def clips():
    """`clips(lengths)`: random waveforms of so many samples, and the lengths."""

    def make(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        waves = [0.1 * torch.randn(length, generator=generator) + 0.05 for length in lengths]
        return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor(lengths)

    return make
