from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import ToyEncoder

from mtbi.model.frame_classes import FrameClasses
from mtbi.model.losses.alignment import AlignmentLoss
from mtbi.model.masking import masked
from mtbi.recipe import LossConfig

FEATURES = torch.arange(2 * 4 * 6).float().view(2, 4, 6)
LENGTHS = torch.tensor([4, 2])
NONE = torch.zeros(2, 0, dtype=torch.bool)


def test_what_is_hidden_becomes_the_clips_mean_frame() -> None:
    frames = torch.tensor([[True, False, False], [False, True, False]])  # shorter than the encoder's padding
    channels = torch.tensor([[False, True, False], [True, False, False]])
    out = masked(FEATURES, LENGTHS, frames, channels)
    means = FEATURES[0].mean(0), FEATURES[1, :2].mean(0)  # without what lies beyond the end of the shorter clip
    expected = FEATURES.clone()
    expected[0, 0], expected[1, 1] = means
    expected[0, :, 2:4], expected[1, :, :2] = means[0][2:4], means[1][:2]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("width", [5, 6, 7, 1280])
def test_equal_parts_cover_every_channel(width: int) -> None:
    features, parts = torch.randn(1, 3, width), 1024
    channels, frames = torch.zeros(1, parts, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    channels[0, 256:512] = True
    hidden = (masked(features, torch.tensor([3]), frames, channels) != features).any(1).sum()
    assert abs(int(hidden) - width / 4) < 1
    assert masked(features, torch.tensor([3]), frames, ~channels | channels).std(1).max() < 1e-6


def test_without_masks_the_features_are_the_same_tensor() -> None:
    assert masked(FEATURES, LENGTHS, NONE, NONE) is FEATURES


def test_a_hidden_frame_teaches_an_encoder_nothing() -> None:
    features = FEATURES.clone().requires_grad_()
    frames = torch.tensor([[True, False, False, False]] * 2)
    masked(features, LENGTHS, frames, torch.zeros(2, 1, dtype=torch.bool)).sum().backward()
    assert features.grad is not None
    assert not features.grad[:, 0].any()
    assert (features.grad[:, 1:] == 1).all()


@pytest.mark.parametrize("alone", [False, True])
def test_the_model_does_not_hear_what_is_hidden(make_model, packed, alone: bool) -> None:
    """Other sound under the mask, with the same mean, gives the same loss; without the mask it gives another one."""
    model = make_model()
    if alone:
        model.alignment = AlignmentLoss(LossConfig(alignment=1.0), FrameClasses(model.embed, torch.arange(61), [3]))
    clips, longest = len(packed.waveforms), packed.waveforms.shape[1]
    frames, channels = torch.zeros(clips, -(-longest // 160), dtype=torch.bool), torch.zeros(clips, 1, dtype=torch.bool)
    frames[:, :2] = True
    features, lengths = model.encoder(packed.waveforms, packed.waveform_lengths)
    swapped = features.clone()
    swapped[:, [0, 1]] = features[:, [1, 0]]
    heard = {}
    for name, mask in (("hidden", frames), ("whole", frames[:, :0])):
        for kind, stored in (("own", features), ("swapped", swapped)):
            batch = replace(
                packed, features=stored.detach(), feature_lengths=lengths, masked_frames=mask, masked_channels=channels
            )
            heard[name, kind] = float(model(batch, alone).loss.detach())
    assert features.shape[2] == ToyEncoder.width
    assert heard["hidden", "own"] == heard["hidden", "swapped"] != heard["whole", "own"]
    assert heard["whole", "own"] != heard["whole", "swapped"]
    sound = model(replace(packed, masked_frames=frames, masked_channels=channels), alone).loss
    assert float(sound.detach()) == pytest.approx(heard["hidden", "own"], rel=1e-5)
