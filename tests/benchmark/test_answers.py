from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from use.test_text_llm import moved_run

from mtbi.benchmark.answers import ConditionAsker
from mtbi.benchmark.dialogues import from_shards
from mtbi.metrics import ADAPTED, SPEECH, TEXT_LLM
from mtbi.shards.read import Shards
from mtbi.use.open_run import TrainedRun


def test_each_llm_gets_the_text_that_stood_around_the_utterance(surrounded_folder: Path, untrained_run: TrainedRun) -> None:
    chat, asker = untrained_run.chat, ConditionAsker(untrained_run)
    turn = next(turn for turn in from_shards("dev", Shards(str(surrounded_folder)), {}, 0) if turn.read.after)
    before, sound, after = asker.prompt(turn, SPEECH, turn.waveform)
    assert isinstance(sound, np.ndarray)
    assert [*before] == [*chat.prefix_ids, *chat.plain_ids("one two")]
    assert chat.decode(after.tolist()).startswith(chat.decode(chat.following_ids(" nine")))
    before, read, after = asker.prompt(turn, TEXT_LLM, asker.text_ids(turn, turn.dialogue.transcript))
    assert isinstance(read, torch.Tensor)
    assert chat.decode([*before[len(chat.prefix_ids) :], *read]) == f"one two zero {turn.dialogue.transcript}"


def test_without_audio_the_text_around_it_stays(surrounded_folder: Path, untrained_run: TrainedRun) -> None:
    turn = next(iter(from_shards("dev", Shards(str(surrounded_folder)), {}, 0)))
    asker = ConditionAsker(untrained_run, controls=["no audio"])
    turn.controlled, turn.dialogue.max_new_tokens, turn.stored = True, 4, None
    asker.ask([turn])
    assert {"no audio", SPEECH} <= set(turn.dialogue.answers)


def test_a_trained_llm_is_asked_beside_the_one_from_before(
    surrounded_folder: Path, untrained_run: TrainedRun, tmp_path: Path
) -> None:
    turn = next(iter(from_shards("dev", Shards(str(surrounded_folder)), {}, 0)))
    turn.controlled, turn.stored, turn.dialogue.answers = True, None, {}
    ConditionAsker(untrained_run, controls=[]).ask([turn])
    unchanged = dict(turn.dialogue.answers)
    assert ADAPTED not in unchanged
    turn.dialogue.answers = {}
    run = moved_run(tmp_path, "model.llm_trainable=all", "train.llm_learning_rate=1e-5")
    ConditionAsker(run, controls=[]).ask([turn])
    assert turn.dialogue.answers[TEXT_LLM] == unchanged[TEXT_LLM]
    assert turn.dialogue.answers[ADAPTED] != unchanged[TEXT_LLM]
