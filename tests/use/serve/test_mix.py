from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi import text_units
from mtbi.batches.batch import build
from mtbi.batches.plan import Plan, Row
from mtbi.demo.encoder import DemoAligner
from mtbi.errors import UserError
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import AdapterConfig, Recipe
from mtbi.shards.read import Shards
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.mix import Mix, Mixer, Word, align_words, choose_aligner

Spoken = tuple[np.ndarray, list[tuple[float, float]]]


@pytest.mark.parametrize("transcript", ["three five seven", ""])
def test_words_of_real_recordings_are_found(spoken: Spoken, transcript: str) -> None:
    wave, times = spoken
    words = align_words(DemoAligner(), wave, transcript)
    assert [word.word for word in words] == ["three", "five", "seven"]
    assert words[0].start == 0
    assert words[-1].end == pytest.approx(len(wave) / 16_000, abs=1e-3)
    middles = [(begin + end) / 2 for begin, end in times]
    for (word, following), (middle, next_middle) in zip(pairwise(words), pairwise(middles), strict=True):
        assert word.end == following.start
        assert middle < word.end < next_middle


@pytest.mark.parametrize(
    ("seconds", "transcript", "reason"),
    [(1, "", "no word was recognised"), (0.05, "three five seven", "too short"), (1, "hello world", "can spell none")],
)
def test_what_cannot_be_aligned_is_an_error(seconds: float, transcript: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        align_words(DemoAligner(), np.zeros(int(16_000 * seconds), np.float32), transcript)


@pytest.mark.parametrize("cut", ["slice", "encode"])
def test_a_mix_is_what_training_cuts(run: TrainedRun, shard_folder: Path, small_recipe: Recipe, cut: str) -> None:
    shards = Shards(str(shard_folder))
    recipe = replace(small_recipe, interleave=replace(small_recipe.interleave, cut=cut, share=1.0))
    compare_with_training(replace(run, recipe=recipe), shards, recipe)


def test_queries_of_whole_clips_read_each_span_alone(run: TrainedRun, shard_folder: Path, small_recipe: Recipe) -> None:
    model = replace(small_recipe.model, adapter=AdapterConfig("clip-qformer", queries=3))
    recipe = replace(small_recipe, model=model, interleave=replace(small_recipe.interleave, cut="encode", share=1.0))
    built = build_speech_llm(model, recipe.loss, torch.float32, torch.device("cpu")).eval()
    unused = replace(recipe, interleave=replace(recipe.interleave, cut="slice", share=0.0))  # of a run without interleaving
    compare_with_training(replace(run, recipe=unused, model=built), Shards(str(shard_folder)), recipe)


def compare_with_training(run: TrainedRun, shards: Shards, recipe: Recipe) -> None:
    """The mixes of a run are the spans that training builds by a recipe."""
    plan, mixer = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model)), Mixer(run)
    groups = [group for step in islice(plan.steps(), 6) for row in step.rows for group in row.groups if group.segments]
    assert len(groups) > 5
    for group in groups[:6]:
        sample = shards[group.utterance]
        read = [segment.is_text for segment in group.segments or () for _ in range(segment.stop - segment.first)]
        words = [
            Word(word=word, start=start / 16_000, end=stop / 16_000, read=text)
            for word, (start, stop), text in zip(sample.text.split(), sample.word_times, read, strict=True)
        ]
        batch = build([Row((group,))], shards.__getitem__, plan)
        with torch.no_grad():
            frames, _ = run.model.encode_speech(batch.waveforms, batch.waveform_lengths)
            trained = run.model.embed(batch.token_ids)[0]
        trained[batch.audio_slot] = frames[batch.audio_clip, batch.audio_frame]
        shared = trained[(batch.branch[0] == 0) & (batch.group[0] == 0)][len(plan.index.prefix_ids) :]
        torch.testing.assert_close(torch.cat(mixer.embed(Mix(sample.waveform, words))), shared, rtol=1e-4, atol=1e-5)


def test_all_heard_and_all_read_are_answered_as_in_a_conversation(run: TrainedRun, spoken: Spoken) -> None:
    wave, mixer = spoken[0], Mixer(run)
    words = align_words(DemoAligner(), wave, "three five seven")
    talk = Conversation(run, 24)
    assert mixer.answer(talk, Mix(wave, words), "repeat") == Conversation(run, 24).say([wave], "repeat")
    read = Mix(wave, [word.model_copy(update={"read": True}) for word in words])
    assert mixer.answer(talk, read, "reverse the digits") == "seven five three"
    assert len(talk.parts[-1]) == 4  # three words and the end


def test_characters_that_share_a_token_are_read_together(
    run: TrainedRun, spoken: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's tokenizer knows no Chinese, so its stretches are given."""
    wave, mixer = spoken[0], Mixer(run)
    ids = run.chat.text_ids("three"), run.chat.text_ids("five")
    monkeypatch.setattr(run.chat, "stretches", lambda units: [(2, ids[0]), (1, ids[1])])

    def lengths(*read: bool) -> list[int]:
        words = [
            Word(word=one, start=n / 2, end=n / 2 + 0.5, read=r) for n, (one, r) in enumerate(zip("今天好", read, strict=True))
        ]
        return [len(span) for span in mixer.embed(Mix(wave, words))]

    heard = lengths(False, False, False)
    assert lengths(True, False, False) == heard
    assert lengths(True, True, True) == [2]
    first, last = lengths(True, True, False)
    assert first == 1
    assert 0 < last < heard[0]
    assert lengths(False, True, True)[1] == 1


def test_an_aligned_transcript_keeps_its_spaces() -> None:
    class Anything(DemoAligner):
        def labels(self, word: str) -> list[int]:
            return [1]

    words = align_words(Anything(), np.zeros(32_000, np.float32), "我用 iPhone")
    assert [(word.word, word.space) for word in words] == [("我", False), ("用", False), ("iPhone", True)]
    assert [word.unit for word in words] == text_units.units("我用 iPhone")
    assert [word.space for word in align_words(Anything(), np.zeros(32_000, np.float32), "one two")] == [False, True]


def test_the_aligner_fits_the_encoder(run: TrainedRun) -> None:
    other = replace(run.recipe, model=replace(run.recipe.model, encoder=replace(run.recipe.model.encoder, path="x/whisper")))
    assert isinstance(choose_aligner("", run), DemoAligner)
    assert choose_aligner("", replace(run, recipe=other)) is None
    assert isinstance(choose_aligner("demo", replace(run, recipe=other)), DemoAligner)
