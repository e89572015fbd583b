"""Items that ask for a form of the answer which a program can check, about the recordings of any manifest.

They are in the format of Speech-IFEval (Lu et al. 2025, arXiv 2505.19037): a task about the speech, and an instruction about
the form of the answer. `mtbi.metrics.instructions` checks the answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from mtbi import files, text_units
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.metrics import normalise

TASKS = (
    "Summarise what is said.",
    "Say in your own words what is said.",
    "What is this about?",
    "What could be said next?",
)


class Instruction(NamedTuple):
    """An instruction about the form of an answer. Each argument is drawn from its values and fills the text."""

    text: str
    name: str  #: of the check (`mtbi.metrics.instructions.CHECKS`)
    arguments: dict[str, Sequence[Any]] = {}  # noqa: RUF012  # nothing changes it


INSTRUCTIONS = (
    Instruction("Write your whole answer in capital letters.", "change_case:english_capital"),
    Instruction("Write your whole answer in lower case.", "change_case:english_lowercase"),
    Instruction("Answer with one JSON document.", "detectable_format:json_format"),
    Instruction("Answer with exactly {num_bullets} bullet points, each on a line that begins with '- '.",
                "detectable_format:number_bullet_lists", {"num_bullets": (2, 3, 4)}),
    Instruction("Begin with a title in double angular brackets, such as <<A title>>.", "detectable_format:title"),
    Instruction("Put your whole answer in double quotation marks.", "startend:quotation"),
    Instruction("Begin your answer with the words: {start_phrase}", "startend:start_checker",
                {"start_phrase": ("I would say", "In short", "As I understand it")}),
    Instruction("End your answer with the words: {end_phrase}", "startend:end_checker",
                {"end_phrase": ("That is all.", "I hope this helps.", "Thank you for listening.")}),
    Instruction("Use {relation} {num_words} words.", "length_constraints:number_words",
                {"relation": ("at most", "less than"), "num_words": (6, 10, 15)}),
    Instruction("Use {relation} {num_words} words.", "length_constraints:number_words",
                {"relation": ("at least", "more than"), "num_words": (15, 25)}),
    Instruction("Write {relation} {num_sentences} sentences.", "length_constraints:number_sentences",
                {"relation": ("exactly", "at least"), "num_sentences": (2, 3)}),
    Instruction("Use no comma.", "punctuation:no_comma"),
    Instruction("Use the word \"{word}\" in your answer.", "keywords:existence"),
    Instruction("Do not use the word \"{word}\" in your answer.", "keywords:forbidden_words"),
)  # fmt: skip


def make_items(utterances: Sequence[Utterance], folder: Path, seed: int = 1) -> Iterator[dict[str, Any]]:
    """One item for each utterance with a recording. All instructions are used equally often.

    `folder` is the one that relative audio paths start from. The audio paths of the items are absolute.
    """
    draw = Random(seed)
    spoken = [utterance for utterance in utterances if utterance.audio]
    for number, utterance in enumerate(draw.sample(spoken, len(spoken))):
        instruction = INSTRUCTIONS[number % len(INSTRUCTIONS)]
        arguments: dict[str, Any] = {key: draw.choice(values) for key, values in instruction.arguments.items()}
        words = {"word": draw.choice(longest_words(utterance.text))}
        text = instruction.text.format(**arguments, **words)
        if instruction.name.startswith("keywords:"):
            arguments = {instruction.name.removeprefix("keywords:").replace("existence", "keywords"): [words["word"]]}
        yield {
            "id": utterance.id, "audio": os.path.abspath(folder / utterance.audio), "speaker": utterance.speaker,
            **({} if utterance.start_s is None else {"start_s": utterance.start_s, "duration_s": utterance.duration_s}),
            "textual_audio": utterance.text, "instruction": f"{draw.choice(TASKS)} {text}",
            "dataset": f"instructions/{instruction.name.partition(':')[2]}", "metric": "similarity",
            "instruction_id_list": [instruction.name], "kwargs": [arguments],
        }  # fmt: skip


def longest_words(text: str, count: int = 3) -> list[str]:
    """The longest words of a transcript, at least one. They are likely to be about something."""
    words = list(dict.fromkeys(filter(None, map(normalise, text_units.units(text)))))
    return sorted(words, key=len, reverse=True)[:count] or ["speech"]


def write_items(utterances: Sequence[Utterance], folder: Path, out: Path, seed: int = 1) -> int:
    """Write the items as JSON lines. Returns their number. Raises UserError where no utterance has a recording."""
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in make_items(utterances, folder, seed)]
    if not lines:
        raise UserError("no utterance of the manifest has a recording, so there is nothing to ask about")
    files.write_text(out, "".join(lines))
    return len(lines)
