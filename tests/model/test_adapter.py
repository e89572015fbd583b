from __future__ import annotations

import numpy as np
import pytest
import torch

from mtbi.demo.encoder import DEMO_STAGES
from mtbi.errors import UserError
from mtbi.model import adapter as adapters
from mtbi.model.adapter import build_adapter
from mtbi.model.frame_counts import FrameGeometry, adapter_queries, adapter_stack
from mtbi.recipe import AdapterConfig, ModelConfig

KINDS = [
    *(AdapterConfig(kind, 3) for kind in ("mlp", "swiglu", "conv")),
    AdapterConfig("qformer", 3, queries=2, heads=2),
    AdapterConfig("clip-qformer", queries=5, heads=2),
    AdapterConfig("transformer", 3),
    AdapterConfig("conformer", 3, heads=2),
]


def test_every_shipped_kind_is_tested_here() -> None:
    assert [config.kind for config in KINDS] == list(adapters.KINDS)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_lengths_scale_and_independence_of_neighbours(config):
    torch.manual_seed(0)
    adapter = build_adapter(config, encoder_width=24, llm_hidden=32, embedding_rms=0.02).eval()
    features, lengths = torch.randn(4, 11, 24), torch.tensor([11, 1, 6, 7])
    features[1, 1:], features[3, 7:] = 100.0, -30.0  # what stands beyond a clip's end must not matter
    frames, counts = adapter(features, lengths)
    geometry = FrameGeometry(DEMO_STAGES, adapter_stack(config), adapter_queries(config))
    assert counts.tolist() == geometry.frames(lengths.numpy() * 640).tolist()
    assert frames.shape == (4, int(counts.max()), 32)
    assert 0.01 < frames[0].square().mean().sqrt() < 0.04
    for clip, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        alone, _ = adapter(features[clip : clip + 1, :length], lengths[clip : clip + 1])
        torch.testing.assert_close(frames[clip, :count], alone[0], rtol=1e-4, atol=1e-6)
        assert (frames[clip, count:] == 0).all()


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_every_parameter_gets_a_finite_gradient(config):
    adapter = build_adapter(config, 24, 32, 0.02)
    features = torch.zeros(2, 6, 24)  # silence
    features[0] = torch.randn(6, 24)
    adapter(features, torch.tensor([6, 2]))[0].sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_mistakes_are_named():
    with pytest.raises(UserError, match="mlpp"):
        build_adapter(AdapterConfig("mlpp"), 24, 32)
    with pytest.raises(UserError, match="multiple of heads"):
        build_adapter(AdapterConfig("qformer", heads=5), 24, 32)


def test_geometry_takes_numbers_and_arrays():
    geometry = FrameGeometry(DEMO_STAGES, stack=4)
    assert geometry.frames(16_000) == 7
    assert isinstance(geometry.frames(16_000), int)
    assert geometry.frames(np.array([0, 1, 16_000])).tolist() == [1, 1, 7]
    assert geometry.samples_per_frame == 2560


def test_a_clip_of_any_length_takes_the_positions_of_the_queries() -> None:
    geometry = FrameGeometry.from_config(ModelConfig(adapter=AdapterConfig("clip-qformer", queries=5)))
    assert not geometry.follows_time
    assert geometry.frames(np.array([0, 1, 16_000, 480_000])).tolist() == [5] * 4
    assert [geometry.frames(samples) for samples in (1, 480_000)] == [5, 5]
    assert geometry.encoder_frames(16_000) == 25


def test_queries_of_a_clip_tell_an_order_from_its_reverse() -> None:
    adapter = build_adapter(AdapterConfig("clip-qformer", queries=5, heads=2), 24, 32).eval()
    features, lengths = torch.randn(1, 11, 24), torch.tensor([11])
    assert not torch.allclose(adapter(features, lengths)[0], adapter(features.flip(1), lengths)[0], atol=1e-3)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_every_kind_learns(config: AdapterConfig) -> None:
    torch.manual_seed(0)
    adapter = build_adapter(config, encoder_width=24, llm_hidden=32)
    voice, wanted = torch.randn(24), torch.randn(32)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-3)

    def loss_of_new_clips() -> torch.Tensor:
        """The squared distance from an embedding whose sign is that of the voice, where 1 is that of silence."""
        signs, lengths = torch.randint(0, 2, (16, 1)) * 2.0 - 1, torch.randint(4, 12, (16,))
        frames, counts = adapter(torch.randn(16, 11, 24) + signs[..., None] * voice, lengths)
        return (frames.sum(1) / counts[:, None] - signs * wanted).square().mean() / wanted.square().mean()

    untrained = loss_of_new_clips().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss_of_new_clips().backward()
        optimizer.step()
    assert loss_of_new_clips().item() < 0.5 < untrained
