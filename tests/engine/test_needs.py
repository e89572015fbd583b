from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mtbi import recipe as recipes
from mtbi.batches.interleave import Coverage
from mtbi.engine.needs import check, check_interleaving
from mtbi.errors import UserError
from mtbi.shards.read import Shards


def test_an_alignment_loss_needs_the_tokens_of_every_transcript(shard_folder: Path) -> None:
    index = Shards(str(shard_folder)).index
    old = dataclasses.replace(index, untimed_ids=False)  # shards of an earlier version; one utterance has no word times
    for field in ("train.alignment_steps=5", "loss.alignment=1"):
        check(recipes.load("demo", [field]), index)
        with pytest.raises(UserError, match=r"lacks the tokens of 1 transcripts without word times: make the shards again"):
            check(recipes.load("demo", [field]), old)
    check(recipes.load("demo"), old)


def test_silence_is_dropped_only_where_the_adapter_learns_it(shard_folder: Path) -> None:
    index = Shards(str(shard_folder)).index
    drop = "model.adapter.drop_silence=0.9"
    for field in ("train.alignment_steps=5", "loss.alignment=1"):
        check(recipes.load("demo", [drop, field]), index)
    with pytest.raises(UserError, match=r"nothing teaches the adapter what silence is: set loss\.alignment"):
        check(recipes.load("demo", [drop]), index)


def test_a_corpus_that_cannot_be_interleaved_stops_a_run_that_interleaves() -> None:
    single, unaligned = Coverage(5, 1, 4), Coverage(5, 5, 0)
    with pytest.raises(UserError, match=r"interleave.share is 0.5, but .* can be interleaved: 4 of 5 have one word only"):
        check_interleaving(recipes.load("demo", []), single)
    with pytest.raises(UserError, match=r"no utterance of data\.shards has word times: run `mtbi data align`"):
        check_interleaving(recipes.load("demo", []), unaligned)
    check_interleaving(recipes.load("demo", ["interleave.share=0"]), single)
    check_interleaving(recipes.load("demo", []), Coverage(5, 1, 3))


def test_stored_features_cannot_be_distorted_but_masked(shard_folder: Path) -> None:
    sound = Shards(str(shard_folder)).index
    stored = dataclasses.replace(sound, encoded="whisper layer -1")
    recipe = recipes.load("demo", ["augment.gain_probability=0.5", "augment.babble_probability=1"])
    check(recipe, sound)
    with pytest.raises(UserError, match=r"augment.babble_probability and augment.gain_probability: .* cannot be distorted"):
        check(recipe, stored)
    check(recipes.load("demo", ["augment.time_masks=2", "augment.channel_masks=2"]), stored)
