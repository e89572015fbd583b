"""Encoders of all families, built from a recipe as a user's would be."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig

from mtbi.errors import UserError
from mtbi.model.encoders.build import build_encoder, describe_encoder, empty_encoder, restore_filters, shape_of_encoder
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import AdapterConfig, EncoderConfig, ModelConfig

KINDS = ["whisper", "wav2vec2", "wav2vec2-stable", "hubert", "wavlm"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("path", ["demo", *KINDS])
def test_lengths_are_the_geometrys_and_clips_do_not_see_their_neighbours(saved, clips, path):
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


def test_half_precision_keeps_the_filters_in_full(saved, clips):
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


@pytest.mark.parametrize("path", ["demo", *KINDS])
def test_a_described_encoder_can_be_built_again(saved, clips, path):
    config = EncoderConfig(path if path == "demo" else saved(path), layer=1)
    built = build_encoder(config, torch.float32, CPU).eval()
    architecture = json.loads(json.dumps(describe_encoder(config)))
    again = empty_encoder(architecture).eval()
    again.load_state_dict(built.state_dict())
    restore_filters(again)
    waveforms, lengths = clips([16_000, 400])
    with torch.no_grad():
        (features, frames), (expected, count) = again(waveforms, lengths), built(waveforms, lengths)
    assert torch.equal(frames, count)
    # The miniature encoder's file holds its filters in float16; here they are computed in float32.
    torch.testing.assert_close(features, expected, rtol=0, atol=5e-3 if path == "demo" else 0)
    shape = shape_of_encoder(config)
    on_meta = [parameter for parameter in shape.parameters() if parameter.is_meta]
    assert len(on_meta) >= len([*shape.parameters()]) - 1  # transformers makes wav2vec 2.0's vector of masks in memory
    assert [*map(tuple, (p.shape for p in shape.parameters()))] == [*map(tuple, (p.shape for p in built.parameters()))]
    assert shape.width == built.width
