from __future__ import annotations

from pathlib import Path

import numpy as np

from mtbi.answers.store import AnswerStore
from mtbi.audio import codec
from mtbi.corpus.manifest import Utterance
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards.read import Shards


def test_what_was_written_is_read(
    shard_folder: Path, corpus: tuple[Path, list[Utterance]], answers: Path, chat: ChatFormat
) -> None:
    found, answered = Shards(str(shard_folder)), AnswerStore(answers)
    assert len(found) == 60
    assert len(found.index.shard_sizes) > 3
    for number, utterance in enumerate(corpus[1]):
        sample = found[number]
        assert (sample.id, sample.text) == (utterance.id, utterance.text)
        np.testing.assert_allclose(sample.waveform, codec.read(corpus[0] / utterance.audio), atol=1e-4)
        for one, kept in zip(sample.behaviours, answered.get(utterance.id), strict=True):
            np.testing.assert_array_equal(one.topk_logprobs, kept.topk_logprobs)
            np.testing.assert_array_equal(one.topk_ids, kept.topk_ids)
            assert (one.task, one.prompt_ids, one.answer_ids) == (kept.task, kept.prompt_ids, kept.answer_ids)
        words = [] if utterance.words is None else utterance.text.split()
        assert [ids.tolist() for ids in sample.word_ids] == chat.word_ids(words)
        assert sample.spoken_ids.tolist() == chat.transcript_ids(utterance.text)  # also of the last one, without word times
