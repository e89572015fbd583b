"""The parts of which metrics are made: conditions, scorers, references, and kinds of metrics.

A record of a metric holds what it needs of a dialogue, what one answer counts, how the counts make one number, and how the
number is shown. `mtbi.metrics.records` lists the records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

from mtbi.metrics.instructions import follows_all
from mtbi.metrics.normalise import is_unspaced
from mtbi.metrics.repetition import is_repetitive
from mtbi.metrics.texts import exact_match, wer, word_errors

#: Who answered, and under which condition: the keys of a dialogue's answers.
SPEECH, TEXT_LLM, CASCADE, SILENCE, NO_AUDIO, SHUFFLED = "speech LLM", "text LLM", "cascade", "silence", "no audio", "shuffled"
ADAPTED = "adapted text LLM"  #: the LLM with what training changed of it, reading the transcript
MIN_QUESTIONS = 10  #: a wording asked less often is never the worst one


class AnsweredDialogue(Protocol):
    """What a metric may read. See `mtbi.benchmark.dialogues.Dialogue`."""

    task: str
    wording: int
    transcript: str
    gold: str | None
    form: str
    scorer: str
    answers: dict[str, str]
    token_hits: float
    token_divergence: float
    tokens: int
    judged: float | None
    heard: str | None
    cut_off: list[str]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """How one answer of a task is scored. Its name stands as `scorer` in a task library."""

    name: str
    similarity: Callable[[str, str], float]  #: of an answer to its reference, from 0 to 1
    right_or_wrong: bool = False  #: an answer that differs from the gold answer is wrong
    repeats: bool = False  #: the task repeats the speech, so the transcript is the reference where no gold answer is known


class Metric(NamedTuple):
    """One number of a report. Numbers in per cent are kept as shares."""

    name: str  #: the key in report.json
    column: str  #: the heading in tables; empty = only in report.json
    meaning: str
    needs: Callable[[AnsweredDialogue], bool]  #: whether a dialogue has what the metric needs
    count: Callable[[AnsweredDialogue], Any]  #: what its answer counts
    total: Callable[[Sequence[Any]], float | None]  #: one number from the counts of all dialogues, at least one
    interval: Literal["none", "saved", "shown"] = "none"  #: 95% by bootstrap, for counts that `ratio` adds up
    unit: Literal["%", "nats/token"] = "%"
    higher_is_better: bool | None = True  #: None = neither
    scorer: Scorer | None = None  #: lets the tasks of a library be scored by it
    instead: str = ""  #: a metric that says the same; where every cell of a table has it, this one has no column


class Pair(NamedTuple):
    """The speech LLM's answer beside its reference: what a metric of texts counts."""

    answer: str
    reference: str
    scorer: str


#: How the answers of a task may be scored, by name. `mtbi.metrics.records` fills it from its records.
SCORERS: dict[str, Scorer] = {}


def scorer_of(dialogue: AnsweredDialogue) -> Scorer:
    """The scorer of a dialogue. A name of another version stands for exact match, without right and wrong."""
    return SCORERS.get(dialogue.scorer) or Scorer(dialogue.scorer, exact_match)


def reference(dialogue: AnsweredDialogue) -> str:
    """The text that an answer is compared with.

    It is the gold answer where one is known, else the transcript of a task that repeats it, else the text LLM's answer.
    """
    if dialogue.gold is not None:
        return dialogue.gold
    return dialogue.transcript if scorer_of(dialogue).repeats else dialogue.answers[TEXT_LLM]


def is_graded(dialogue: AnsweredDialogue) -> bool:
    """Whether an answer is either right or wrong: the gold answer is known, and the scorer asks for all of it."""
    return dialogue.gold is not None and scorer_of(dialogue).right_or_wrong


def is_correct(dialogue: AnsweredDialogue, source: str) -> bool:
    """Whether the answer of `source` is the gold answer."""
    return exact_match(dialogue.answers.get(source), dialogue.gold or "")


def score(dialogue: AnsweredDialogue, source: str) -> float:
    """The score of an answer: 1 or 0 where it is right or wrong, else its similarity to the reference."""
    if is_graded(dialogue):
        return float(is_correct(dialogue, source))
    return _similarity(scorer_of(dialogue), dialogue.answers[source], reference(dialogue))


@lru_cache(maxsize=1 << 17)
def _similarity(scorer: Scorer, answer: str, expected: str) -> float:
    """A dialogue is in many cells of a table, and is compared once."""
    return scorer.similarity(answer, expected)


def ratio(counts: Sequence[tuple[float, float]]) -> float | None:
    """The sum of the first numbers over the sum of the second ones; None where that is 0."""
    numerator, denominator = (sum(column) for column in zip(*counts, strict=True))
    return numerator / denominator if denominator else None


def by_wording(counts: Sequence[tuple[tuple[str, int], bool]]) -> list[list[bool]]:
    """The right and wrong answers to each wording of each task."""
    wordings: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for wording, correct in counts:
        wordings[wording].append(correct)
    return list(wordings.values())


def mean_wording(counts: Sequence[tuple[tuple[str, int], bool]]) -> float | None:
    """The mean over wordings of the accuracy of each."""
    shares = [sum(correct) / len(correct) for correct in by_wording(counts)]
    return sum(shares) / len(shares)


def worst_wording(counts: Sequence[tuple[tuple[str, int], bool]]) -> float | None:
    """The accuracy of the worst wording; None where no wording is asked often enough."""
    shares = [sum(correct) / len(correct) for correct in by_wording(counts) if len(correct) >= MIN_QUESTIONS]
    return min(shares, default=None)


def pair_texts(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Answers and references."""
    return [pair.answer for pair in pairs], [pair.reference for pair in pairs]


def wer_by_scorer(pairs: Sequence[Pair]) -> float | None:
    """WER of the tasks scored by `wer`; of those scored by `wer_english` where there are no others."""
    multilingual = [pair for pair in pairs if pair.scorer == "wer"]
    return wer(*pair_texts(multilingual or pairs), english=not multilingual)


def accuracy_of(source: str, name: str, meaning: str) -> Metric:
    """The accuracy of answers from a source other than the speech LLM."""

    def count(dialogue: AnsweredDialogue) -> tuple[float, float]:
        return is_correct(dialogue, source), 1

    return Metric(name, source, meaning, lambda dialogue: is_graded(dialogue) and source in dialogue.answers, count, ratio)


def control(source: str, name: str, meaning: str) -> Metric:
    """The accuracy of answers given without the utterance: what can be guessed."""
    return accuracy_of(source, name, meaning)._replace(higher_is_better=None)


def share_of(source: str, name: str, column: str, meaning: str, instead: str, shown: bool = False) -> Metric:
    """The scores of answers from a source as a share of the text LLM's own scores.

    A score is 1 or 0 where a gold answer is known, else the similarity to the reference. Where the text LLM's answer is the
    reference, its own score is 1.
    """

    def count(dialogue: AnsweredDialogue) -> tuple[float, float]:
        return score(dialogue, source), score(dialogue, TEXT_LLM)

    return Metric(
        name, column, meaning, lambda dialogue: source in dialogue.answers and TEXT_LLM in dialogue.answers, count, ratio,
        "shown" if shown else "none", higher_is_better=True if shown else None, instead=instead,
    )  # fmt: skip


def wer_of(
    name: str, column: str, meaning: str, text: Callable[[AnsweredDialogue], str | None], capped: bool = False
) -> Metric:
    """The word error rate of a text that is not the speech LLM's answer, in the dialogues that have a WER.

    With `capped`, an utterance has at most as many errors as words, so that one endless answer does not hide the others.
    """

    def count(dialogue: AnsweredDialogue) -> tuple[int, int]:
        errors, words = word_errors(text(dialogue) or "", reference(dialogue), dialogue.scorer == "wer_english")
        return min(errors, words) if capped else errors, words

    def needs(dialogue: AnsweredDialogue) -> bool:
        return spaced("wer", "wer_english")(dialogue.scorer, reference(dialogue)) and text(dialogue) is not None

    return Metric(name, column, meaning, needs, count, ratio, "shown" if capped else "saved", higher_is_better=False)


def has_run_away(dialogue: AnsweredDialogue, source: str) -> bool:
    """Whether an answer was cut off at its longest length, or repeats itself."""
    return source in dialogue.cut_off or is_repetitive(dialogue.answers[source])


def rate(name: str, column: str, meaning: str, holds: Callable[[AnsweredDialogue], bool], source: str = SPEECH) -> Metric:
    """The share of answers from a source for which something bad holds."""
    return Metric(
        name, column, meaning, lambda d: source in d.answers, lambda d: (holds(d), 1), ratio, "saved", higher_is_better=False
    )


def instructions_of(name: str, column: str, meaning: str, source: str) -> Metric:
    """The share of items of which an answer follows every instruction that a program can check."""
    return Metric(
        name, column, meaning, lambda d: has_instructions(d) and source in d.answers,
        lambda d: (follows_instructions(d, source), 1), ratio, "shown" if source == SPEECH else "saved",
    )  # fmt: skip


def has_instructions(dialogue: AnsweredDialogue) -> bool:
    """Whether an item holds instructions that a program can check (`mtbi.metrics.instructions`)."""
    return bool(dialogue.extra.get("instruction_id_list"))


def follows_instructions(dialogue: AnsweredDialogue, source: str) -> bool:
    """Whether the answer of `source` follows all of an item's instructions."""
    return follows_all(dialogue.answers[source], dialogue.extra["instruction_id_list"], dialogue.extra.get("kwargs") or [])


def of_wordings(name: str, column: str, meaning: str, total: Callable[[Sequence[Any]], float | None]) -> Metric:
    """A metric of the accuracies of single wordings."""
    return Metric(name, column, meaning, is_graded, lambda d: ((d.task, d.wording), is_correct(d, SPEECH)), total)


def of_texts(
    name: str, column: str, meaning: str, compare: Callable[[Sequence[Pair]], float | None], scorer: Scorer | None = None,
    applies: Callable[[str, str], bool] | None = None, higher_is_better: bool = True,
) -> Metric:  # fmt: skip
    """A metric of the speech LLM's answers against their references.

    It needs a dialogue whose scorer has the metric's name, or where `applies(scorer, reference)`.
    """

    def needs(dialogue: AnsweredDialogue) -> bool:
        return applies(dialogue.scorer, reference(dialogue)) if applies else dialogue.scorer == name

    def count(dialogue: AnsweredDialogue) -> Pair:
        return Pair(dialogue.answers[SPEECH], reference(dialogue), dialogue.scorer)

    return Metric(name, column, meaning, needs, count, compare, higher_is_better=higher_is_better, scorer=scorer)


def spaced(*scorers: str) -> Callable[[str, str], bool]:
    """Whether a scorer is among `scorers` and the reference has spaces between words."""
    return lambda scorer, text: scorer in scorers and not is_unspaced(text)


def unspaced(*scorers: str) -> Callable[[str, str], bool]:
    """Whether a scorer is among `scorers` and the reference has no spaces between words."""
    return lambda scorer, text: scorer in scorers and is_unspaced(text)
