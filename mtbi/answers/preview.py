"""Tasks tried on one sentence: what would be imitated, before a corpus is asked. `mtbi tasks try`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from textwrap import indent

from mtbi import metrics
from mtbi.answers import behaviour
from mtbi.answers.teacher import build_teacher
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import read_chat
from mtbi.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """A prompt about the sentence and the text LLM's answer."""

    task: str
    heldout: bool  #: the wording is kept out of training
    prompt: str
    answer: str
    remarks: tuple[str, ...]  #: what is wrong with the answer

    def __str__(self) -> str:
        notes = "".join(f"\n  ! {remark}" for remark in self.remarks)
        return f"{self.task}: {self.prompt}{' (held out)' if self.heldout else ''}\n{indent(self.answer, '    ')}{notes}"


def ask(sentence: str, recipe: Recipe, tasks: list[str], every_wording: bool = False) -> list[Trial]:
    """The answers of the recipe's text LLM, in the order of the library.

    `tasks` are names or patterns; without any, the recipe's. Each is asked as `mtbi behave` would ask it, or in all its
    wordings, also held-out ones. Raises UserError for an empty sentence, an unknown task, or an LLM that cannot be read.
    """
    if not sentence.split():
        raise UserError('the sentence is empty: give what a speaker might say, for example "one two three"')
    config = replace(recipe.behaviour, answers="llm", per_utterance=0, tasks=tasks or recipe.behaviour.tasks)
    if every_wording:
        config = replace(config, wordings="all", wordings_per_task=sys.maxsize)
    chosen, chat = {task.name: task for task in behaviour.chosen_tasks(config)}, read_chat(recipe)
    order = {name: place for place, name in enumerate(chosen)}
    requests = behaviour.draw_requests(Utterance("", "", sentence), list(chosen.values()), config, chat, recipe.seed)
    teacher = build_teacher(recipe.model, config, recipe.precision)
    assert teacher
    found = []
    for batch in behaviour.make_batches(requests, config.batch_size):
        prompts = [chat.dialogue_ids(sentence, request.prompt, config.prompt_first) for request in batch]
        for request, answer in zip(batch, teacher.answer(prompts, batch[0].max_new_tokens), strict=True):
            text = chat.decode(answer.ids).strip()
            remarks = [f"cut off after {len(answer.ids)} tokens (max_new_tokens)"] if answer.truncated else []
            form = chosen[request.task].form
            if form and not metrics.follows(text, form):
                remarks.append(f"not in the form that the task asks for: {form}")
            place = (order[request.task], request.wording)
            found.append((place, Trial(request.task, request.heldout, request.prompt, text, tuple(remarks))))
    return [trial for _, trial in sorted(found, key=lambda pair: pair[0])]
