"""Real (random) Whisper, wav2vec 2.0, HuBERT and WavLM models saved to disk and loaded as a user's would be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    HubertConfig,
    HubertModel,
    LlamaConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from mtbi.errors import UserError
from mtbi.model.encoders.build import build_encoder
from mtbi.model.encoders.whisper import LogMel
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import AdapterConfig, EncoderConfig, ModelConfig

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
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
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


def clips(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    waves = [0.1 * torch.randn(length, generator=generator) + 0.05 for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor(lengths)


@pytest.mark.parametrize("path", ["demo", *MODELS])
def test_lengths_are_the_geometrys_and_clips_do_not_see_their_neighbours(saved, path):
    folder = path if path == "demo" else saved(path)
    encoder = build_encoder(EncoderConfig(folder), torch.float32, CPU).eval()
    geometry = FrameGeometry.from_config(ModelConfig(encoder=EncoderConfig(folder), adapter=AdapterConfig(stack=4)))
    waveforms, lengths = clips([20_001, 1, 399, 400, 401, 16_000, 7_777, 47_840])
    with torch.no_grad():
        features, frames = encoder(waveforms, lengths)
        assert frames.tolist() == geometry.encoder_frames(lengths.numpy()).tolist()
        assert features.shape == (len(lengths), int(frames.max()), encoder.width)
        for clip, length in enumerate(lengths.tolist()):
            alone, count = encoder(waveforms[clip : clip + 1, :length], lengths[clip : clip + 1])
            assert count[0] == frames[clip] == geometry.encoder_frames(length)
            torch.testing.assert_close(features[clip, : count[0]], alone[0], rtol=1e-3, atol=2e-4)


def test_log_mel_is_whispers_own(speech):
    manifest = (speech / "fsdd" / "manifest.jsonl").read_text().splitlines()
    wave, rate = soundfile.read(speech / "fsdd" / json.loads(manifest[0])["audio"], dtype="float32")
    wave = np.repeat(wave, 16_000 // rate)
    extractor = WhisperFeatureExtractor()
    expected = torch.as_tensor(extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features)
    mels, frames = LogMel(torch.as_tensor(extractor.mel_filters))(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    assert frames[0] == -(-len(wave) // 160)
    torch.testing.assert_close(mels, expected[..., : frames[0]], rtol=1e-4, atol=1e-4)


def test_whisper_at_full_length_is_transformers_whisper(saved):
    encoder = build_encoder(EncoderConfig(saved("whisper")), torch.float32, CPU).eval()
    waveforms, lengths = clips([48_000])
    with torch.no_grad():
        mels, _ = encoder.features(waveforms, lengths)
        expected = encoder.encoder(mels).last_hidden_state
        torch.testing.assert_close(encoder(waveforms, lengths)[0], expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(UserError, match="at most 3 seconds"):
            encoder(*clips([48_001]))


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-stable", "hubert", "wavlm"])
def test_convolutional_encoders_are_transformers_own(saved, kind):
    encoder = build_encoder(EncoderConfig(saved(kind)), torch.float32, CPU).eval()
    original = type(encoder.model).from_pretrained(saved(kind)).eval()
    waveforms, lengths = clips([16_000])
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(saved(kind))(
        waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = original(inputs.input_values).last_hidden_state
        torch.testing.assert_close(encoder(waveforms, lengths)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_lower_layer_is_the_models_hidden_state(saved):
    encoder = build_encoder(EncoderConfig(saved("wav2vec2"), layer=1), torch.float32, CPU).eval()
    last = build_encoder(EncoderConfig(saved("wav2vec2")), torch.float32, CPU).eval()
    waveforms, lengths = clips([16_000])
    with torch.no_grad():
        inputs = (waveforms - waveforms.mean()) * (waveforms.var(correction=0) + 1e-7).rsqrt()
        last.model.feature_extractor.conv_layers[0].layer_norm.lengths = torch.tensor([(16_000 - 10) // 5 + 1])
        states = last.model(inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(encoder(waveforms, lengths)[0], states[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="layers 0 to 2"):
        build_encoder(EncoderConfig(saved("wav2vec2"), layer=3), torch.float32, CPU)


def test_half_precision_keeps_the_filters_in_full(saved):
    for folder in ("demo", saved("whisper")):
        encoder = build_encoder(EncoderConfig(folder), torch.bfloat16, CPU).eval()
        assert {buffer.dtype for buffer in encoder.buffers() if buffer.is_floating_point()} <= {torch.float32}
        features, _ = encoder(*clips([4_000]))
        assert features.dtype == torch.bfloat16
        assert features.isfinite().all()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the configuration"):
        build_encoder(EncoderConfig(str(tmp_path / "nowhere")), torch.float32, CPU)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'llama'; supported: demo, whisper"):
        FrameGeometry.from_config(ModelConfig(encoder=EncoderConfig(str(tmp_path))))
