"""The metrics of answers: one form of a text (`normalise`), comparisons of texts (`texts`), one record a metric (`records`)."""

from mtbi.metrics.kinds import (
    ADAPTED,
    CASCADE,
    NO_AUDIO,
    SCORERS,
    SHUFFLED,
    SILENCE,
    SPEECH,
    TEXT_LLM,
    Metric,
    Scorer,
    is_correct,
    is_graded,
    reference,
    score,
)
from mtbi.metrics.normalise import is_unspaced, normalise
from mtbi.metrics.records import METRICS
from mtbi.metrics.repetition import is_repetitive
from mtbi.metrics.texts import bleu, cer, chrf, exact_match, follows, rouge_l, wer, word_errors

__all__ = [
    "ADAPTED",
    "CASCADE",
    "METRICS",
    "NO_AUDIO",
    "SCORERS",
    "SHUFFLED",
    "SILENCE",
    "SPEECH",
    "TEXT_LLM",
    "Metric",
    "Scorer",
    "bleu",
    "cer",
    "chrf",
    "exact_match",
    "follows",
    "is_correct",
    "is_graded",
    "is_repetitive",
    "is_unspaced",
    "normalise",
    "reference",
    "rouge_l",
    "score",
    "wer",
    "word_errors",
]
