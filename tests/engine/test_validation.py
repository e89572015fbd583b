"""The dialogues that an evaluation shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launcher.ranks import Ranks
from mtbi import recipe as recipes
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.batches.batch import Batch
from mtbi.batches.loader import LoadedStep
from mtbi.corpus.manifest import Utterance
from mtbi.engine import validation as module
from mtbi.engine.log import Metrics
from mtbi.engine.sums import StepSums
from mtbi.engine.validation import Evaluation
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.flops import LLMSize
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance
from mtbi.shards.write import write_shards

CPU = torch.device("cpu")


def make(recipe: Recipe, chat: ChatFormat, shards: Shards) -> Evaluation:
    return Evaluation(recipe, FrameGeometry.from_config(recipe.model), chat, shards, Ranks(0, 1, 0, 1))


def show(evaluation: Evaluation, recipe: Recipe) -> None:
    metrics = Metrics(recipe, ["repeat"], False, 1, LLMSize(1000, 800, 300), CPU)
    evaluation.show_dialogues(build_speech_llm(recipe.model, recipe.loss, torch.float32, CPU), metrics, 1)


def test_what_the_plan_leaves_out_is_not_shown(
    chat: ChatFormat, shard_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(str(shard_folder))
    seconds = [len(shards[number].waveform) / 16_000 for number in range(len(shards))]
    limit = sorted(seconds)[len(seconds) // 2]
    recipe = recipes.load("demo", [f"run_dir={tmp_path}", "train.sample_dialogues=4", f"plan.max_audio_seconds={limit}"])
    expected = [number for number, length in enumerate(seconds) if length <= limit][:4]
    assert expected != [0, 1, 2, 3]
    read: list[int] = []
    real = Shards.__getitem__

    def listening(self: Shards, number: int) -> StoredUtterance:
        read.append(number)
        return real(self, number)

    monkeypatch.setattr(Shards, "__getitem__", listening)
    show(make(recipe, chat, shards), recipe)
    assert read == expected


def test_prompts_stand_where_training_puts_them(
    corpus: tuple[Path, list[Utterance]], chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BehaviourConfig(library=["digits"], tasks=["reverse"], top_k=4, max_new_tokens=8, prompt_first=True)
    few = corpus[1][:2]
    ask_unanswered(few, config, build_teacher(recipes.load("demo").model, config), chat, tmp_path / "answers")
    store = AnswerStore(tmp_path / "answers")
    write_shards(few, corpus[0], store, chat, str(tmp_path / "shards"))
    recipe = recipes.load("demo", [f"run_dir={tmp_path}", "train.sample_dialogues=1", "behaviour.prompt_first=true"])
    shards, asked, real = Shards(str(tmp_path / "shards")), [], module.generate

    def listening(model, prompts, *rest):
        asked.extend(prompts)
        return real(model, prompts, *rest)

    monkeypatch.setattr(module, "generate", listening)
    show(make(recipe, chat, shards), recipe)
    [(before, wave, after)] = asked
    lead, suffix = chat.around_speech(shards[0].behaviours[0].prompt, True)
    assert lead
    assert before.tolist() == [*chat.prefix_ids, *lead]
    assert len(wave) == len(shards[0].waveform)
    assert after.tolist() == suffix


def test_a_read_error_is_a_failure_of_all_and_not_an_exception_of_one(
    chat: ChatFormat, shard_folder: Path, tmp_path: Path
) -> None:
    recipe = recipes.load("demo", [f"run_dir={tmp_path}", "train.sample_dialogues=2"])
    shards = Shards(str(shard_folder))

    def away(number: int) -> StoredUtterance:
        raise UserError("s3://speech/shard.00000.mds: 12 attempts failed")

    shards.__class__ = type("Away", (Shards,), {"__getitem__": lambda _self, number: away(number)})
    evaluation = make(recipe, chat, shards)
    show(evaluation, recipe)
    assert "12 attempts failed" in str(evaluation.failure)


def test_an_evaluation_hears_the_sound_as_it_is(chat: ChatFormat, shard_folder: Path, tmp_path: Path) -> None:
    fields = [
        "augment.time_masks=2",
        "augment.gain_probability=1",
        "augment.gain_db_min=9",
        "train.sample_dialogues=0",
        "train.eval_utterances=8",
    ]
    recipe = recipes.load("demo", [f"run_dir={tmp_path}", *fields])
    seen: list[Batch] = []

    class Listening:
        """In place of the engine: it keeps the batches that an evaluation gives it."""

        model, device = None, CPU

        def evaluate_step(self, step: LoadedStep) -> StepSums:
            seen.extend(step.micro_batches)
            return StepSums(0.0, 0.0, 0, False, 0, False, False, {}, 0.0)

    metrics = Metrics(recipe, ["repeat"], False, 1, LLMSize(1000, 800, 300), CPU)
    make(recipe, chat, Shards(str(shard_folder))).run(Listening(), metrics, 1)  # type: ignore[arg-type]
    assert sum(len(batch.waveforms) for batch in seen) >= 8
    assert {(batch.masked_frames.shape[1], batch.masked_channels.shape[1]) for batch in seen} == {(0, 0)}
    shards = Shards(str(shard_folder))
    stored = {shards[number].waveform.tobytes() for number in range(len(shards))}
    heard = [wave[:n].numpy().tobytes() for b in seen for wave, n in zip(b.waveforms, b.waveform_lengths, strict=True)]
    assert set(heard) <= stored
