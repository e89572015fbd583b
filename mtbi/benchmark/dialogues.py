"""The dialogues of a benchmark, from shards or from a JSONL file such as Speech-IFEval's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtbi import object_store
from mtbi.answers.store import StoredAnswer
from mtbi.answers.task_library import Task
from mtbi.answers.turns import StoredTurn
from mtbi.audio import codec, members
from mtbi.audio.segments import AudioSegment
from mtbi.errors import UserError
from mtbi.llm.surroundings import ALONE, Surroundings
from mtbi.metrics import SCORERS, TEXT_LLM
from mtbi.metrics.instructions import check_names
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance
from mtbi.text_units import nfc

#: Keys of an item in a JSONL file that a dialogue has a field for.
ITEM_KEYS = {
    "audio", "audio_filepath", "audio_path", "instruction", "textual_audio", "seed_transcript", "text",
    "start_s", "duration_s", "id", "label", "metric", "dataset", "task", "speaker", "max_new_tokens", "heldout",
}  # fmt: skip

UNKNOWN_ANSWER_TOKENS = 256  #: the longest answer of a task without a limit of its own


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
    prompt_first: bool  #: the prompt comes before the speech
    transcript: str
    gold: str | None  #: the right answer, where there is one
    form: str = ""  #: regular expression that an answer matches if it follows the instruction; empty = unknown
    scorer: str = "exact"
    max_new_tokens: int = UNKNOWN_ANSWER_TOKENS  #: the longest answer of the task
    answers: dict[str, str] = field(default_factory=dict)  #: by source: `SPEECH`, `TEXT_LLM`, a control
    cut_off: list[str] = field(default_factory=list)  #: sources whose answers did not end before the longest length
    heard: str | None = None  #: the recogniser's transcript, for the cascade
    #: The speech LLM's next-token predictions along the stored answer. All three are 0 where they were not measured.
    token_hits: float = 0.0  #: stored tokens that are the top-1 prediction
    token_divergence: float = (
        0.0  #: nats, summed over the tokens: Kullback-Leibler divergence from the text LLM's probabilities
    )
    tokens: int = 0  #: of the stored answer
    judged: float | None = None  #: mark of an LLM as a judge, between 0 and 1
    recording: str = ""  #: audio file of an item from a JSONL file: several items may share one
    start_s: float | None = None  #: seconds at which the item begins in its audio file; None = it is the whole file
    duration_s: float = 0.0  #: of such a segment; 0 = to the end of the file
    extra: dict[str, Any] = field(default_factory=dict)  #: further keys of such an item, for metrics that read more than texts
    turn: int = 1  #: the number of the prompt in a dialogue of several turns
    history: list[tuple[str, str]] = field(default_factory=list)  #: prompt and stored answer of each earlier turn

    @property
    def cluster(self) -> str:
        """The recording. Answers about one recording are not independent."""
        start = "" if self.start_s is None else f"@{self.start_s}"
        return f"{self.recording}{start}" if self.recording else self.utterance

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Dialogue:
        """A saved dialogue. Fields of other versions of this code are ignored."""
        values = {name: record[name] for name in (known.name for known in fields(cls)) if name in record}
        return cls(**values | {"history": [tuple(turn) for turn in values.get("history", ())]})


@dataclass
class Turn:
    """A dialogue with its speech."""

    dialogue: Dialogue
    waveform: np.ndarray  #: (samples,) float32 at 16 kHz
    other: np.ndarray  #: the waveform of another utterance of about the same length
    stored: StoredAnswer | StoredTurn | None  #: the text LLM's tokens and probabilities, for dialogues from shards
    controlled: bool = False  #: asked under the controls too
    heard: Surroundings = ALONE  #: the text around the sound, as the speech LLM gets it
    read: Surroundings = ALONE  #: the text around the transcript, as the text LLM reads it
    history_ids: list[int] = field(default_factory=list)  #: from the first answer to the prompt of a later turn


def choose_utterances(shards: Shards, dialogues: int) -> list[int]:
    """Indices of random utterances with about `dialogues` dialogues in all (0 = every utterance), sorted by length."""
    table = shards.index.utterances
    order = np.random.default_rng(0).permutation(len(table))
    order = order[table["samples"][order] > 0]  # text alone is not measured
    if dialogues:
        held = np.cumsum(table["branches"][order].astype(np.int64))
        order = order[: int(np.searchsorted(held, dialogues)) + 1]
    return [int(number) for number in order[np.argsort(table["samples"][order], kind="stable")]]


def from_shards(
    group: str, shards: Shards, tasks: dict[str, Task], dialogues: int, max_new_tokens: int = UNKNOWN_ANSWER_TOKENS
) -> Iterator[Turn]:
    """About `dialogues` stored dialogues (0 = all). Raises UserError for shards of encoder output.

    `max_new_tokens` is the longest answer of tasks without a limit of their own.
    """
    if shards.index.encoded:
        raise UserError(f"{group}: these shards hold an encoder's output; measure on the shards with sound")
    numbers = choose_utterances(shards, dialogues)
    if not numbers:
        raise UserError(f"{group}: these shards hold text alone; measure on shards with audio")
    other = shards[numbers[-1]].waveform
    for number in numbers:
        sample = shards[number]
        for stored in sample.behaviours:
            dialogue = stored_dialogue(group, sample, stored, tasks.get(stored.task), shards.index.prompt_first)
            if not (stored.task in tasks and tasks[stored.task].max_new_tokens):
                dialogue.max_new_tokens = max_new_tokens
            turn = Turn(dialogue, sample.waveform, other, stored, heard=sample.heard, read=sample.read)
            yield turn
            for number, later in enumerate(stored.further):
                yield (turn := next_turn(turn, stored.turns[number], later))
        other = sample.waveform


def stored_dialogue(
    group: str, sample: StoredUtterance, stored: StoredAnswer, task: Task | None, prompt_first: bool
) -> Dialogue:
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
    dialogue.cut_off = [TEXT_LLM] if stored.truncated else []
    if task:
        dialogue.form, dialogue.scorer, dialogue.max_new_tokens = task.form, task.scorer, task.max_new_tokens
    return dialogue


def next_turn(turn: Turn, asked: StoredTurn, later: StoredTurn) -> Turn:
    """The turn after `turn`, which is stored as `asked`. The stored answers stand before it, whatever the speech LLM said.

    So a turn is measured on its own: under each condition only what stands in the place of the speech differs, and a mistake
    in an earlier answer does not count twice.
    """
    dialogue = replace(
        turn.dialogue,
        turn=turn.dialogue.turn + 1,
        history=[*turn.dialogue.history, (asked.prompt, asked.answer)],
        prompt=later.prompt,
        gold=later.gold,
        form="",  # the task's is that of its first answer
        answers={TEXT_LLM: later.answer},
        cut_off=[TEXT_LLM] if later.truncated else [],
    )
    return replace(turn, dialogue=dialogue, stored=later, history_ids=[*turn.history_ids, *asked.answer_ids, *later.prompt_ids])


def with_prompt_moved(turn: Turn) -> Turn:
    """The same question with the prompt on the other side of the speech, without any answer yet."""
    dialogue = turn.dialogue
    return replace(
        turn, dialogue=replace(dialogue, prompt_first=not dialogue.prompt_first, answers={}, cut_off=[]), stored=None
    )


def read_items(group: str, path: Path, prompt_first: bool, max_new_tokens: int = UNKNOWN_ANSWER_TOKENS) -> list[Dialogue]:
    """The items of a JSONL file in the format of Speech-IFEval (Lu et al. 2025).

    An item needs `audio` (or `audio_filepath`, `audio_path`), `instruction` and `textual_audio`. An empty `instruction` means
    that the speech itself is the question. `id`, `label`, `metric`, `dataset`, `task`, `heldout` and `max_new_tokens` are
    optional, and further keys become `Dialogue.extra`. `start_s` and `duration_s` choose a segment of the recording.
    `instruction_id_list` and `kwargs` are instructions that `mtbi.metrics.instructions` checks.
    A relative audio path starts at the file's folder, or at a folder `audios` in it or
    beside it. `metric` is the name of a scorer, where `wer` means `wer_english`. Any other name means exact match with the
    label, or similarity where there is none. Raises UserError with the line number for unusable items.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if not lines:
        raise UserError(f"{path}: empty; each line is a JSON object with `audio` and `instruction`")
    items = [parse_item(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    return [
        item_dialogue(group, path, number, item, prompt_first, max_new_tokens) for number, item in enumerate(items, start=1)
    ]


def from_items(items: list[Dialogue]) -> Iterator[Turn]:
    """The items of `read_items` with their speech. Raises UserError for a recording that cannot be read."""
    other: np.ndarray | None = None
    for item in items:
        try:
            segment = None if item.start_s is None else AudioSegment(item.start_s, item.duration_s)
            waveform = codec.read(Path(item.recording), segment)
        except UserError as error:
            raise UserError(f"{item.group}, item {item.utterance}: {item.recording}: {error}") from error
        yield Turn(item, waveform, waveform[::-1].copy() if other is None else other, None)
        other = waveform


def parse_item(line: str, where: str) -> dict[str, Any]:
    """A line of a JSONL file. `audio` and `instruction` are in the result. Raises UserError for an unusable item."""
    try:
        item = json.loads(line)
        audio = item.get("audio") or item.get("audio_filepath") or item["audio_path"]
        item |= {"audio": str(audio), "instruction": str(item["instruction"])}
        if item.get("start_s") is not None:
            item |= {"start_s": float(item["start_s"]), "duration_s": float(item.get("duration_s") or 0)}
        if item.get("max_new_tokens") is not None:
            item["max_new_tokens"] = int(item["max_new_tokens"])
        names, arguments = item.get("instruction_id_list") or [], item.get("kwargs") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = "an item is a JSON object with `audio` and `instruction`; `max_new_tokens` and `start_s` are numbers"
        raise UserError(f"{where}: {message} ({error!r})") from error
    try:
        check_names(names, arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return item


def item_dialogue(
    group: str, path: Path, number: int, item: dict[str, Any], prompt_first: bool, max_new_tokens: int
) -> Dialogue:
    """The dialogue of an item in line `number` of a JSONL file. Raises UserError where its recording is missing."""
    metric = str(item.get("metric"))
    other_scorer = "similarity" if item.get("label") is None else "exact"
    return Dialogue(
        group=group,
        utterance=str(item.get("id", number)),
        recording=str(locate(path.parent, item["audio"], f"{path}, line {number}")),
        speaker=str(item.get("speaker", "")),
        task=str(item.get("dataset") or item.get("task") or path.stem),
        wording=0,
        prompt=nfc(item["instruction"]),
        heldout=bool(item.get("heldout", True)),
        prompt_first=prompt_first,
        transcript=nfc(str(item.get("textual_audio") or item.get("seed_transcript") or item.get("text") or "")),
        gold=None if item.get("label") is None else nfc(str(item["label"])),
        scorer="wer_english" if metric == "wer" else metric if metric in SCORERS else other_scorer,
        max_new_tokens=max_new_tokens if item.get("max_new_tokens") is None else item["max_new_tokens"],
        start_s=item.get("start_s"),
        duration_s=item["duration_s"] if item.get("start_s") is not None else 0.0,
        extra={key: value for key, value in item.items() if key not in ITEM_KEYS},
    )


def locate(folder: Path, audio: str, where: str) -> Path:
    """The file of a recording. Raises UserError where it is missing, and for an address."""
    if object_store.is_remote(audio):
        raise UserError(f"{where}: the recording {audio} is on object storage; download it, and give the path of the file")
    paths = [folder / audio, folder / "audios" / audio, folder.parent / "audios" / audio]
    existing = next((path for path in paths if Path(members.file_of(path)).is_file()), None)
    if existing is None:
        raise UserError(f"{where}: no recording {audio!r} in {', '.join(str(path.parent) for path in paths)}")
    return existing
