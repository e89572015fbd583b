"""`mtbi tasks measure`: how well the text LLM does each task, in each wording, over a sample of transcripts."""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean

from tqdm import tqdm

from mtbi import metrics
from mtbi.answers import filters
from mtbi.answers.ask import ask
from mtbi.answers.questions import Question, chosen_tasks, draw_questions, fields_in
from mtbi.answers.teacher import build_teacher
from mtbi.corpus.manifest import Utterance
from mtbi.llm.chat_format import read_chat
from mtbi.recipe import Recipe


@dataclass(frozen=True)
class SampledAnswer:
    """One answer of the text LLM."""

    utterance: str
    transcript: str
    task: str
    wording: int
    heldout: bool  #: the wording is kept out of training
    prompt: str
    answer: str
    tokens: int
    faults: tuple[str, ...]  #: the rules of `behaviour.filter` that would leave it out


@dataclass(frozen=True)
class MeasuredWording:
    """The answers to one wording of a task. Shares and similarities (chrF) are between 0 and 1."""

    task: str
    prompt: str
    heldout: bool
    answers: int
    tokens: float  #: mean of an answer
    kept: float  #: share without any fault
    faults: dict[str, float]  #: share by rule of `behaviour.filter`
    copies: float  #: share that only repeats the transcript
    commonest: float  #: share of the commonest answer: 1 if the answer does not depend on the transcript
    agreement: float | None  #: mean similarity with answers to other wordings about the same transcript
    chance: float | None  #: mean similarity with answers to other wordings about another transcript


def sample_answers(utterances: Sequence[Utterance], recipe: Recipe, tasks: list[str], count: int) -> list[SampledAnswer]:
    """The text LLM's answers to every wording of the tasks, about `count` utterances drawn from the recipe's seed.

    `tasks` are names or patterns; an empty list stands for the recipe's tasks. Tasks whose answers are given are left out.
    Raises UserError for an unknown task, and for an LLM that cannot be read.
    """
    config = replace(
        recipe.behaviour, answers="llm", per_utterance=0, wordings="all", wordings_per_task=sys.maxsize,
        tasks=tasks or recipe.behaviour.tasks,
    )  # fmt: skip
    chosen, chat = chosen_tasks(config), read_chat(recipe)
    fields = fields_in(chosen, config, utterances)
    drawn = random.Random(recipe.seed).sample(list(utterances), min(count, len(utterances)))
    questions = [
        question
        for utterance in drawn
        for question in draw_questions(utterance, chosen, config, chat, recipe.seed, fields)
        if question.source == "llm"
    ]
    teacher = build_teacher(recipe.model, config, recipe.precision)
    assert teacher
    answers = []
    asked = ask(questions, config, teacher, chat)
    for question, answer in tqdm(asked, total=len(questions), desc="answers", unit="answer", disable=None):
        text = chat.decode(answer.ids).strip()
        answers.append(sampled(question, text, answer.truncated, len(answer.ids)))
    return sorted(answers, key=lambda answer: (answer.task, answer.wording, answer.utterance))


def sampled(question: Question, text: str, truncated: bool, tokens: int) -> SampledAnswer:
    """An answer with its faults."""
    checked = filters.CheckedAnswer(question.transcript, text, truncated)
    faults = tuple(name for name, holds in filters.RULES.items() if name not in question.unfiltered and holds(checked))
    return SampledAnswer(
        question.utterance, question.transcript, question.task, question.wording, question.heldout, question.prompt, text,
        tokens, faults,
    )  # fmt: skip


def by_wording(answers: Iterable[SampledAnswer]) -> list[MeasuredWording]:
    """The measurements of each wording, in the order of tasks and wordings."""
    groups: dict[tuple[str, int], dict[str, SampledAnswer]] = defaultdict(dict)
    for answer in answers:
        groups[answer.task, answer.wording][answer.utterance] = answer
    return [
        measured(group, [other for (task, number), other in groups.items() if task == key[0] and number != key[1]])
        for key, group in sorted(groups.items())
    ]


def measured(group: Mapping[str, SampledAnswer], others: Sequence[Mapping[str, SampledAnswer]]) -> MeasuredWording:
    """The measurements of one wording's answers by utterance, given those to the task's other wordings."""
    own = list(group.values())
    utterances = list(group)
    following = dict(zip(utterances, utterances[1:] + utterances[:1], strict=True))
    return MeasuredWording(
        task=own[0].task,
        prompt=own[0].prompt,
        heldout=own[0].heldout,
        answers=len(own),
        tokens=mean(sample.tokens for sample in own),
        kept=mean(not sample.faults for sample in own),
        faults={name: mean(name in sample.faults for sample in own) for name in filters.RULES},
        copies=mean(metrics.exact_match(sample.answer, sample.transcript) for sample in own),
        commonest=max(Counter(sample.answer for sample in own).values()) / len(own),
        agreement=likeness(
            (sample.answer, other[name].answer) for other in others for name, sample in group.items() if name in other
        ),
        chance=likeness(
            (sample.answer, other[following[name]].answer)
            for other in others
            for name, sample in group.items()
            if len(group) > 1 and following[name] in other
        ),
    )


def likeness(pairs: Iterable[tuple[str, str]]) -> float | None:
    """The mean chrF of pairs of texts; None where there are none."""
    values = [metrics.chrf([answer], [other]) for answer, other in pairs if other.strip()]
    return mean(values) if values else None


def render(rows: Sequence[MeasuredWording]) -> str:
    """A Markdown table with a row for each wording."""
    names = [*filters.RULES]
    lines = [
        f"| task | wording | tokens | kept | {' | '.join(names)} | copies | commonest | agreement | by chance |",
        f"|---|---|{'---:|' * (len(names) + 6)}",
    ]
    for row in rows:
        shares = [row.kept, *(row.faults[name] for name in names), row.copies, row.commonest]
        likenesses = ["" if value is None else f"{value:.0%}" for value in (row.agreement, row.chance)]
        prompt = f"{row.prompt or '(no prompt)'}{' (held out)' if row.heldout else ''}"
        cells = [row.task, prompt, f"{row.tokens:.0f}", *(f"{share:.0%}" for share in shares), *likenesses]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def record(rows: Sequence[MeasuredWording], answers: Sequence[SampledAnswer]) -> dict[str, list[dict]]:
    """Measurements and answers for JSON."""
    return {"wordings": [asdict(row) for row in rows], "answers": [asdict(sample) for sample in answers]}
