"""Dialogues to measure a speech LLM with, from shards or from a JSONL file such as Speech-IFEval's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtbi.answers.behaviour import Behaviour
from mtbi.answers.task_library import Task
from mtbi.audio import codec
from mtbi.errors import UserError
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance
from mtbi.text_units import nfc

SPEECH, TEXT_LLM = "speech LLM", "text LLM"


@dataclass
class Dialogue:
    """One prompt about one utterance and every answer to it."""

    group: str  #: of speakers, for example `test_known`
    utterance: str
    speaker: str
    task: str
    wording: int
    prompt: str
    heldout: bool  #: the wording was kept out of training
    prompt_first: bool  #: the prompt stands before the speech
    transcript: str
    gold: str | None  #: the right answer, where there is one
    form: str = ""  #: regular expression of an answer that does as asked; empty = unknown
    scorer: str = "exact"
    answers: dict[str, str] = field(default_factory=dict)  #: by who answered, under which condition
    #: Of the stored answer's tokens, given the ones before: how many are the speech LLM's likeliest, the sum of the divergences
    #: from the text LLM's probabilities (nats), and their number; zeros where not measured.
    token_hits: float = 0.0
    token_divergence: float = 0.0
    tokens: int = 0
    judged: float | None = None  #: by another LLM, between 0 and 1
    recording: str = ""  #: file of an item without an utterance of its own: several questions may be about one

    @property
    def cluster(self) -> str:
        """What dialogues share whose answers are not independent: the recording."""
        return self.recording or self.utterance

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Dialogue:
        """A saved dialogue; fields of other versions of this code are left out."""
        return cls(**{name: record[name] for name in (one.name for one in fields(cls)) if name in record})


@dataclass
class Turn:
    """A dialogue with its speech."""

    dialogue: Dialogue
    waveform: np.ndarray  #: (samples,) float32 at 16 kHz
    other: np.ndarray  #: of another utterance of about the same length
    stored: Behaviour | None  #: the text LLM's tokens and probabilities, where shards hold them


def choose(shards: Shards, dialogues: int) -> list[int]:
    """Utterances drawn at random that together hold about that many dialogues (0 = all), sorted by length to pad little."""
    table = shards.index.utterances
    order = np.random.default_rng(0).permutation(len(table))
    order = order[table["samples"][order] > 0]  # text alone is not measured
    if dialogues:
        held = np.cumsum(table["branches"][order].astype(np.int64))
        order = order[: int(np.searchsorted(held, dialogues)) + 1]
    return [int(number) for number in order[np.argsort(table["samples"][order], kind="stable")]]


def from_shards(group: str, shards: Shards, tasks: dict[str, Task], dialogues: int) -> Iterator[Turn]:
    """The stored dialogues of about `dialogues` / (dialogues an utterance) utterances."""
    if shards.index.encoded:
        raise UserError(f"{group}: these shards hold an encoder's output; measure on the shards with sound")
    numbers = choose(shards, dialogues)
    if not numbers:
        raise UserError(f"{group}: these shards hold text alone; measure on shards with sound")
    other = shards[numbers[-1]].waveform
    for number in numbers:
        sample = shards[number]
        for stored in sample.behaviours:
            dialogue = stored_dialogue(group, sample, stored, tasks.get(stored.task), shards.index.prompt_first)
            yield Turn(dialogue, sample.waveform, other, stored)
        other = sample.waveform


def stored_dialogue(group: str, sample: StoredUtterance, stored: Behaviour, task: Task | None, prompt_first: bool) -> Dialogue:
    """A dialogue of a shard with the text LLM's answer."""
    dialogue = Dialogue(
        group,
        sample.id,
        sample.speaker,
        stored.task,
        stored.wording,
        stored.prompt,
        stored.heldout,
        prompt_first,
        sample.text,
        stored.gold,
    )
    dialogue.answers[TEXT_LLM] = stored.answer
    if task:
        dialogue.form, dialogue.scorer = task.form, task.scorer
    return dialogue


def turned(turn: Turn) -> Turn:
    """The same question with the prompt on the other side of the speech; the text LLM has not answered that one yet."""
    dialogue = turn.dialogue
    return replace(turn, dialogue=replace(dialogue, prompt_first=not dialogue.prompt_first, answers={}), stored=None)


def from_jsonl(group: str, path: Path, prompt_first: bool = False) -> Iterator[Turn]:
    """Items with `audio` (or `audio_filepath`, `audio_path`), `instruction` and `textual_audio`.

    `id`, `label`, `metric` and `dataset` may be there: this is the form of Speech-IFEval (Lu et al. 2025). Relative audio
    paths start at the file's folder, or at `audios` in it or beside it. A `metric` other than `wer` and `cer` is exact match.
    Raises UserError, with the line, for unusable items.
    """
    other: np.ndarray | None = None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if not lines:
        raise UserError(f"{path}: empty; each line is a JSON object with `audio` and `instruction`")
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            item = json.loads(line)
            sound, prompt = item.get("audio") or item.get("audio_filepath") or item["audio_path"], item["instruction"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: an item is a JSON object with `audio` and `instruction` ({error!r})") from error
        recording = locate(path.parent, str(sound), where)
        try:
            waveform = codec.read(recording)
        except UserError as error:
            raise UserError(f"{where}: {recording}: {error}") from error
        task = str(item.get("dataset") or item.get("task") or path.stem)
        dialogue = Dialogue(
            group=group,
            utterance=str(item.get("id", number)),
            recording=str(recording),
            speaker=str(item.get("speaker", "")),
            task=task,
            wording=0,
            prompt=nfc(str(prompt)),
            heldout=True,
            prompt_first=prompt_first,
            transcript=nfc(str(item.get("textual_audio") or item.get("seed_transcript") or item.get("text") or "")),
            gold=None if item.get("label") is None else nfc(str(item["label"])),
            scorer={"wer": "wer_english", "cer": "cer"}.get(str(item.get("metric")), "exact"),
        )
        yield Turn(dialogue, waveform, waveform[::-1].copy() if other is None else other, None)
        other = waveform


def locate(folder: Path, sound: str, where: str) -> Path:
    """The file of a recording. Raises UserError where there is none."""
    places = [folder / sound, folder / "audios" / sound, folder.parent / "audios" / sound]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{where}: no recording {sound!r} in {', '.join(str(place.parent) for place in places)}")
    return found
