"""Whisper's encoder is that of transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

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
