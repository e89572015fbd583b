from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.batches.augment import CHANNEL_PARTS, Augmentation, stretches
from mtbi.batches.batch import Batch, build
from mtbi.batches.draw import occurrences
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Plan, Position
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import AugmentConfig, Recipe
from mtbi.shards.read import Shards

MASKS = AugmentConfig(time_masks=2, time_mask_seconds=0.5, time_mask_share=0.3, channel_masks=2, channel_mask_share=0.25)


@pytest.fixture
def shards(shard_folder: Path) -> Shards:
    return Shards(str(shard_folder))


def make(shards: Shards, recipe: Recipe, config: AugmentConfig = MASKS) -> tuple[Plan, Augmentation | None]:
    recipe = replace(recipe, augment=config)
    geometry = FrameGeometry.from_config(recipe.model)
    return Plan(shards.index, recipe, geometry), Augmentation.of(recipe, geometry, shards)


def clips_of(batches: list[Batch]) -> list[tuple[bytes, ...]]:
    """Sound and masks of all clips, whatever their order and padding."""
    return sorted(
        (
            batch.waveforms[clip, : batch.waveform_lengths[clip]].numpy().tobytes(),
            batch.masked_frames[clip].nonzero().numpy().tobytes(),
            batch.masked_channels[clip].numpy().tobytes(),
        )
        for batch in batches
        for clip in range(len(batch.waveforms))
        if batch.waveforms[clip].any()
    )


DISTORTIONS = {"babble_probability": 0.2, "babble_voices_min": 1, "babble_voices_max": 2, "gain_probability": 0.6}


@pytest.mark.parametrize("cut", ["slice", "encode"])
def test_a_clip_is_the_same_on_any_processes_and_beside_any_others(shards: Shards, small_recipe: Recipe, cut: str) -> None:
    small_recipe.interleave.cut = cut

    def run(world: int, rows: int, workers: int = 2, position: Position | None = None) -> list[list[tuple[bytes, ...]]]:
        steps: list[list[Batch]] = [[] for _ in range(6)]
        for rank in range(world):
            plan, augmentation = make(shards, small_recipe, replace(MASKS, **DISTORTIONS))
            with Loader(shards, plan, rank, world, rows, workers, position=position, augmentation=augmentation) as loader:
                for place, step in enumerate(islice(loader, 6)):
                    steps[place] += list(step.micro_batches)
        return [clips_of(batches) for batches in steps]

    whole = run(1, 1)
    assert sum(any(masked) for step in whole for _, masked, _ in step) > 10
    assert run(1, 3, workers=1) == run(2, 1) == whole
    with Loader(shards, make(shards, small_recipe)[0]) as loader:
        position = list(islice(loader, 4))[3].position
    assert run(2, 2, position=position)[:3] == whole[3:]


def test_each_reading_of_an_utterance_has_a_mask_of_its_own(shards: Shards, small_recipe: Recipe) -> None:
    small_recipe.plan.passes_per_epoch = 3
    plan, augmentation = make(shards, small_recipe)
    assert augmentation
    groups = [group for epoch in (0, 1) for row in plan.window_rows(epoch, 0) for group in row.groups]
    assert {group.occurrence for group in groups} == {0, 1, 2}
    for utterance in {group.utterance for group in groups[:5]}:
        same = [group for group in groups if group.utterance == utterance]
        masks = {augmentation.mask(group, part, 200).channels.tobytes() for group in same for part in (0, 1)}
        assert len(masks) == 2 * len(same)


@pytest.mark.parametrize("cut", ["slice", "encode"])
def test_the_whole_utterance_is_distorted_before_it_is_cut(shards: Shards, small_recipe: Recipe, cut: str) -> None:
    small_recipe.interleave.cut, small_recipe.interleave.share = cut, 1.0
    plan, augmentation = make(shards, small_recipe, AugmentConfig(gain_probability=1.0, gain_db_min=-7.0, gain_db_max=-6.0))
    rows = next(plan.steps()).rows
    plain, softer = build(rows, shards.__getitem__, plan), build(rows, shards.__getitem__, plan, augmentation)
    assert softer.masked_frames.shape == (len(softer.waveforms), 0)
    assert torch.equal(softer.waveform_lengths, plain.waveform_lengths)
    gains = {
        round(float(softer.waveforms[clip].abs().max() / plain.waveforms[clip].abs().max()), 5)
        for clip in range(len(plain.waveforms))
    }
    assert all(10 ** (-7 / 20) - 1e-4 <= gain <= 10 ** (-6 / 20) + 1e-4 for gain in gains)
    groups = [group for row in rows for group in row.groups]
    assert len(gains) == len(groups)  # the spans of an utterance have one gain
    assert len(plain.waveforms) > len(groups) or cut == "slice"


def test_occurrences_are_counted() -> None:
    assert occurrences(np.array([4, 7, 4, 4, 1, 7])).tolist() == [0, 0, 1, 2, 0, 1]


def test_stretches_have_all_widths_up_to_the_widest_and_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    drawn = [stretches(20, 1, 5, rng) for _ in range(500)]
    assert {int(hidden.sum()) for hidden in drawn} == {0, 1, 2, 3, 4, 5}
    assert any(hidden[0] for hidden in drawn)
    assert any(hidden[-1] for hidden in drawn)
    assert not stretches(20, 0, 5, rng).any()
    assert not stretches(20, 3, 0, rng).any()


def test_masks_keep_to_their_limits(shards: Shards, small_recipe: Recipe) -> None:
    plan, augmentation = make(shards, small_recipe)
    assert augmentation
    group = plan.window_rows(0, 0)[0].groups[0]
    rate = 16_000 / plan.geometry.samples_per_encoder_frame
    # Seconds limit the masks of long clips, the share those of short ones.
    for frames, most in ((int(10 * rate), 0.5 * rate), (int(rate), 0.3 * rate)):
        masks = [augmentation.mask(replace(group, epoch=epoch), 0, frames) for epoch in range(200)]
        assert 0.7 * 2 * int(most) < max(int(mask.frames.sum()) for mask in masks) <= 2 * int(most)
        assert 0.7 / 2 < max(mask.channels.mean() for mask in masks) <= 1 / 2
        assert {len(mask.frames) for mask in masks} == {frames}
        assert {len(mask.channels) for mask in masks} == {CHANNEL_PARTS}


def test_without_masks_nothing_is_drawn(shards: Shards, small_recipe: Recipe) -> None:
    plan, augmentation = make(shards, small_recipe, AugmentConfig())
    assert augmentation is None
    batch = build(next(plan.steps()).rows, shards.__getitem__, plan, augmentation)
    assert batch.masked_frames.shape == batch.masked_channels.shape == (len(batch.waveforms), 0)


def test_a_batch_without_sound_hides_nothing(shards: Shards, small_recipe: Recipe) -> None:
    plan, augmentation = make(shards, small_recipe)
    batch = build([], shards.__getitem__, plan, augmentation)
    assert len(batch.masked_frames) == len(batch.masked_channels) == 1
    assert not batch.masked_frames.any()


def test_frames_and_masks_stay_together_on_a_device(shards: Shards, small_recipe: Recipe) -> None:
    plan, augmentation = make(shards, small_recipe)
    batch = build(next(plan.steps()).rows, shards.__getitem__, plan, augmentation).to("cpu")
    frames = torch.from_numpy(plan.geometry.encoder_frames(batch.waveform_lengths.numpy()))
    assert batch.masked_frames.shape == (len(batch.waveforms), int(frames.max()))
    assert not (batch.masked_frames & (torch.arange(int(frames.max())) >= frames[:, None])).any()
    assert batch.clips_alone().masked_frames is batch.masked_frames
