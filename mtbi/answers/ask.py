"""`mtbi behave`: the text LLM answers every question that has no answer yet; gold answers come from the corpus instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtbi import text_units
from mtbi.answers import store
from mtbi.answers.questions import Question, chosen_tasks, draw_questions
from mtbi.answers.teacher import Answer, Teacher
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import BehaviourConfig

CHUNK_BATCHES = 4  # batches that are written together: the most that a kill can cost


def ask_unanswered(
    utterances: Iterable[Utterance],
    config: BehaviourConfig,
    teacher: Teacher | None,
    chat: ChatFormat,
    out: Path | str,
    seed: int = 1,
) -> int:
    """Ask every question that has no answer in the folder `out`. Returns the number of new answers.

    Raises UserError for unknown tasks, tasks without wordings of the wanted kind, a folder with answers made in another
    way or about other transcripts, and a folder that another process is filling.
    """
    out, tasks = Path(out), chosen_tasks(config)
    with store.locked(out):
        store.open_folder(out, config, chat)
        known = store.answered(out)
        unanswered = []
        for utterance in utterances:
            for question in draw_questions(utterance, tasks, config, chat, seed):
                if question.key not in known:
                    unanswered.append(question)
                elif known[question.key] not in ("", store.digest(question.transcript)):
                    raise store.other_transcript(out, question.utterance)
        if config.answers == "gold":
            teacher, unanswered = None, with_gold(unanswered, known)
        written = ask(unanswered, config, teacher, chat, out)
        (out / store.DONE_FILE).touch()
        return written


def with_gold(questions: list[Question], known: Mapping[tuple[str, str, int], str]) -> list[Question]:
    """The questions whose right answer the corpus knows. Raises UserError where it knows none, and no answer is `known`."""
    with_answer = [question for question in questions if question.gold is not None]
    if questions and not with_answer and not known:
        raise UserError("behaviour.answers=gold: the manifest knows no right answer to any of these tasks (`answers`)")
    return with_answer


def gold_answer(question: Question, chat: ChatFormat) -> Answer:
    """The corpus's right answer. No other token gets a probability: it has no likeliest tokens."""
    ids = [*chat.answer_ids(question.gold or ""), chat.end_id]
    empty = np.zeros((len(ids), 0))
    return Answer(ids, False, empty.astype(np.int32), empty.astype(np.float16))


def make_batches(questions: list[Question], batch_size: int) -> Iterator[list[Question]]:
    """Batches of prompts of similar length, so that little is padding. All answers of a batch have the same longest length."""
    questions.sort(key=lambda q: (q.max_new_tokens, text_units.count(q.transcript) + text_units.count(q.prompt)))
    for _, group in groupby(questions, key=lambda question: question.max_new_tokens):
        same_limit = list(group)
        yield from (same_limit[start : start + batch_size] for start in range(0, len(same_limit), batch_size))


def answer_batch(batch: list[Question], config: BehaviourConfig, teacher: Teacher, chat: ChatFormat) -> list[Answer]:
    """The teacher's answers to a batch of `make_batches`, in its order."""
    prompts = [chat.dialogue_ids(question.transcript, question.prompt, config.prompt_first) for question in batch]
    return teacher.answer(prompts, batch[0].max_new_tokens)


def ask(questions: list[Question], config: BehaviourConfig, teacher: Teacher | None, chat: ChatFormat, out: Path) -> int:
    """Ask all questions and write the answers chunk by chunk. Returns their number. Without a teacher: gold answers."""
    batch_size = config.batch_size
    number = store.next_chunk(out)
    waiting: list[tuple[Question, Answer]] = []
    written = 0
    with tqdm(total=len(questions), desc=f"{out.parent.name}: answers", unit="answer", disable=None) as bar:
        for batch in make_batches(questions, batch_size):
            if teacher:
                answers = answer_batch(batch, config, teacher, chat)
            else:
                answers = [gold_answer(question, chat) for question in batch]
            waiting += zip(batch, answers, strict=True)
            if len(waiting) >= CHUNK_BATCHES * batch_size or written + len(waiting) == len(questions):
                texts = [chat.decode(answer.ids) for _, answer in waiting]
                store.write_chunk(out, number, waiting, texts)
                number, written, waiting = number + 1, written + len(waiting), []
            bar.update(len(batch))
    return written
