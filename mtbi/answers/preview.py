"""`mtbi tasks try`: the text LLM's answers about one sentence, to judge tasks before a whole corpus is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from textwrap import indent

from mtbi import metrics
from mtbi.answers import filters
from mtbi.answers.ask import ask_dialogues, given_answer
from mtbi.answers.questions import chosen_tasks, draw_questions
from mtbi.answers.teacher import build_teacher
from mtbi.corpus import rendering
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import read_chat
from mtbi.recipe import Recipe


@dataclass(frozen=True)
class PreviewedAnswer:
    """A prompt about the sentence and the text LLM's answer."""

    task: str
    heldout: bool  #: the wording is kept out of training
    prompt: str
    answer: str
    remarks: tuple[str, ...]  #: faults of the answer
    further: Sequence[tuple[str, str]] = ()  #: prompt and answer of each further turn

    def __str__(self) -> str:
        remarks = "".join(f"\n  ! {remark}" for remark in self.remarks)
        later = "".join(f"\n  then: {prompt}\n{indent(answer.strip(), '    ')}" for prompt, answer in self.further)
        return (
            f"{self.task}: {self.prompt}{' (held out)' if self.heldout else ''}\n{indent(self.answer, '    ')}{remarks}{later}"
        )


def ask(sentence: str, recipe: Recipe, tasks: list[str], every_wording: bool = False) -> list[PreviewedAnswer]:
    """The answers of the recipe's text LLM, in the order of the task library.

    The sentence is all that the LLM reads, whatever `behaviour.reads` says. `tasks` are names or patterns; an empty list
    stands for the recipe's tasks. Each task is asked as `mtbi behave` would ask it, or with `every_wording` in all its
    wordings, also held-out ones. Raises UserError for an empty sentence, an unknown task, and an LLM that cannot be read.
    """
    if not sentence.split():
        raise UserError('the sentence is empty: give what a speaker might say, for example "one two three"')
    config = replace(
        recipe.behaviour, answers="llm", per_utterance=0, tasks=tasks or recipe.behaviour.tasks, reads=rendering.READS
    )
    if every_wording:
        config = replace(config, wordings="all", wordings_per_task=sys.maxsize)
    chosen, chat = {task.name: task for task in chosen_tasks(config)}, read_chat(recipe)
    questions = draw_questions(Utterance("", "", sentence), list(chosen.values()), config, chat, recipe.seed)
    teacher = build_teacher(recipe.model, config, recipe.precision)
    assert teacher
    given = ((question, given_answer(question, chat)) for question in questions if question.is_given)
    asked = [question for question in questions if question.source != "gold" and not question.is_given]
    previews = {}
    for question, answer in chain(given, ask_dialogues(asked, config, teacher, chat)):
        text = chat.decode(answer.ids).strip()
        later = [(one.prompt, chat.decode(turn.ids)) for one, turn in zip(question.follow_ups, answer.further, strict=True)]
        remarks = [f"cut off after {len(answer.ids)} tokens (max_new_tokens)"] if answer.truncated else []
        rule = filters.reason(filters.CheckedAnswer(sentence, text, False), set(filters.RULES) - set(question.unfiltered))
        if rule:
            remarks.append(f"left out by behaviour.filter=[{rule}]")
        form = chosen[question.task].form
        if form and not metrics.follows(text, form):
            remarks.append(f"not in the form that the task asks for: {form}")
        preview = PreviewedAnswer(question.task, question.heldout, question.prompt, text, tuple(remarks), later)
        previews[question.task, question.wording] = preview
    order = list(chosen)
    return [previews[key] for key in sorted(previews, key=lambda key: (order.index(key[0]), key[1]))]
