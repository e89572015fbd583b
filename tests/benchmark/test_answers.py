from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mtbi.benchmark.answers import ConditionAsker
from mtbi.benchmark.dialogues import from_shards
from mtbi.metrics import SPEECH, TEXT_LLM
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
