from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.answers.ask import ask_unanswered, prompts_about
from mtbi.answers.questions import chosen_tasks, draw_questions
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.batches.batch import RowBuilder, build
from mtbi.batches.longest import longest_tokens
from mtbi.batches.plan import Plan, Row
from mtbi.corpus.manifest import Utterance
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards


def make(shard_folder: Path, recipe: Recipe, **interleaving: object) -> tuple[Shards, Plan]:
    found = Shards(str(shard_folder))
    mixed = dataclasses.replace(recipe, interleave=dataclasses.replace(recipe.interleave, **interleaving))
    return found, Plan(found.index, mixed, FrameGeometry.from_config(recipe.model))


@pytest.mark.parametrize("cut", ["slice", "encode"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_batches_are_what_the_plan_counted(shard_folder: Path, small_recipe: Recipe, cut: str, share: float) -> None:
    found, plan = make(shard_folder, small_recipe, cut=cut, share=share)
    for step in islice(plan.steps(), 12):
        batch = build(step.rows, found.__getitem__, plan)
        assert float(batch.target_weight.sum()) == pytest.approx(step.weight_total)
        assert len(batch.target_ids) == step.target_tokens == len(batch.teacher_ids)
        assert int((batch.group >= 0).sum()) == step.tokens
        assert (batch.group.flatten()[batch.audio_slot] >= 0).all()
        assert (batch.branch.flatten()[batch.audio_slot] == 0).all()
        frames = plan.geometry.frames(batch.waveform_lengths.numpy())
        assert (batch.audio_frame < torch.from_numpy(frames)[batch.audio_clip]).all()


def test_a_branch_reads_prompt_and_answer_and_predicts_the_answer(shard_folder: Path, small_recipe: Recipe) -> None:
    found, plan = make(shard_folder, small_recipe, share=0.0)
    step = next(plan.steps())
    group = step.rows[0].groups[0]
    batch = build([Row((group,))], found.__getitem__, plan)
    sample = found[group.utterance]
    frames = plan.geometry.frames(len(sample.waveform))
    prefix = len(plan.index.prefix_ids) + frames
    ids, targets = batch.token_ids[0].tolist(), iter(zip(batch.target_slot.tolist(), batch.target_ids.tolist(), strict=True))
    start = prefix
    for place, number in enumerate(group.branches, start=1):
        one = sample.behaviours[number]
        text = [*one.prompt_ids, *one.answer_ids]
        assert ids[start : start + len(text) - 1] == text[:-1]
        assert batch.branch[0, start : start + len(text) - 1].tolist() == [place] * (len(text) - 1)
        assert batch.position_ids[0, start : start + len(text) - 1].tolist() == list(range(prefix, prefix + len(text) - 1))
        for offset, token in enumerate(one.answer_ids):
            assert next(targets) == (start + len(one.prompt_ids) - 1 + offset, token)
        start += len(text) - 1
    assert batch.audio_slot.tolist() == list(range(len(plan.index.prefix_ids), prefix))
    assert batch.audio_frame.tolist() == list(range(frames))
    torch.testing.assert_close(batch.waveforms[0, : len(sample.waveform)], torch.from_numpy(sample.waveform))


def test_text_spans_are_the_transcripts_words(shard_folder: Path, small_recipe: Recipe) -> None:
    found, plan = make(shard_folder, small_recipe, share=1.0, text_share_min=0.5, text_share_max=0.5)
    groups = [group for step in islice(plan.steps(), 12) for row in step.rows for group in row.groups if group.segments]
    assert len(groups) > 10
    for group in groups[:20]:
        batch, sample = build([Row((group,))], found.__getitem__, plan), found[group.utterance]
        shared = (batch.branch[0] == 0) & (batch.group[0] == 0)
        sounding = torch.zeros(shared.numel(), dtype=torch.bool)
        sounding[batch.audio_slot] = True
        text = batch.token_ids[0][shared & ~sounding].tolist()[len(plan.index.prefix_ids) :]
        assert group.segments
        expected = [int(i) for s in group.segments if s.is_text for ids in sample.word_ids[s.first : s.stop] for i in ids]
        assert text == expected


def test_a_batch_without_sound_still_has_a_clip(shard_folder: Path, small_recipe: Recipe) -> None:
    found, plan = make(shard_folder, small_recipe)
    batch = build([Row(), Row()], found.__getitem__, plan)
    assert batch.token_ids.shape == (2, 64)  # no wider than it needs to be
    assert batch.waveforms.shape[0] == 1
    assert not batch.waveforms.any()
    assert batch.spoken_lengths.tolist() == [0]
    assert len(batch.target_ids) == len(batch.audio_slot) == 0
    assert (batch.group == -1).all()


@pytest.mark.parametrize("cut", ["slice", "encode"])
def test_each_clip_has_the_tokens_that_are_said_in_it(
    shard_folder: Path, small_recipe: Recipe, chat: ChatFormat, cut: str
) -> None:
    found, plan = make(shard_folder, small_recipe, cut=cut, share=0.5)
    rows = next(plan.steps()).rows
    batch = build(rows, found.__getitem__, plan)
    said = [ids[:length].tolist() for ids, length in zip(batch.spoken_ids, batch.spoken_lengths.tolist(), strict=True)]
    groups = [group for row in rows for group in row.groups]
    assert len(said) == len(batch.waveforms)
    if cut == "slice":
        assert said == [chat.transcript_ids(found[group.utterance].text) for group in groups]
    else:
        heard = sum(s.stop - s.first for g in groups for s in g.segments or () if not s.is_text)
        whole = sum(len(found[group.utterance].text.split()) for group in groups if group.segments is None)
        assert sum(map(len, said)) == heard + whole  # a digit is one token


def test_clips_alone_drops_all_but_the_clips(shard_folder: Path, small_recipe: Recipe) -> None:
    found, plan = make(shard_folder, small_recipe)
    batch = build(next(plan.steps()).rows, found.__getitem__, plan)
    assert len(batch.target_ids) > 0
    alone = batch.clips_alone()
    assert alone.token_ids.shape == (1, 8)
    assert (alone.group == -1).all()
    assert torch.equal(alone.waveforms, batch.waveforms)
    assert torch.equal(alone.spoken_ids, batch.spoken_ids)
    assert len(alone.target_ids) == len(alone.audio_slot) == 0


def test_with_the_prompt_first_each_branch_hears_the_speech_after_it(
    tmp_path: Path, corpus: tuple[Path, list[Utterance]], chat: ChatFormat, small_recipe: Recipe
) -> None:
    config = BehaviourConfig(library=["digits"], per_utterance=3, top_k=4, max_new_tokens=24, prompt_first=True)
    teacher = build_teacher(small_recipe.model, config)
    ask_unanswered(corpus[1][:12], config, teacher, chat, tmp_path / "answers")
    store = AnswerStore(tmp_path / "answers")
    write_shards(corpus[1][:12], corpus[0], store, chat, str(tmp_path / "shards"))
    found, plan = make(tmp_path / "shards", small_recipe, share=0.7)
    assert found.index.prompt_first
    for step in islice(plan.steps(), 3):
        batch = build(step.rows, found.__getitem__, plan)
        assert int((batch.group >= 0).sum()) == step.tokens
        assert (batch.branch.flatten()[batch.audio_slot] > 0).all()
        for place, row in enumerate(step.rows):
            for number, group in enumerate(row.groups):
                sample = found[group.utterance]
                for branch, at in enumerate(group.branches, start=1):
                    one = sample.behaviours[at]
                    mine = (batch.group[place] == number) & (batch.branch[place] == branch)
                    ids, positions = batch.token_ids[place][mine].tolist(), batch.position_ids[place][mine].tolist()
                    assert ids[: len(one.before_speech_ids)] == one.before_speech_ids
                    assert ids[-len(one.answer_ids) + 1 :] == one.answer_ids[:-1] or len(one.answer_ids) == 1
                    first = len(plan.index.prefix_ids)
                    assert positions == list(range(first, first + len(positions)))


@pytest.mark.parametrize("cut", ["slice", "encode"])
@pytest.mark.parametrize("prompt_first", [False, True])
def test_text_stands_around_the_sound(
    surrounded_folder: Path, shard_folder: Path, small_recipe: Recipe, chat: ChatFormat, cut: str, prompt_first: bool
) -> None:
    found = Shards([str(shard_folder), str(surrounded_folder)])
    found.index.prompt_first = prompt_first
    mixed = dataclasses.replace(small_recipe.interleave, cut=cut, share=0.5)
    plan = Plan(found.index, dataclasses.replace(small_recipe, interleave=mixed), FrameGeometry.from_config(small_recipe.model))
    seen = 0
    for step in islice(plan.steps(), 12):
        batch = build(step.rows, found.__getitem__, plan)
        assert int((batch.group >= 0).sum()) == step.tokens
        for place, row in enumerate(step.rows):
            for number, group in enumerate(row.groups):
                heard = found[group.utterance].heard
                if heard and group.segments is None:
                    own = batch.token_ids[place][(batch.group[place] == number) & (batch.branch[place] == int(prompt_first))]
                    frames = int(plan.geometry.frames(group.samples))
                    around = [*heard.before, *[0] * frames, *heard.after]
                    assert any(own.tolist()[at : at + len(around)] == around for at in range(len(own)))
                    seen += 1
    assert seen > 3
    longest = longest_tokens(plan)
    assert longest >= max(int(batch.position_ids.max()) + 1, 1)


def test_an_utterance_that_is_all_text_is_what_the_text_llm_read(
    tmp_path: Path, corpus: tuple[Path, list[Utterance]], chat: ChatFormat, small_recipe: Recipe
) -> None:
    around = "four {text} nine"
    config = BehaviourConfig(library=["digits"], per_utterance=1, top_k=4, max_new_tokens=24, reads=around)
    questions = draw_questions(corpus[1][0], chosen_tasks(config), config, chat, seed=1)
    read = prompts_about(questions, config, chat)
    ask_unanswered(corpus[1][:1], config, build_teacher(small_recipe.model, config), chat, tmp_path / "answers")
    store, heard = AnswerStore(tmp_path / "answers"), around.replace("text", "sound")
    write_shards(corpus[1][:1], corpus[0], store, chat, str(tmp_path / "shards"), hears=heard)
    found, plan = make(tmp_path / "shards", small_recipe)
    group = next(plan.steps()).rows[0].groups[0]
    all_text = dataclasses.replace(group, text_words=b"\1" * len(found[0].word_ids))
    spans = RowBuilder(plan, [], [], 0).cut_utterance(all_text, found[0])
    heard_ids = [*plan.index.prefix_ids, *(token for span in spans for token in np.asarray(span).tolist())]
    assert heard_ids == read.start.tolist()


def test_both_llms_read_text_alone_in_the_same_way(tmp_path: Path, chat: ChatFormat, small_recipe: Recipe) -> None:
    config = BehaviourConfig(library=["digits"], per_utterance=1, top_k=4, max_new_tokens=24, reads="four {text} nine")
    text = Utterance("t", "", "three five")
    read = prompts_about(draw_questions(text, chosen_tasks(config), config, chat, seed=1), config, chat)
    ask_unanswered([text], config, build_teacher(small_recipe.model, config), chat, tmp_path / "answers")
    write_shards([text], tmp_path, AnswerStore(tmp_path / "answers"), chat, str(tmp_path / "shards"), hears="six {sound}")
    found, plan = make(tmp_path / "shards", small_recipe, share=0.0)
    step = next(plan.steps())
    batch = build(step.rows, found.__getitem__, plan)
    assert batch.token_ids[0, : len(read.start)].tolist() == read.start.tolist()
    assert int((batch.group >= 0).sum()) == step.tokens
    assert not len(batch.audio_slot)
