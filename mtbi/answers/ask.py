"""`mtbi behave`: the text LLM answers every question that has no answer yet. Given answers come from the corpus instead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mtbi import files, text_units
from mtbi.answers import filters, store
from mtbi.answers.questions import Question, chosen_tasks, draw_questions, fields_in
from mtbi.answers.teacher import Answer, Teacher
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.llm.decode import Prompts
from mtbi.llm.surroundings import Surroundings
from mtbi.metrics.repetition import is_repetitive
from mtbi.recipe import BehaviourConfig

CHUNK_BATCHES = 4  # batches that are written together: about the most that a kill can cost
STOP_EVERY = 16  # tokens after which an answer is tested for repetition


def ask_unanswered(
    utterances: Iterable[Utterance],
    config: BehaviourConfig,
    teacher: Teacher | None,
    chat: ChatFormat,
    out: Path | str,
    seed: int = 1,
    fields: Collection[str] | None = None,
) -> int:
    """Ask every question that has no answer in the folder `out`. Returns the number of new answers.

    `fields` are the names in wordings that an utterance's values replace; None = those that some of these utterances have.

    Raises UserError for unknown tasks, tasks without wordings of the wanted kind, a folder with answers made in another
    way or about other transcripts, and a folder that another process is filling.
    """
    out, tasks, utterances = Path(out), chosen_tasks(config), list(utterances)
    if fields is None:
        fields = fields_in(tasks, config, utterances)
    with store.locked(out):
        store.open_folder(out, config, chat)
        known = store.answered(out)
        unanswered = []
        for utterance in utterances:
            for question in draw_questions(utterance, tasks, config, chat, seed, fields):
                if question.key not in known:
                    unanswered.append(question)
                elif known[question.key] not in ("", store.digest(question.read)):
                    raise store.other_transcript(out, question.utterance)
        given = [question for question in unanswered if question.given is not None]
        if not known:
            check_gold(unanswered, config)
        pairs: Iterator[tuple[Question, Answer]] = ((question, given_answer(question, chat)) for question in given)
        written = write(pairs, len(given), config, chat, out)
        if teacher and config.answers == "llm":
            asked = [question for question in unanswered if question.source == "llm"]
            written += write(ask(asked, config, teacher, chat), len(asked), config, chat, out)
        files.write_text(out / store.DONE_FILE, store.digest_of(utterances))
        return written


def check_gold(questions: Iterable[Question], config: BehaviourConfig) -> None:
    """Raises UserError where the manifest knows a right answer to none of the questions that take their answers from it."""
    gold = [question for question in questions if question.source == "gold"]
    if not gold or any(question.given is not None for question in gold):
        return
    if config.answers == "gold":
        raise UserError("behaviour.answers=gold: the manifest knows no right answer to any of these tasks (`answers`)")
    tasks = ", ".join(sorted({question.task for question in gold}))
    raise UserError(f"{tasks}: the answers are `gold`, but the manifest knows no right answer to these tasks (`answers`)")


def given_answer(question: Question, chat: ChatFormat) -> Answer:
    """The answer that the corpus gives. No other token gets a probability: it has no likeliest tokens."""
    ids = [*chat.answer_ids(question.given or ""), chat.end_id]
    empty = np.zeros((len(ids), 0))
    return Answer(ids, False, empty.astype(np.int32), empty.astype(np.float16))


def by_utterance(questions: Iterable[Question]) -> list[list[Question]]:
    """The questions about each utterance. Long transcripts come first, so that a lack of memory shows at once."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.utterance].append(question)
    return sorted(groups.values(), key=lambda group: -text_units.count(group[0].transcript))


def prompts_about(group: list[Question], config: BehaviourConfig, chat: ChatFormat) -> Prompts:
    """The LLM's prompts about one utterance. They share their beginning: with the prompt last, all but the prompt itself."""
    around = Surroundings.of(chat, *group[0].around)
    transcript = [*around.before, *around.transcript_ids(chat, group[0].transcript), *around.after]
    shared, own = ([], transcript) if config.prompt_first else (transcript, [])
    return Prompts(
        torch.tensor([*chat.prefix_ids, *shared], dtype=torch.long),
        [[*question.lead_ids, *own, *question.prompt_ids] for question in group],
        [question.max_new_tokens for question in group],
    )


def ask(
    questions: Iterable[Question], config: BehaviourConfig, teacher: Teacher, chat: ChatFormat
) -> Iterator[tuple[Question, Answer]]:
    """The teacher's answer to each question, as soon as it is complete.

    An answer that repeats itself is cut off where the filter `repetitive` would leave it out anyway.
    """
    groups = by_utterance(questions)

    def repeats(ids: list[int]) -> bool:
        return len(ids) % STOP_EVERY == 0 and is_repetitive(chat.decode(ids))

    prompts = (prompts_about(group, config, chat) for group in groups)
    for (number, index), answer in teacher.answer(prompts, repeats if "repetitive" in config.filter else None):
        yield groups[number][index], answer


def write(pairs: Iterable[tuple[Question, Answer]], total: int, config: BehaviourConfig, chat: ChatFormat, out: Path) -> int:
    """Write answers chunk by chunk, each with the reason for which it is left out, if there is one. Returns their number."""
    number, written = store.next_chunk(out), 0
    with tqdm(total=total, desc=f"{out.parent.name}: answers", unit="answer", disable=None if total else True) as bar:
        counted = iter(pairs)
        while waiting := list(islice(counted, CHUNK_BATCHES * config.batch_size)):
            texts = [chat.decode(answer.ids) for _, answer in waiting]
            reasons = [left_out(*pair, text, config) for pair, text in zip(waiting, texts, strict=True)]
            store.write_chunk(out, number, waiting, texts, reasons)
            number, written = number + 1, written + len(waiting)
            bar.update(len(waiting))
    return written


def left_out(question: Question, answer: Answer, text: str, config: BehaviourConfig) -> str:
    """The rule of `behaviour.filter` that leaves an answer of the LLM out of training; empty where none does."""
    if question.given is not None:
        return ""
    names = [name for name in config.filter if name not in question.unfiltered]
    return filters.reason(filters.CheckedAnswer(question.transcript, text, answer.truncated), names)
