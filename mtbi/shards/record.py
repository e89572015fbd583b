"""One utterance as a record of an MDS shard: its sound, its word times, and the answers about its transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mtbi.answers.store import StoredAnswer
from mtbi.answers.turns import StoredTurn, pad_teacher
from mtbi.audio import codec
from mtbi.corpus.manifest import Utterance
from mtbi.llm.chat_format import ChatFormat
from mtbi.llm.surroundings import ALONE, Surroundings

#: MDS columns of a record and their encodings.
COLUMNS = {"id": "str", "text": "str", "speaker": "str", "audio": "bytes", "answers": "json", "tensors": "bytes"}
#: Fields of an answer that are stored as JSON. Its token ids and probabilities are stored as tensors.
TEXT_FIELDS = ("task", "wording", "heldout", "prompt", "answer", "truncated", "gold")
#: The same of the further turns of a dialogue. An answer has them under `further`, and `supervised` where it is not.
TURN_FIELDS = ("prompt", "answer", "truncated", "gold", "supervised")


@dataclass
class StoredUtterance:
    """One utterance as stored."""

    id: str
    text: str
    speaker: str
    waveform: np.ndarray  #: (samples,) float32 at 16 kHz; no samples where features are stored, or text alone
    word_times: np.ndarray  #: (words, 2) samples; empty where the utterance is not aligned
    word_ids: list[np.ndarray]  #: LLM token ids of each word; without spaces, of the shortest stretch that is whole tokens
    behaviours: list[StoredAnswer]
    features: np.ndarray | None = None  #: (frames, width) float16, the encoder's output, where it is stored
    untimed_ids: np.ndarray | None = None  #: LLM token ids of the transcript, where it has no word times
    heard: Surroundings = ALONE  #: the text around the sound, as the speech LLM gets it
    read: Surroundings = ALONE  #: the text around the transcript, as the text LLM read it

    @property
    def spoken_ids(self) -> np.ndarray:
        """`(tokens,)` the LLM token ids of the transcript; none where the shard does not hold them."""
        if self.word_ids:
            return np.concatenate(self.word_ids)
        return np.zeros(0, np.int32) if self.untimed_ids is None else self.untimed_ids


def pack(
    utterance: Utterance,
    behaviours: list[StoredAnswer],
    wave: np.ndarray,
    chat: ChatFormat,
    kind: str,
    heard: Surroundings = ALONE,
    read: Surroundings = ALONE,
) -> dict[str, Any]:
    """The columns of one utterance. `wave` is `(samples,)` at 16 kHz, `kind` the audio format.

    `heard` and `read` are the texts around it, as the two LLMs get them. An utterance without audio has its whole transcript
    as one word, and the speech LLM gets it as the text LLM does.
    """
    heard = heard if len(wave) else read
    word_ids, seconds = chat.timed_ids(utterance.words or [], heard.continues(chat))
    if not len(wave):
        word_ids, seconds = [heard.transcript_ids(chat, utterance.text)], [(0.0, 0.0)]
    word_times = np.round(np.array(seconds, np.float64).reshape(-1, 2) * codec.SAMPLE_RATE)
    topk_ids, topk_logprobs = same_width(behaviours)
    tensors = {
        "word_times": np.clip(word_times, 0, len(wave)).astype(np.uint32),
        **joined("word", word_ids),
        # The names of these tensors are those of the first version of the format.
        **joined("lead", [behaviour.before_speech_ids for behaviour in behaviours]),
        **joined("prompt", [behaviour.prompt_ids for behaviour in behaviours]),
        **joined("answer", [behaviour.answer_ids for behaviour in behaviours]),
        "topk_ids": topk_ids,
        "topk_logprobs": topk_logprobs,
    }
    if further := [turn for behaviour in behaviours for turn in behaviour.further]:
        tensors |= joined("turn_prompt", [turn.prompt_ids for turn in further])
        tensors |= joined("turn_answer", [turn.answer_ids for turn in further])
        tensors["turn_topk_ids"], tensors["turn_topk_logprobs"] = same_width(further)
    if not word_ids:
        tensors["untimed_ids"] = np.array(heard.transcript_ids(chat, utterance.text), np.int32)
    for name, around in (("heard", heard), ("read", read)):
        if around:
            tensors |= joined(name, [around.before, around.after])
    return {
        "id": utterance.id,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "audio": codec.encode(wave, kind) if len(wave) else b"",
        "answers": [texts_of(behaviour) for behaviour in behaviours],
        "tensors": save_tensors(tensors),
    }


def texts_of(behaviour: StoredAnswer) -> dict[str, Any]:
    """What is stored of an answer as JSON."""
    texts = {name: getattr(behaviour, name) for name in TEXT_FIELDS}
    if not behaviour.supervised:
        texts["supervised"] = False
    if behaviour.further:
        texts["further"] = [{name: getattr(turn, name) for name in TURN_FIELDS} for turn in behaviour.further]
    return texts


def joined(name: str, lists: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Lists of token ids as two tensors: where each list ends, and all ids one after another."""
    ends = np.cumsum([len(ids) for ids in lists], dtype=np.int64)
    return {f"{name}_ends": ends, f"{name}_ids": np.array([i for ids in lists for i in ids], np.int32)}


def split(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Cut `values` at `ends`. The last end is the length of `values`."""
    return np.split(values, ends[:-1]) if len(ends) else []


def same_width(behaviours: Sequence[StoredTurn]) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's top-k ids and log-probabilities of all answers, each `(answer tokens, k)` with the largest k of them."""
    width = max(behaviour.topk_ids.shape[1] for behaviour in behaviours)
    padded = [pad_teacher(behaviour.topk_ids, behaviour.topk_logprobs, width) for behaviour in behaviours]
    ids, logprobs = (np.concatenate(column) for column in zip(*padded, strict=True))
    return ids.astype(np.int32), logprobs.astype(np.float16)


def has_teacher(behaviour: StoredTurn) -> bool:
    """Whether the text LLM's probabilities are stored with an answer. A gold answer has none."""
    return bool((behaviour.topk_logprobs > -np.inf).any()) or not behaviour.answer_ids


def unpack(columns: dict[str, Any]) -> StoredUtterance:
    """The inverse of `pack`. Raises what numpy, safetensors and the audio decoder raise for damaged columns."""
    tensors = load_tensors(columns["tensors"])
    parts = zip(
        columns["answers"],
        split(tensors["lead_ids"], tensors["lead_ends"]),
        split(tensors["prompt_ids"], tensors["prompt_ends"]),
        split(tensors["answer_ids"], tensors["answer_ends"]),
        split(tensors["topk_ids"], tensors["answer_ends"]),
        split(tensors["topk_logprobs"], tensors["answer_ends"]),
        strict=True,
    )
    later = stored_turns(columns["answers"], tensors)
    behaviours = [
        StoredAnswer(
            **{name: texts[name] for name in TEXT_FIELDS},
            supervised=texts.get("supervised", True),
            further=[next(later) for _ in texts.get("further", ())],
            before_speech_ids=before.tolist(),
            prompt_ids=after.tolist(),
            answer_ids=answer.tolist(),
            topk_ids=topk_ids,
            topk_logprobs=topk_logprobs,
        )
        for texts, before, after, answer, topk_ids, topk_logprobs in parts
    ]
    features, audio = tensors.get("features"), columns["audio"]
    return StoredUtterance(
        columns["id"],
        columns["text"],
        columns["speaker"],
        codec.decode(audio) if audio and features is None else np.zeros(0, np.float32),
        tensors["word_times"],
        split(tensors["word_ids"], tensors["word_ends"]),
        behaviours,
        features,
        tensors.get("untimed_ids"),
        **{name: surroundings(name, tensors) for name in ("heard", "read")},
    )


def stored_turns(answers: list[dict[str, Any]], tensors: dict[str, np.ndarray]) -> Iterator[StoredTurn]:
    """The further turns of all answers of an utterance, in order."""
    texts = [turn for answer in answers for turn in answer.get("further", ())]
    if not texts:
        return
    ends = tensors["turn_answer_ends"]
    prompts = split(tensors["turn_prompt_ids"], tensors["turn_prompt_ends"])
    parts = [split(tensors[f"turn_{name}"], ends) for name in ("answer_ids", "topk_ids", "topk_logprobs")]
    for text, prompt, ids, topk_ids, topk_logprobs in zip(texts, prompts, *parts, strict=True):
        yield StoredTurn(
            **text, prompt_ids=prompt.tolist(), answer_ids=ids.tolist(), topk_ids=topk_ids, topk_logprobs=topk_logprobs
        )


def surroundings(name: str, tensors: dict[str, np.ndarray]) -> Surroundings:
    """The stored text around an utterance; none where it stands alone."""
    if f"{name}_ids" not in tensors:
        return ALONE
    before, after = split(tensors[f"{name}_ids"], tensors[f"{name}_ends"])
    return Surroundings(before.tolist(), after.tolist())
