"""The metrics of answers: one form of a text (`normalise`), comparisons of texts (`texts`), one record a metric (`records`)."""

from mtbi.metrics.normalise import is_unspaced, normalise
from mtbi.metrics.records import (
    CASCADE,
    METRICS,
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
from mtbi.metrics.texts import bleu, cer, chrf, exact_match, follows, wer

__all__ = [
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
    "is_unspaced",
    "normalise",
    "reference",
    "score",
    "wer",
]
