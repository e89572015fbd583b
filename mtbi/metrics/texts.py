"""How near answers are to their references, as texts: exact match, form, error rates, BLEU, chrF and ROUGE-L.

All texts are compared in a form that keeps what changes the meaning: see `mtbi.metrics.normalise`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import jiwer
import regex
from rapidfuzz.distance import LCSseq

from mtbi import text_units
from mtbi.metrics.normalise import (
    fold,
    has_non_latin_letters,
    is_unspaced,
    normalise,
    normalise_english,
    normalise_words,
)

_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.)])\s+")
_BETWEEN_ITEMS = re.compile(r",?\s+and\s+|,(?=\s|$)|[;、，；]")


def exact_match(answer: str | None, reference: str) -> bool:
    """Whether both texts are equal after `normalise`. If nothing remains (emoji), they are compared as written."""
    texts = normalise(answer or ""), normalise(reference)
    return texts[0] == texts[1] if any(texts) else fold(answer or "").split() == fold(reference).split()


def follows(answer: str, form: str) -> bool:
    """Whether an answer, right or wrong, has the form that the prompt asks for."""
    return re.fullmatch(text_units.nfc(form), text_units.nfc(answer).strip(), re.DOTALL) is not None


def _clean(answers: Sequence[str], references: Sequence[str], english: bool) -> tuple[list[str], list[str]]:
    """Normalised answers and references, without the pairs whose reference is empty."""
    kept: tuple[list[str], list[str]] = ([], [])
    for answer, reference in zip(answers, references, strict=True):
        clean = normalise_english if english and not has_non_latin_letters(reference) else normalise_words
        if cleaned := clean(reference):
            kept[0].append(clean(answer))
            kept[1].append(cleaned)
    return kept


@lru_cache(maxsize=1 << 17)  # an answer is in many cells of a table
def word_errors(answer: str, reference: str, english: bool = False) -> tuple[int, int]:
    """The word errors of an answer (substitutions, deletions, insertions) and the number of words of its reference.

    Each character of a script without spaces counts as a word, so a text of two scripts has a mixed error rate. An empty
    reference has no words and no errors.
    """
    hypotheses, truths = (
        [" ".join(unit.strip() for unit in text_units.units(text)) for text in texts]
        for texts in _clean([answer], [reference], english)
    )
    if not truths:
        return 0, 0
    counted = jiwer.process_words(truths, hypotheses)
    return (
        counted.substitutions + counted.deletions + counted.insertions,
        counted.substitutions + counted.deletions + counted.hits,
    )


def wer(answers: Sequence[str], references: Sequence[str], english: bool = False) -> float | None:
    """Word error rate of all answers together. Empty references are left out; the result is None where none remains."""
    counts = [word_errors(answer, truth, english) for answer, truth in zip(answers, references, strict=True)]
    words = sum(count for _, count in counts)
    return sum(errors for errors, _ in counts) / words if words else None


def cer(answers: Sequence[str], references: Sequence[str]) -> float | None:
    """Character error rate of all answers together. Empty references are left out; the result is None where none remains."""
    hypotheses, truths = _clean(answers, references, english=False)
    return float(jiwer.cer(truths, hypotheses)) if truths else None


@cache
def bleu_tokenizer(name: str) -> Callable[[str], str]:
    """sacrebleu's tokenizer of that name."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=name).tokenizer


def tokenize_for_bleu(text: str, reference: str) -> str:
    """The text cut for the reference's script: by `zh` for Chinese, `char` for others without spaces, else `13a`."""
    if not is_unspaced(reference):
        return bleu_tokenizer("13a")(text.rstrip())
    chinese = regex.search(r"\p{Han}", reference) and not regex.search(r"[\p{Hiragana}\p{Katakana}]", reference)
    return bleu_tokenizer("zh" if chinese else "char")(text.rstrip())


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU between 0 and 1, with sacrebleu's default signature except for the tokenizer of scripts without spaces."""
    from sacrebleu import corpus_bleu

    pairs = [(text_units.nfc(answer), text_units.nfc(truth)) for answer, truth in zip(answers, references, strict=True)]
    hypotheses = [tokenize_for_bleu(answer, truth) for answer, truth in pairs]
    truths = [tokenize_for_bleu(truth, truth) for _, truth in pairs]
    return float(corpus_bleu(hypotheses, [truths], tokenize="none", force=True).score) / 100


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF (Popovic 2015) between 0 and 1."""
    from sacrebleu import corpus_chrf

    hypotheses, truths = ([text_units.nfc(text) for text in texts] for texts in (answers, references))
    return float(corpus_chrf(hypotheses, [truths]).score) / 100


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of units, after `normalise`. Two empty texts have 1."""
    said, expected = ([unit.strip() for unit in text_units.units(normalise(text))] for text in (answer, reference))
    total = len(said) + len(expected)
    return 2 * LCSseq.similarity(said, expected) / total if total else 1.0


def list_items(text: str) -> Counter[str]:
    """The items of a listing after `normalise`: its lines, or the parts of a single line between commas and "and"."""
    lines = [line for line in text_units.nfc(text).splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else _BETWEEN_ITEMS.split("".join(lines))
    return Counter(item for part in parts if (item := normalise(_BULLET.sub("", part))))


def list_f1(answer: str, reference: str) -> float:
    """F1 of the items that an answer lists, in any order (2 · shared / (listed + expected)). Two empty lists have 1."""
    listed, expected = list_items(answer), list_items(reference)
    total = listed.total() + expected.total()
    return 2 * (listed & expected).total() / total if total else 1.0


def word_similarity(answer: str, reference: str, english: bool = False) -> float:
    """1 - word error rate of one answer, at least 0. Where the script has no spaces, characters are counted."""
    if is_unspaced(reference):
        return character_similarity(answer, reference)
    return _one_minus(wer([answer], [reference], english), answer)


def character_similarity(answer: str, reference: str) -> float:
    """1 - character error rate of one answer, at least 0."""
    return _one_minus(cer([answer], [reference]), answer)


def _one_minus(rate: float | None, answer: str) -> float:
    """1 - an error rate. An empty reference has none; then only an empty answer is like it."""
    return 1.0 - min(1.0, rate) if rate is not None else float(not normalise(answer))
