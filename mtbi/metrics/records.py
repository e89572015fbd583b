"""The metrics of a report, one record each.

A record holds what a metric needs of a dialogue, what one answer counts, how the counts make one number, and how the number is
shown. `METRICS` lists the records in the order of a table's columns. To add a metric, add a record there. A record with a
`scorer` lets the tasks of a library be scored by it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from mtbi.metrics.normalise import is_unspaced
from mtbi.metrics.texts import bleu, cer, character_similarity, chrf, exact_match, follows, list_f1, wer, word_similarity

#: Who answered, and under which condition: the keys of a dialogue's answers.
SPEECH, TEXT_LLM, CASCADE, SILENCE, NO_AUDIO, SHUFFLED = "speech LLM", "text LLM", "cascade", "silence", "no audio", "shuffled"
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


class Pair(NamedTuple):
    """The speech LLM's answer beside its reference: what a metric of texts counts."""

    answer: str
    reference: str
    scorer: str


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
    return scorer_of(dialogue).similarity(dialogue.answers[source], reference(dialogue))


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


def _texts(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Answers and references."""
    return [pair.answer for pair in pairs], [pair.reference for pair in pairs]


def wer_by_scorer(pairs: Sequence[Pair]) -> float | None:
    """WER of the tasks scored by `wer`; of those scored by `wer_english` where there are no others."""
    multilingual = [pair for pair in pairs if pair.scorer == "wer"]
    return wer(*_texts(multilingual or pairs), english=not multilingual)


def accuracy_of(source: str, name: str, meaning: str) -> Metric:
    """The accuracy of answers from a source other than the speech LLM."""

    def count(dialogue: AnsweredDialogue) -> tuple[float, float]:
        return is_correct(dialogue, source), 1

    return Metric(name, source, meaning, lambda dialogue: is_graded(dialogue) and source in dialogue.answers, count, ratio)


def control(source: str, name: str, meaning: str) -> Metric:
    """The accuracy of answers given without the utterance: what can be guessed."""
    return accuracy_of(source, name, meaning)._replace(higher_is_better=None)


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


METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy", "accuracy", "answers that equal the gold answer",
        is_graded, lambda d: (is_correct(d, SPEECH), 1), ratio, "shown",
        scorer=Scorer("exact", exact_match, right_or_wrong=True),
    ),
    accuracy_of(TEXT_LLM, "text_llm", "accuracy of the text LLM that reads the transcript"),
    Metric(
        "kept", "kept", "accuracy as a share of the text LLM's",
        is_graded, lambda d: (is_correct(d, SPEECH), is_correct(d, TEXT_LLM)), ratio, "shown",
    ),
    accuracy_of(CASCADE, "cascade", "accuracy of the text LLM that reads a recogniser's transcript"),
    Metric(
        "agreement", "agreement", "answers that equal the text LLM's",
        lambda d: True, lambda d: (exact_match(d.answers[SPEECH], d.answers[TEXT_LLM]), 1), ratio, "shown",
    ),
    Metric(
        "follows", "form", "answers, right or wrong, in the form that was asked for",
        lambda d: bool(d.form), lambda d: (follows(d.answers[SPEECH], d.form), 1), ratio, "saved",
    ),
    of_wordings("mean_wording", "", "mean over wordings of the accuracy of each", mean_wording),
    of_wordings("worst_wording", "worst wording", "accuracy of the worst wording (of those asked 10 times)", worst_wording),
    control(SILENCE, "silence", "accuracy with silence in the place of the speech"),
    control(NO_AUDIO, "no_audio", "accuracy without any audio"),
    control(SHUFFLED, "shuffled", "accuracy with another utterance in the place of the speech"),
    of_texts(
        "wer", "WER", "word error rate of tasks scored by `wer`, and where there are none of those scored by `wer_english`",
        wer_by_scorer, Scorer("wer", word_similarity, right_or_wrong=True, repeats=True), spaced("wer", "wer_english"),
        higher_is_better=False,
    ),
    of_texts(
        "wer_english", "WER (English)", "word error rate after Whisper's English normaliser",
        lambda pairs: wer(*_texts(pairs), english=True),
        Scorer("wer_english", partial(word_similarity, english=True), repeats=True), spaced("wer_english"),
        higher_is_better=False,
    ),
    of_texts(
        "cer", "CER", "character error rate, also of tasks scored by WER whose reference has no spaces between words",
        lambda pairs: cer(*_texts(pairs)), Scorer("cer", character_similarity, right_or_wrong=True, repeats=True),
        lambda scorer, text: scorer == "cer" or unspaced("wer", "wer_english")(scorer, text), higher_is_better=False,
    ),
    of_texts(
        "bleu", "BLEU", "BLEU of translations",
        lambda pairs: bleu(*_texts(pairs)), Scorer("bleu", lambda answer, text: chrf([answer], [text])),
        spaced("bleu"),
    ),
    of_texts(
        "bleu_characters", "BLEU (characters)", "BLEU of translations into scripts without spaces, cut into characters",
        lambda pairs: bleu(*_texts(pairs)), applies=unspaced("bleu"),
    ),
    of_texts(
        "chrf", "chrF", "chrF of translations and free texts",
        lambda pairs: chrf(*_texts(pairs)), Scorer("similarity", lambda answer, text: chrf([answer], [text])),
        lambda scorer, _: scorer in ("bleu", "similarity"),
    ),
    of_texts(
        "list_f1", "list F1", "F1 of the items that an answer lists, in any order; mean over answers",
        lambda pairs: sum(list_f1(pair.answer, pair.reference) for pair in pairs) / len(pairs), Scorer("list_f1", list_f1),
    ),
    Metric(
        "judged", "judged", "mean mark of an LLM as a judge",
        lambda d: d.judged is not None, lambda d: (d.judged, 1), ratio,
    ),
    Metric(
        "token_agreement", "", "tokens of the text LLM's answers that are the speech LLM's likeliest",
        lambda d: d.tokens > 0, lambda d: (d.token_hits, d.tokens), ratio,
    ),
    Metric(
        "divergence", "", "Kullback-Leibler divergence from the text LLM's probabilities",
        lambda d: d.tokens > 0, lambda d: (d.token_divergence, d.tokens), ratio, unit="nats/token", higher_is_better=False,
    ),
)  # fmt: skip
#: How the answers of a task may be scored, by name.
SCORERS = {metric.scorer.name: metric.scorer for metric in METRICS if metric.scorer}
