"""The answers of an evaluation to one task, as segments of talkers that `mtbi score` reads.

An answer is a text with separators (`mtbi.scenes.serialised`), as the tasks `all_talkers` and `all_turns` ask for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtbi.benchmark.dialogues import Dialogue
from mtbi.errors import UserError
from mtbi.metrics import SPEECH
from mtbi.scenes.segments import SpeakerSegment
from mtbi.scenes.serialised import SEPARATOR, deserialise

#: No measure of `mtbi score` takes more streams than this, so further parts of an answer belong to the last stream.
MOST_STREAMS = 10


@dataclass(frozen=True)
class WantedAnswers:
    """Which answers are taken, and how they are cut."""

    task: str
    separator: str = SEPARATOR
    source: str = SPEECH  #: who answered: a key of the dialogues' answers
    group: str = ""  #: the name of the shards; empty where there is only one
    one_stream: bool = False  #: all parts are of one talker


@dataclass
class SerialisedAnswers:
    """Segments without times: the parts of one answer for each utterance, which is the session."""

    segments: list[SpeakerSegment] = field(default_factory=list)
    utterances: int = 0
    empty: int = 0  #: answers without words
    further: int = 0  #: answers left out: those to an utterance in another wording, or with the prompt elsewhere


def read_answers(path: Path, wanted: WantedAnswers) -> SerialisedAnswers:
    """The answers in `evaluation/CHECKPOINT/answers.jsonl` of a run, those to an utterance by the first wording in the file.

    Part number n of an answer is a segment of the speaker `talker-n`. An answer without words is one segment without words, so
    that all words of the reference count as deleted. Raises UserError where the file is not of this kind, and where it has no
    such answers or those of several groups.
    """
    dialogues = _dialogues(path)
    of_task = [dialogue for dialogue in dialogues if dialogue.task == wanted.task]
    if not of_task:
        known = ", ".join(sorted({dialogue.task for dialogue in dialogues}))
        raise UserError(f"{path}: no answers to a task {wanted.task!r}; it has answers to {known or 'none'}")
    groups = sorted({dialogue.group for dialogue in of_task})
    if wanted.group not in groups and (wanted.group or len(groups) > 1):
        raise UserError(f"{path}: choose one of its groups of utterances with --group: {', '.join(groups)}")
    chosen = [dialogue for dialogue in of_task if dialogue.group == (wanted.group or groups[0])]
    answered = [dialogue for dialogue in chosen if wanted.source in dialogue.answers]
    if not answered:
        sources = ", ".join(sorted({source for dialogue in chosen for source in dialogue.answers}))
        raise UserError(f"{path}: no answers of {wanted.source!r} to {wanted.task}; there are those of {sources or 'nobody'}")
    found = SerialisedAnswers()
    seen: set[str] = set()
    for dialogue in answered:
        if dialogue.utterance in seen:
            found.further += 1
            continue
        seen.add(dialogue.utterance)
        parts = deserialise(dialogue.answers[wanted.source], wanted.separator)
        found.empty += not parts
        found.segments += _segments(dialogue.utterance, parts, wanted.one_stream)
    found.utterances = len(seen)
    return found


def _segments(session: str, parts: Sequence[str], one_stream: bool) -> list[SpeakerSegment]:
    """The segments of one answer, at least one."""
    names = [f"talker-{1 if one_stream else min(number, MOST_STREAMS)}" for number in range(1, len(parts) + 1)]
    return [
        SpeakerSegment(session, name, None, None, part) for name, part in zip(names or ["talker-1"], parts or [""], strict=True)
    ]


def _dialogues(path: Path) -> list[Dialogue]:
    """The dialogues of the file. Raises UserError, with the line, for what is not one, and OSError if it cannot be read."""
    dialogues = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            dialogues.append(Dialogue.from_record(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: not a line of an evaluation's answers.jsonl ({error})") from error
    return dialogues
