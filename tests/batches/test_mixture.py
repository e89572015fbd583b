"""Speech and text alone in one mixture, from shards to batches. Training on it: tests/engine/test_mixture.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi import recipe as recipes
from mtbi.batches.batch import build
from mtbi.batches.longest import longest_tokens
from mtbi.batches.plan import Plan, Position, Row
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards import stats
from mtbi.shards.read import Shards


def make_plan(shards: Shards, recipe: Recipe) -> Plan:
    return Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))


def drawn(plan: Plan, epoch: int) -> Counter[int]:
    """How often each utterance is in an epoch."""
    steps = takewhile(lambda step: step.position.epoch == epoch, plan.steps(Position(epoch)))
    return Counter(group.utterance for step in steps for row in step.rows for group in row.groups)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("cut", ["slice", "encode"])
def test_text_alone_is_the_text_llms_own_dialogue(
    text_folder: Path, chat: ChatFormat, small_recipe: Recipe, share: float, cut: str
) -> None:
    small_recipe.interleave = replace(small_recipe.interleave, share=share, cut=cut)
    shards = Shards(str(text_folder))
    plan = make_plan(shards, small_recipe)
    groups = [group for row in plan.window_rows(0, 0) for group in row.groups]
    assert groups
    assert max(group.tokens for group in make_plan(shards, small_recipe).window_rows(0, 0)[0].groups) > 0
    for group in groups:
        stored = shards[group.utterance]
        batch = build([Row((replace(group),))], shards.__getitem__, plan)
        answer = stored.behaviours[group.branches[0]]
        dialogue = chat.dialogue_ids(stored.text, answer.prompt)
        assert batch.token_ids[0, : len(dialogue)].tolist() == dialogue
        assert not len(batch.audio_slot)
        assert not batch.waveforms.any()
    single = replace(small_recipe, plan=replace(small_recipe.plan, tasks_per_utterance=1))
    longest = max(g.tokens for epoch in range(9) for row in make_plan(shards, single).window_rows(epoch, 0) for g in row.groups)
    assert longest <= longest_tokens(plan) <= longest + 8


def test_a_weight_is_the_number_of_passes_in_an_epoch(shard_folder: Path, text_folder: Path, small_recipe: Recipe) -> None:
    shards = Shards([str(shard_folder), str(text_folder)])
    plain = make_plan(shards, small_recipe)
    assert drawn(plain, 0) == Counter(range(68))
    small_recipe.data.weights = {str(shard_folder): 0.5, f"{text_folder}/": 3.0}
    mixed = make_plan(shards, small_recipe)
    epochs = [drawn(mixed, epoch) for epoch in range(6)]
    assert all(counts[number] == 3 for counts in epochs for number in range(60, 68))
    speech = [{number for number in counts if number < 60} for counts in epochs]
    assert np.mean([len(numbers) for numbers in speech]) == pytest.approx(30, abs=6)
    assert speech[0] != speech[1]  # drawn anew
    assert all(counts[number] == 1 for counts, numbers in zip(epochs, speech, strict=True) for number in numbers)
    steps = list(islice(mixed.steps(), 30))
    for at, step in enumerate(steps[:-1]):
        assert list(islice(mixed.steps(step.next_position), 2)) == [*steps[at + 1 : at + 3], *[]][:2] or at >= 28
    small_recipe.data.weights = {str(text_folder): 0.0}
    assert set(drawn(make_plan(shards, small_recipe), 0)) == set(range(60))


def test_weights_of_one_are_the_plain_list(shard_folder: Path, text_folder: Path, small_recipe: Recipe) -> None:
    shards = Shards([str(shard_folder), str(text_folder)])
    plain = list(islice(make_plan(shards, small_recipe).steps(), 10))
    small_recipe.data.weights = {str(text_folder): 1.0}
    assert list(islice(make_plan(shards, small_recipe).steps(), 10)) == plain


def test_weights_of_nothing_are_refused(shard_folder: Path, small_recipe: Recipe) -> None:
    small_recipe.data.weights = {str(shard_folder): 0.0}
    with pytest.raises(UserError, match=r"data\.weights: every source"):
        make_plan(Shards(str(shard_folder)), small_recipe)
    with pytest.raises(UserError, match=r"data\.weights: b is not an address of data\.shards \(a\)"):
        recipes.load("demo", ["data.shards=[a]", "data.weights={b: 2}"])


def test_an_epoch_without_an_utterance_names_the_weights(shard_folder: Path, small_recipe: Recipe) -> None:
    data = replace(small_recipe.data, weights={str(shard_folder): 1e-9})
    with pytest.raises(UserError, match=r"^data\.weights: an epoch draws no utterance; give a source"):
        next(make_plan(Shards(str(shard_folder)), replace(small_recipe, data=data)).steps())


def test_text_alone_counts_neither_as_speech_nor_as_unaligned(shard_folder: Path, text_folder: Path) -> None:
    shards = Shards([str(shard_folder), str(text_folder)])
    assert len(shards.index.spoken_words) == 60
    found, speech = stats.of_shards("both", shards.index), stats.of_shards("speech", Shards(str(shard_folder)).index)
    assert (found.utterances, found.text_only, found.single) == (68, 8, speech.single)
    assert (found.hours, found.aligned, found.durations) == (speech.hours, speech.aligned, speech.durations)
    assert stats.of_manifest(text_folder.parent / "manifest.jsonl").text_only == 8


def test_a_batch_of_both_has_the_sound_of_the_speech(shard_folder: Path, text_folder: Path, small_recipe: Recipe) -> None:
    shards = Shards([str(text_folder), str(shard_folder)])
    plan = make_plan(shards, small_recipe)
    for step in islice(plan.steps(), 8):
        batch = build(step.rows, shards.__getitem__, plan)
        assert int((batch.group >= 0).sum()) == step.tokens
        spoken = sum(group.samples > 0 for row in step.rows for group in row.groups)
        assert bool((batch.waveforms != 0).any(1).all()) == bool(spoken)
        assert torch.equal(torch.unique(batch.audio_clip), torch.arange(spoken)) or small_recipe.interleave.cut == "encode"
