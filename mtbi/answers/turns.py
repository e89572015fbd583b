"""The turns of stored dialogues: a prompt about a transcript and its answer, then further prompts and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mtbi.answers.questions import Question
from mtbi.answers.teacher import Answer


@dataclass
class StoredTurn:
    """A prompt of a dialogue and its answer."""

    prompt: str
    prompt_ids: list[int]  #: from the speech, or from the last token of the answer before, to the answer
    answer: str
    answer_ids: list[int]  #: with the end token unless the answer was cut off
    truncated: bool
    topk_ids: np.ndarray  #: (answer tokens, k) int32
    topk_logprobs: np.ndarray  #: (answer tokens, k) float16
    gold: str | None = None  #: the right answer, where the corpus knows one
    supervised: bool = True  #: the answer is learnt; else it only stands in the context of later ones


def pad_teacher(ids: np.ndarray, logprobs: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Top-k ids and log-probabilities `(tokens, k)` with `width` columns; the new columns are unused: id 0, probability 0."""
    missing = ((0, 0), (0, width - ids.shape[1]))
    if not missing[1][1]:
        return ids, logprobs
    return np.pad(ids, missing), np.pad(logprobs, missing, constant_values=-np.inf)


def turn_records(question: Question, answer: Answer, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The further turns of a dialogue for JSON. `texts` are their answers as text."""
    return [
        asdict(asked) | {"answer": text, "truncated": turn.truncated, "tokens": len(turn.ids)}
        for asked, turn, text in zip(question.follow_ups, answer.further, texts, strict=True)
    ]


def dialogue_turns(record: dict[str, Any], chunk: Any, span: slice) -> tuple[StoredTurn, list[StoredTurn]]:
    """The first turn and the further ones of a stored dialogue, from its record and its tokens in an open chunk at `span`.

    The tokens of the answers stand one after another. Those of the further answers are counted in `turn_records`.
    """
    ids, topk_ids, topk_logprobs = (chunk.get_slice(name)[span] for name in ("ids", "topk_ids", "topk_logprobs"))
    first = {"prompt": record["prompt"], "ids": record["prompt_ids"], "supervised": True} | record
    records = [first, *record.get("further", [])]
    later = [turn["tokens"] for turn in records[1:]]
    ends = np.cumsum([len(ids) - sum(later), *later])[:-1]
    parts = (np.split(array, ends) for array in (ids, topk_ids, topk_logprobs))
    turns = [
        StoredTurn(
            one["prompt"], one["ids"], one["answer"], own.tolist(), one["truncated"], likeliest, logprobs, one["gold"],
            one["supervised"],
        )
        for one, own, likeliest, logprobs in zip(records, *parts, strict=True)
    ]  # fmt: skip
    return turns[0], turns[1:]
