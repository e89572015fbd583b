"""How good answers are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import jiwer

#: `exact` match; word error rate after Whisper's normaliser for all languages or for English; BLEU and chrF of translations;
#: chrF alone as a similarity of free texts that needs no model.
SCORERS = ("exact", "wer", "wer_english", "bleu", "similarity")


def normalise(text: str) -> str:
    """Lower case, no punctuation except apostrophes inside words, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w\s']|_", " ", text).replace(" '", " ").replace("' ", " ").strip("'").split())


def exact_match(answer: str | None, reference: str) -> bool:
    """Whether the two are the same after `normalise`."""
    return normalise(answer or "") == normalise(reference)


def follows(answer: str, form: str) -> bool:
    """Whether an answer has the form that the prompt asks for, right or wrong."""
    return re.fullmatch(form, answer.strip(), re.DOTALL) is not None


@cache
def normaliser(english: bool) -> Callable[[str], str]:
    """Whisper's text normaliser (Radford et al. 2022, arXiv 2212.04356): for English, or for any language."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if english else BasicTextNormalizer()


def wer(answers: Sequence[str], references: Sequence[str], english: bool = False) -> float | None:
    """Word error rate of all answers together; empty references are left out, None where none is left."""
    clean = normaliser(english)
    pairs = [(clean(r).strip(), clean(a).strip()) for a, r in zip(answers, references, strict=True)]
    pairs = [(reference, answer) for reference, answer in pairs if reference]
    return float(jiwer.wer([r for r, _ in pairs], [a for _, a in pairs])) if pairs else None


def nearness(scorer: str, answer: str, reference: str) -> float:
    """How near one answer is to its reference, between 0 and 1: 1 - WER, chrF or exact match, as the scorer says."""
    if scorer.startswith("wer"):
        rate = wer([answer], [reference], english=scorer == "wer_english")
        return 1.0 - min(1.0, rate) if rate is not None else float(not normalise(answer))
    return chrf([answer], [reference]) if scorer in ("bleu", "similarity") else float(exact_match(answer, reference))


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU (sacrebleu's default signature) between 0 and 1."""
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(answers), [list(references)]).score) / 100


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF (Popovic 2015) between 0 and 1."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(answers), [list(references)]).score) / 100
