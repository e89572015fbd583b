"""Whisper's encoder is that of transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
import transformers
from transformers import AutoModel, WhisperFeatureExtractor

from mtbi.errors import UserError
from mtbi.model.encoders.build import build_encoder
from mtbi.model.encoders.whisper import LogMel
from mtbi.recipe import EncoderConfig

CPU = torch.device("cpu")


def test_log_mel_is_whispers_own(speech):
    manifest = (speech / "fsdd" / "manifest.jsonl").read_text().splitlines()
    wave, rate = soundfile.read(speech / "fsdd" / json.loads(manifest[0])["audio"], dtype="float32")
    wave = np.repeat(wave, 16_000 // rate)
    extractor = WhisperFeatureExtractor()
    expected = torch.as_tensor(extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features)
    mels, frames = LogMel(torch.as_tensor(extractor.mel_filters))(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    assert frames[0] == -(-len(wave) // 160)
    torch.testing.assert_close(mels, expected[..., : frames[0]], rtol=1e-4, atol=1e-4)


def test_whisper_at_full_length_is_transformers_whisper(saved, clips):
    encoder = build_encoder(EncoderConfig(saved("whisper")), torch.float32, CPU).eval()
    waveforms, lengths = clips([48_000])
    with torch.no_grad():
        mels, _ = encoder.features(waveforms, lengths)
        expected = encoder.encoder(mels).last_hidden_state
        torch.testing.assert_close(encoder(waveforms, lengths)[0], expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(UserError, match="at most 3 seconds"):
            encoder(*clips([48_001]))


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_decoder_is_not_read(saved, layer, caplog):
    path = saved("whisper")
    whole = AutoModel.from_pretrained(path).encoder.state_dict()
    transformers.logging.enable_propagation()
    try:
        encoder = build_encoder(EncoderConfig(path, layer=layer), torch.float32, CPU).encoder
        AutoModel.from_pretrained(path, decoder_layers=0)  # what reports weights that it leaves
    finally:
        transformers.logging.disable_propagation()
    own = encoder.state_dict()
    assert own
    assert all(torch.equal(value, whole[name]) for name, value in own.items())
    assert not any("decoder" in name for name in own)
    reports = [record.getMessage() for record in caplog.records if "decoder" in record.getMessage()]
    assert reports or transformers.__version__ < "5"  # which reports in another way
    assert all("WhisperModel" in report for report in reports)  # none of `EncoderOfWhisper`
