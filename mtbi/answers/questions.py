"""Questions: which tasks, and which wordings of them, the text LLM is asked about an utterance."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from mtbi.answers import filters, task_library
from mtbi.corpus import rendering
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import BehaviourConfig


@dataclass(frozen=True)
class Question:
    """One prompt about one transcript."""

    utterance: str  #: id
    task: str
    wording: int  #: number among the task's wordings
    prompt: str
    lead_ids: list[int]
    prompt_ids: list[int]
    heldout: bool  #: the wording is kept out of training
    transcript: str
    around: tuple[str, str]  #: the text before and after the transcript (`behaviour.reads`)
    gold: str | None  #: the right answer, where the corpus knows one
    max_new_tokens: int
    source: str = "llm"  #: of the answer: one of `task_library.SOURCES`
    unfiltered: tuple[str, ...] = ()  #: rules of `behaviour.filter` that do not apply

    @property
    def given(self) -> str | None:
        """The answer that the LLM is not asked for; None where there is none."""
        return self.gold if self.source == "gold" else self.transcript if self.source == "transcript" else None

    @property
    def read(self) -> str:
        """What the text LLM reads: the transcript with the text around it."""
        return self.transcript.join(self.around)

    @property
    def key(self) -> tuple[str, str, int]:
        """(utterance, task, wording): a wording of a task is asked once about an utterance."""
        return self.utterance, self.task, self.wording


def chosen_tasks(config: BehaviourConfig) -> list[task_library.Task]:
    """The tasks to ask.

    Raises UserError for unknown tasks or filters, for wrong templates (`mtbi.corpus.rendering`), and where none of the tasks
    has wordings of the wanted kind.
    """
    filters.check_names(config.filter, "behaviour.filter")
    rendering.read_by_llm(config.reads)
    rendering.heard(config.hears)
    tasks = task_library.select(task_library.load(config.library), config.tasks)
    tasks = [task for task in tasks if task.choices(config.wordings)]
    if not tasks:
        raise UserError(f"behaviour.tasks: none of the tasks has {config.wordings} wordings")
    return tasks


def draw_questions(
    utterance: Utterance, tasks: list[task_library.Task], config: BehaviourConfig, chat: ChatFormat, seed: int
) -> list[Question]:
    """The questions about one utterance. They depend only on the seed and the utterance's id, not on other utterances.

    Raises UserError where the utterance lacks a field of `behaviour.reads`.
    """
    around = rendering.read_by_llm(config.reads).around(utterance)
    rng = random.Random(hashlib.sha256(f"{seed} {utterance.id}".encode()).digest())
    chosen = rng.sample(tasks, min(config.per_utterance or len(tasks), len(tasks)))
    questions = []
    for task in chosen:
        choices = task.choices(config.wordings)
        for wording in rng.sample(choices, min(config.wordings_per_task, len(choices))):
            lead, suffix = chat.around_speech(task.wordings[wording], config.prompt_first)
            questions.append(
                Question(
                    utterance.id,
                    task.name,
                    wording,
                    task.wordings[wording],
                    lead,
                    suffix,
                    wording >= task.training_wordings,
                    utterance.text,
                    around,
                    utterance.answers.get(task.name, utterance.text if task.answers == "transcript" else None),
                    task.max_new_tokens or config.max_new_tokens,
                    "gold" if config.answers == "gold" else task.answers,
                    task.unfiltered,
                )
            )
    return questions
