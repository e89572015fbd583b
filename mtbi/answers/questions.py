"""Questions: which tasks, and which wordings of them, the text LLM is asked about an utterance."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mtbi.answers import filters, task_library
from mtbi.answers.task_library import Task
from mtbi.corpus import rendering
from mtbi.corpus.manifest import Utterance
from mtbi.errors import UserError
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import BehaviourConfig


@dataclass(frozen=True)
class FollowUp:
    """A further prompt of a dialogue."""

    prompt: str
    ids: list[int]  #: from after the end token of the answer before it to its own answer
    gold: str | None  #: the right answer, where the corpus knows one
    supervised: bool  #: its answer is learnt


@dataclass(frozen=True)
class Question:
    """One prompt about one transcript, and the further prompts after its answer."""

    utterance: str  #: id
    task: str
    wording: int  #: number among the task's wordings
    prompt: str  #: the wording, filled from the utterance's fields
    lead_ids: list[int]
    prompt_ids: list[int]
    heldout: bool  #: the wording is kept out of training
    transcript: str
    around: tuple[str, str]  #: the text before and after the transcript (`behaviour.reads`)
    gold: str | None  #: the right answer, where the corpus knows one
    max_new_tokens: int
    source: str = "llm"  #: of the answer: one of `task_library.SOURCES`
    unfiltered: tuple[str, ...] = ()  #: rules of `behaviour.filter` that do not apply
    follow_ups: tuple[FollowUp, ...] = ()  #: in order
    supervised: bool = True  #: the answer to `prompt` is learnt

    @property
    def given(self) -> tuple[str, ...]:
        """The answers of the first turns that the LLM is not asked for. Gold answers are given to all turns or to none."""
        if self.source == "transcript":
            return (self.transcript,)
        golds = (self.gold, *(follow_up.gold for follow_up in self.follow_ups)) if self.source == "gold" else ()
        known = tuple(gold for gold in golds if gold is not None)
        return known if len(known) == len(golds) else ()

    @property
    def is_given(self) -> bool:
        """Whether the LLM is asked for no answer of the dialogue."""
        return len(self.given) > len(self.follow_ups)

    @property
    def read(self) -> str:
        """What the text LLM reads: the transcript with the text around it."""
        return self.transcript.join(self.around)

    @property
    def key(self) -> tuple[str, str, int]:
        """(utterance, task, wording): a wording of a task is asked once about an utterance."""
        return self.utterance, self.task, self.wording


def chosen_tasks(config: BehaviourConfig) -> list[Task]:
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


def fields_in(tasks: Iterable[Task], config: BehaviourConfig, utterances: Iterable[Utterance]) -> frozenset[str]:
    """The names in braces of the tasks' wordings that are a field of some utterance, such as `keyword`.

    Other braces in wordings are text.
    """
    tasks = list(tasks)
    wordings = [task.wordings[number] for task in tasks for number in task.choices(config.wordings)]
    wordings += [wording for task in tasks for wordings in task.follow_ups for wording in wordings]
    wanted = set().union(*map(rendering.names_in, wordings))
    found: set[str] = set()
    for utterance in utterances:
        if found >= wanted:
            break
        found |= wanted & values_of(utterance).keys()
    return frozenset(found)


def values_of(utterance: Utterance) -> dict[str, str]:
    """The fields of an utterance with which wordings are filled: those of `mtbi.corpus.rendering` that are not empty."""
    return {name: value for name, value in rendering.fields_of(utterance).items() if value.strip()}


def askable(task: Task, config: BehaviourConfig, lacking: Collection[str]) -> Sequence[int]:
    """The numbers of a task's wordings of the wanted kind that name none of the fields that an utterance lacks."""
    choices = task.choices(config.wordings)
    if not lacking:
        return choices
    wordings = task.wordings
    return [number for number in choices if rendering.names_in(wordings[number]).isdisjoint(lacking)]


def count_lacking(
    utterances: Iterable[Utterance], tasks: Sequence[Task], config: BehaviourConfig, fields: Collection[str]
) -> Counter[tuple[str, str]]:
    """How many utterances are not asked in some wordings of a task, by the task and the field that they lack."""
    named: dict[str, set[str]] = {
        task.name: set().union(*(rendering.names_in(task.wordings[number]) for number in task.choices(config.wordings)))
        for task in tasks
    }
    counts: Counter[tuple[str, str]] = Counter()
    for utterance in utterances if fields else ():
        lacking = set(fields) - values_of(utterance).keys()
        counts.update((task, name) for task, names in named.items() for name in sorted(names & lacking))
    return counts


def follow_up_wordings(utterance: Utterance, task: Task, lacking: Collection[str]) -> list[list[str]] | None:
    """The wordings of each follow-up of a task, without those that name one of the fields that the utterance lacks.

    The manifest's follow-ups come in the place of the task's. None where a follow-up has no wording left. Raises UserError
    where neither manifest nor task has the prompt of a follow-up.
    """
    own, wordings = utterance.follow_ups.get(task.name, []), [list(texts) for texts in task.follow_ups]
    if own and any("prompt" not in turn for turn in own[len(wordings) :]):
        raise UserError(
            f"utterance {utterance.id!r}: a follow-up of {task.name!r} has no prompt; write `prompt` into the manifest, or "
            "`follow_ups` into the task library"
        )
    if own:
        wordings = [[turn["prompt"]] if "prompt" in turn else wordings[number] for number, turn in enumerate(own)]
    left = [[text for text in texts if rendering.names_in(text).isdisjoint(lacking)] for texts in wordings]
    return left if all(left) else None


def draw_follow_ups(
    utterance: Utterance, task: Task, wordings: list[list[str]], values: dict[str, str], chat: ChatFormat, rng: random.Random
) -> tuple[FollowUp, ...]:
    """The follow-ups of a question, each in one of its wordings `follow_up_wordings`."""
    own = utterance.follow_ups.get(task.name) or [{} for _ in wordings]
    prompts = [rendering.fill(rng.choice(texts), values) for texts in wordings]
    return tuple(
        FollowUp(prompt, chat.turn_ids(prompt), turn.get("answer"), task.supervised == "all" or number == len(prompts))
        for number, (prompt, turn) in enumerate(zip(prompts, own, strict=True), start=1)
    )


def draw_questions(
    utterance: Utterance,
    tasks: list[Task],
    config: BehaviourConfig,
    chat: ChatFormat,
    seed: int,
    fields: Collection[str] = (),
) -> list[Question]:
    """The questions about one utterance. They depend only on the seed and the utterance, not on other utterances.

    `fields` are the names in wordings that the utterance's values replace (`fields_in`). Without a value, the utterance is not
    asked in such a wording. Raises UserError where the utterance lacks a field of `behaviour.reads`.
    """
    around = rendering.read_by_llm(config.reads).around(utterance)
    values = {name: value for name, value in values_of(utterance).items() if name in fields} if fields else {}
    lacking = set(fields) - values.keys()
    choices = {task.name: askable(task, config, lacking) for task in tasks}
    later = {task.name: follow_up_wordings(utterance, task, lacking) for task in tasks}
    tasks = [task for task in tasks if choices[task.name] and later[task.name] is not None]
    rng = random.Random(hashlib.sha256(f"{seed} {utterance.id}".encode()).digest())
    chosen = rng.sample(tasks, min(config.per_utterance or len(tasks), len(tasks)))
    questions = []
    for task in chosen:
        numbers = choices[task.name]
        for wording in rng.sample(numbers, min(config.wordings_per_task, len(numbers))):
            prompt = rendering.fill(task.wordings[wording], values)
            lead, suffix = chat.around_speech(prompt, config.prompt_first)
            draw = random.Random(hashlib.sha256(f"{seed} {utterance.id} {task.name} {wording}".encode()).digest())
            follow_ups = draw_follow_ups(utterance, task, later[task.name] or [], values, chat, draw)
            questions.append(
                Question(
                    utterance.id,
                    task.name,
                    wording,
                    prompt,
                    lead,
                    suffix,
                    wording >= task.training_wordings,
                    utterance.text,
                    around,
                    utterance.answers.get(task.name, utterance.text if task.answers == "transcript" else None),
                    task.max_new_tokens or config.max_new_tokens,
                    "gold" if config.answers == "gold" else task.answers,
                    task.unfiltered,
                    follow_ups,
                    task.supervised == "all" or not follow_ups,
                )
            )
    return questions
