"""A batch arrives as it was, to the bit, whatever it travels as."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.batches.batch import Batch, build
from mtbi.batches.plan import Plan
from mtbi.batches.transfer import PackedBatch, as_half, as_int16
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards


@pytest.fixture
def batch(shard_folder: Path, small_recipe: Recipe) -> Batch:
    shards = Shards(str(shard_folder))
    plan = Plan(shards.index, small_recipe, FrameGeometry.from_config(small_recipe.model))
    return build(next(plan.steps()).rows, shards.__getitem__, plan)


def assert_same(one: Batch, other: Batch) -> None:
    for name, tensor in one.tensors().items():
        arrived = other.tensors()[name]
        assert arrived.dtype == tensor.dtype, name
        assert arrived.shape == tensor.shape, name
        assert arrived.numpy().tobytes() == tensor.numpy().tobytes(), name


def test_stored_sound_travels_as_whole_numbers(batch: Batch) -> None:
    ready = PackedBatch.of(batch)
    assert ready.packed["waveforms"].dtype == torch.int16
    arrived = ready.to(torch.device("cpu"))
    assert_same(batch, arrived)
    assert arrived.on_host is ready


@pytest.mark.parametrize("odd", [1e-6, 1.0, -0.0, float("nan"), float("inf")])
def test_other_sound_travels_as_it_is(batch: Batch, odd: float) -> None:
    waveforms = batch.waveforms.clone()
    waveforms[1, 7] = odd
    ready = PackedBatch.of(replace(batch, waveforms=waveforms))
    assert ready.packed["waveforms"].dtype == torch.float32
    assert_same(replace(batch, waveforms=waveforms), ready.to(torch.device("cpu")))


def test_all_values_of_16_bits_are_exact() -> None:
    every = torch.arange(-(1 << 15), 1 << 15).float()[None] / (1 << 15)
    small = as_int16(every)
    assert small is not None
    assert (small[0].int() == torch.arange(-(1 << 15), 1 << 15)).all()


def test_features_in_half_precision_travel_so(batch: Batch) -> None:
    stored = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float16)).float()
    encoded = replace(batch, features=stored)
    ready = PackedBatch.of(encoded)
    assert ready.packed["features"].dtype == torch.float16
    assert_same(encoded, ready.to(torch.device("cpu")))
    assert as_half(stored + 1e-5) is None
    assert as_half(stored * 1e6) is None


def test_a_changed_batch_is_sent_as_it_is_now(batch: Batch) -> None:
    changed = replace(PackedBatch.of(batch), waveforms=batch.waveforms + 1)
    assert torch.equal(changed.to(torch.device("cpu")).waveforms, batch.waveforms + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_it_arrives_on_a_gpu_as_it_was(batch: Batch) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    for _ in range(5):
        arrived = PackedBatch.of(batch).to(device)
        assert_same(batch, replace(arrived, **{name: tensor.cpu() for name, tensor in arrived.tensors().items()}))
