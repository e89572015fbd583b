"""`mtbi behave`: the text LLM answers every question that has no answer yet. Given answers come from the corpus instead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
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
        given = [question for question in unanswered if question.is_given]
        if not known:
            check_gold(unanswered, config)
        pairs: Iterator[tuple[Question, Answer]] = ((question, given_answer(question, chat)) for question in given)
        written = write(pairs, len(given), config, chat, out)
        if teacher and config.answers == "llm":
            asked = [question for question in unanswered if question.source != "gold" and not question.is_given]
            written += write(ask_dialogues(asked, config, teacher, chat), len(asked), config, chat, out)
        files.write_text(out / store.DONE_FILE, store.digest_of(utterances))
        return written


def check_gold(questions: Iterable[Question], config: BehaviourConfig) -> None:
    """Raises UserError where the manifest knows a right answer to none of the questions that take their answers from it."""
    gold = [question for question in questions if question.source == "gold"]
    if not gold or any(question.is_given for question in gold):
        return
    if config.answers == "gold":
        raise UserError("behaviour.answers=gold: the manifest knows no right answer to any of these tasks (`answers`)")
    tasks = ", ".join(sorted({question.task for question in gold}))
    raise UserError(f"{tasks}: the answers are `gold`, but the manifest knows no right answer to these tasks (`answers`)")


def given_answers(question: Question, chat: ChatFormat) -> list[Answer]:
    """The answers that the corpus gives. No other token gets a probability: they have no likeliest tokens."""
    answers = []
    for text in question.given:
        ids = [*chat.answer_ids(text), chat.end_id]
        empty = np.zeros((len(ids), 0))
        answers.append(Answer(ids, False, empty.astype(np.int32), empty.astype(np.float16)))
    return answers


def given_answer(question: Question, chat: ChatFormat) -> Answer:
    """The answers of a dialogue that the corpus gives whole."""
    first, *further = given_answers(question, chat)
    return replace(first, further=further)


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
    """The teacher's answer to each question, without its follow-ups, as soon as it is complete.

    An answer that repeats itself is cut off where the filter `repetitive` would leave it out anyway.
    """
    groups = by_utterance(questions)

    def repeats(ids: list[int]) -> bool:
        return len(ids) % STOP_EVERY == 0 and is_repetitive(chat.decode(ids))

    prompts = (prompts_about(group, config, chat) for group in groups)
    for (number, index), answer in teacher.answer(prompts, repeats if "repetitive" in config.filter else None):
        yield groups[number][index], answer


def ask_dialogues(
    questions: Sequence[Question], config: BehaviourConfig, teacher: Teacher, chat: ChatFormat
) -> Iterator[tuple[Question, Answer]]:
    """The teacher's answers to each question and its follow-ups. Those without follow-ups come first."""
    yield from ask([question for question in questions if not question.follow_ups], config, teacher, chat)
    several = [question for question in questions if question.follow_ups]
    size = CHUNK_BATCHES * config.batch_size
    for first in range(0, len(several), size):
        yield from ask_in_turn(several[first : first + size], config, teacher, chat)


def ask_in_turn(
    questions: Sequence[Question], config: BehaviourConfig, teacher: Teacher, chat: ChatFormat
) -> Iterator[tuple[Question, Answer]]:
    """Dialogues, turn after turn: the teacher answers a follow-up given its own earlier answers, or those given by the corpus.

    Each question comes back with its follow-ups as they were asked: after an answer that was cut off, they begin with the end
    token that it lacks, as in a conversation (`mtbi.use.conversation`).
    """
    dialogues = {question.key: question for question in questions}
    answers = {question.key: given_answers(question, chat) for question in questions}
    while waiting := [one for one in dialogues.values() if len(answers[one.key]) <= len(one.follow_ups)]:
        asked = [continued(question, answers[question.key]) for question in waiting]
        for question, answer in ask(asked, config, teacher, chat):
            key, turn = question.key, len(answers[question.key])
            answers[key].append(answer)
            if answer.truncated and turn < len(question.follow_ups):
                follow_ups = list(question.follow_ups)
                follow_ups[turn] = replace(follow_ups[turn], ids=[chat.end_id, *follow_ups[turn].ids])
                dialogues[key] = replace(dialogues[key], follow_ups=tuple(follow_ups))
    for key, question in dialogues.items():
        first, *further = answers[key]
        yield question, replace(first, further=further)


def continued(question: Question, answers: Sequence[Answer]) -> Question:
    """The question with the dialogue so far as its prompt, up to the answer after `answers`."""
    ids = list(question.prompt_ids)
    for answer, follow_up in zip(answers, question.follow_ups, strict=False):
        ids += [*answer.ids, *follow_up.ids]
    return replace(question, prompt_ids=ids)


def write(pairs: Iterable[tuple[Question, Answer]], total: int, config: BehaviourConfig, chat: ChatFormat, out: Path) -> int:
    """Write answers chunk by chunk, each with the reason for which it is left out, if there is one. Returns their number."""
    number, written = store.next_chunk(out), 0
    with tqdm(total=total, desc=f"{out.parent.name}: answers", unit="answer", disable=None if total else True) as bar:
        counted = iter(pairs)
        while waiting := list(islice(counted, CHUNK_BATCHES * config.batch_size)):
            texts = [[chat.decode(turn.ids) for turn in answer.turns] for _, answer in waiting]
            reasons = [left_out(*pair, text, config) for pair, text in zip(waiting, texts, strict=True)]
            store.write_chunk(out, number, waiting, texts, reasons)
            number, written = number + 1, written + len(waiting)
            bar.update(len(waiting))
    return written


def left_out(question: Question, answer: Answer, texts: Sequence[str], config: BehaviourConfig) -> str:
    """The rule of `behaviour.filter` that leaves a dialogue out of training; empty where none does.

    One answer of the LLM that is left out takes the whole dialogue with it.
    """
    names = [name for name in config.filter if name not in question.unfiltered]
    answered = list(zip(texts, answer.turns, strict=True))[len(question.given) :]
    checked = (filters.CheckedAnswer(question.transcript, text, turn.truncated) for text, turn in answered)
    return next(filter(None, (filters.reason(one, names) for one in checked)), "")
