from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi import recipe as recipes
from mtbi.batches.augment import Augmentation
from mtbi.batches.batch import build
from mtbi.batches.plan import Plan, Row
from mtbi.errors import UserError
from mtbi.model.encoders.build import build_encoder, encoder_facts
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import AugmentConfig, Recipe
from mtbi.shards import features
from mtbi.shards.index import Index
from mtbi.shards.read import Shards


@pytest.fixture(scope="module")
def encoded(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = recipes.load("demo")
    out = tmp_path_factory.mktemp("features") / "digits"
    encoder = build_encoder(recipe.model.encoder, torch.float32, torch.device("cpu")).eval()
    assert (
        features.write(
            Shards(str(shard_folder)), encoder, encoder_facts(recipe.model.encoder).output_name, str(out), batch_size=7
        )
        == 60
    )
    return out


def test_training_on_stored_features_is_training_on_the_sound(shard_folder: Path, encoded: Path, small_recipe: Recipe) -> None:
    mixed = dataclasses.replace(small_recipe, interleave=dataclasses.replace(small_recipe.interleave, share=0.5))
    sound, stored = Shards(str(shard_folder)), Shards(str(encoded))
    geometry = FrameGeometry.from_config(mixed.model)
    plans = [Plan(one.index, mixed, geometry) for one in (sound, stored)]
    rows = next(plans[0].steps()).rows
    torch.manual_seed(0)
    model = build_speech_llm(mixed.model, mixed.loss, torch.float32, torch.device("cpu"), tasks=20)
    masks = dataclasses.replace(mixed, augment=AugmentConfig(time_masks=2, channel_masks=2))
    batches = [
        build(rows, one.__getitem__, plan, Augmentation.of(masks, geometry, one))
        for one, plan in zip((sound, stored), plans, strict=True)
    ]
    assert batches[0].masked_frames.any()
    assert torch.equal(batches[0].masked_frames, batches[1].masked_frames)
    assert torch.equal(batches[0].masked_channels, batches[1].masked_channels)
    assert batches[1].features.shape[0] == batches[0].waveforms.shape[0] > 1
    losses = [float(model(batch).loss.detach()) for batch in batches]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # features are stored as float16


def test_several_layers_are_stored_side_by_side(shard_folder: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipes.load("demo", ["model.encoder.layers=[0,-1]", "interleave.share=0"])
    name = encoder_facts(recipe.model.encoder).output_name
    torch.manual_seed(0)
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"), tasks=20)
    sound, out = Shards(str(shard_folder)), str(tmp_path / "layers")
    features.write(sound, model.encoder.eval(), name, out)
    stored, geometry = Shards(out), FrameGeometry.from_config(recipe.model)
    features.check(stored.index, recipe, name, False)
    with pytest.raises(UserError, match=r"hold the output of demo \w{8} layer -1 of layers \[0, -1\]"):
        features.check(stored.index, small_recipe, encoder_facts(small_recipe.model.encoder).output_name, False)
    rows = next(Plan(sound.index, recipe, geometry).steps()).rows
    losses = [
        float(model(build(rows, one.__getitem__, Plan(one.index, recipe, geometry))).loss.detach()) for one in (sound, stored)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    size = features.check_room(sound.index, out, geometry.encoder_frames, model.encoder.width)
    assert size == sum(stored[number].features.nbytes for number in range(len(stored)))
    with pytest.raises(UserError, match=r"takes \d+\.\d GB, the disk has"):
        features.check_room(sound.index, str(tmp_path / "new" / "place"), geometry.encoder_frames, 1 << 50)


def test_a_row_without_sound_has_features_of_silence(encoded: Path, small_recipe: Recipe) -> None:
    shards = Shards(str(encoded))
    batch = build([Row()], shards.__getitem__, Plan(shards.index, small_recipe, FrameGeometry.from_config(small_recipe.model)))
    assert batch.features.shape == (1, 1, shards.index.feature_width)  # all processes leave the encoder out alike
    assert not batch.features.any()


def check(index: Index, *fields: str) -> None:
    recipe = recipes.load("demo", fields)
    facts = encoder_facts(recipe.model.encoder)
    features.check(index, recipe, facts.output_name, facts.trainable)


def test_features_of_another_encoder_or_use_are_refused(shard_folder: Path, encoded: Path) -> None:
    index = Shards(str(encoded)).index
    check(index)
    for field, message in (
        ("model.encoder.layer=2", r"the recipe's encoder is demo \w{8} layer 2"),
        ("model.encoder.trainable=true", "cannot be trained"),
        ("interleave.cut=encode", "only be sliced"),
    ):
        with pytest.raises(UserError, match=message):
            check(index, field)
    with pytest.raises(UserError, match="hold the output of demo layer -1"):  # of another version of the package
        check(replace(index, encoded="demo layer -1"))
    with pytest.raises(UserError, match="hold features already"):
        features.write(Shards(str(encoded)), torch.nn.Identity(), "x", str(encoded.parent / "again"))
    with pytest.raises(UserError, match="not empty"):
        features.write(Shards(str(shard_folder)), torch.nn.Identity(), "x", str(encoded))


def test_records_are_read_ahead_in_their_order(shard_folder: Path) -> None:
    shards = Shards(str(shard_folder))
    batches = list(features.read_ahead(shards, range(60), 7))
    assert [len(batch) for batch in batches] == [7] * 8 + [4]
    assert [utterance.id for batch in batches for _, utterance in batch] == [
        one.id for one in map(shards.__getitem__, range(60))
    ]
    assert not list(features.read_ahead(shards, range(0), 7))


def test_half_precision_is_stored_too(shard_folder: Path, tmp_path: Path) -> None:
    recipe, out = recipes.load("demo"), tmp_path / "half"
    encoder = build_encoder(recipe.model.encoder, torch.bfloat16, torch.device("cpu")).eval()
    features.write(Shards(str(shard_folder)), encoder, encoder_facts(recipe.model.encoder).output_name, str(out))
    stored = Shards(str(out))[0].features
    assert stored is not None
    assert stored.dtype == np.float16
    assert np.isfinite(stored).all()
