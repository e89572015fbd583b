"""wav2vec 2.0, HuBERT and WavLM are those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from mtbi.errors import UserError
from mtbi.model.encoders.build import build_encoder
from mtbi.recipe import EncoderConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-stable", "hubert", "wavlm"])
def test_convolutional_encoders_are_transformers_own(saved, clips, kind):
    encoder = build_encoder(EncoderConfig(saved(kind)), torch.float32, CPU).eval()
    original = type(encoder.model).from_pretrained(saved(kind)).eval()
    waveforms, lengths = clips([16_000])
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(saved(kind))(
        waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = original(inputs.input_values).last_hidden_state
        torch.testing.assert_close(encoder(waveforms, lengths)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_lower_layer_is_the_models_hidden_state(saved, clips):
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
