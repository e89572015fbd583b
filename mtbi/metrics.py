"""How good answers are.

Every comparison is between texts in one Unicode form, and keeps what changes the meaning: combining marks (the vowels of Hindi
or Thai, the points of Arabic), a minus before a digit, the signs of "C++" and "C#", those between the parts of a formula, per
cent, degree and currency signs, superscripts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import jiwer
import regex

from mtbi import text_units
from mtbi.text_units import UNSPACED

#: `exact` match; word error rate after Whisper's normaliser for all languages or for English; character error rate; BLEU and
#: chrF of translations; chrF alone as a similarity of free texts that needs no model.
SCORERS = ("exact", "wer", "wer_english", "cer", "bleu", "similarity")

_SUPERSCRIPTS = regex.compile(r"([²³¹¼-¾⁰-₟⅐-⅟]+)")  # NFKC would make "10²" of "10²" and "102" one text
_INVISIBLE = regex.compile(r"[\p{Cf}--[\u200b\u200c]]|\p{Variation_Selector}|[\u20e3ـ]", regex.V1)  # with the Arabic tatweel
_MINUS = regex.compile(r"[−‐‑‒–](?=\p{Sc}?\p{N})")
#: Signs of a formula: between its parts, or before a number.
_FORMULA = (
    r"(?:(?<=[\p{L}\p{N}\p{M}]\ ?)[<=>¬±×÷√≠≤≥≈∈∧∨∪∩](?=\ ?-?[\p{L}\p{N}])"
    r"|[<=>¬±×÷√≠≤≥≈](?=-?\p{N})|(?<=\p{N}\ ?)\+(?=\ ?\p{N}))"
)
_SIGNS = regex.compile(_FORMULA + "|(?<=\\p{N}) ?°|(?<=\\p{L})[♭♯]")
_DROPPED = regex.compile(
    rf"""(?! [\p{{L}}\p{{N}}'%‰°\p{{Sc}}]
          | (?<=[\p{{L}}\p{{N}}\p{{M}}])\p{{M}}                       # not the mark of a dropped sign
          | (?<![\p{{L}}\p{{N}}\p{{M}}])-(?=\p{{Sc}}?\p{{N}})           # -5, but not 3-5
          | (?<=\p{{L}}\p{{M}}*\+*)\+ | (?<=\p{{N}}\+*)\+(?!\+*[\p{{L}}\p{{N}}])   # C++, 18+
          | (?<=[\p{{L}}\p{{N}}])\# | \#(?=[\p{{L}}\p{{N}}])          # C#, #1
          | (?<=\p{{L}})[♭♯] | (?<![\p{{L}}\p{{M}}.])\.(?=\p{{N}})   # A♯, .5, 1.5
          | {_FORMULA}                                        # 5 > 3, 2+3
        )[\s\S]""",
    regex.VERBOSE,
)
_BEFORE_SIGN = regex.compile(r"(?<=\p{N}) (?=[%‰°]|\p{Sc}(?! ?\p{N}))")  # "50 %" is "50%"
_AFTER_SIGN = regex.compile(r"(?<!\p{N} ?)(\p{Sc}) (?=\p{N})")
_AT_FORMULA = regex.compile(r" ?([<=>¬±×÷√≠≤≥≈∈∧∨∪∩]|(?<=\p{N} ?)\+(?= ?\p{N})) ?")
_AT_UNSPACED = regex.compile(rf" (?={UNSPACED.pattern})|(?<={UNSPACED.pattern}) ")
_REMARKS = regex.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^)]+\)")  # noises, speakers and asides, as Whisper's normalisers drop them
_LETTERS = regex.compile(r"\p{L}")
_NOT_LATIN = regex.compile(r"[\p{L}--\p{Latin}]", regex.V1)


def fold(text: str) -> str:
    """One form of a text without case: compatibility characters as their plain ones, superscripts and fractions kept."""
    parts = _SUPERSCRIPTS.split(_INVISIBLE.sub("", text))
    plain = "".join(part if place % 2 else unicodedata.normalize("NFKC", part) for place, part in enumerate(parts))
    return unicodedata.normalize("NFC", plain.replace("İ", "i").casefold())


def normalise(text: str) -> str:
    """No case, no punctuation except apostrophes inside words, single spaces, none where the script has no spaces."""
    text = _MINUS.sub("-", fold(text).replace("’", "'").replace("ʼ", "'"))
    text = _DROPPED.sub(" ", text).replace(" '", " ").replace("' ", " ").strip("'")
    text = _AT_FORMULA.sub(r"\1", _BEFORE_SIGN.sub("", " ".join(text.split())))
    return _AT_UNSPACED.sub("", _AFTER_SIGN.sub(r"\1", text))


def exact_match(answer: str | None, reference: str) -> bool:
    """Whether the two are the same after `normalise`; where it leaves nothing, such as of an emoji, as they are written."""
    given, right = normalise(answer or ""), normalise(reference)
    return given == right if given or right else fold(answer or "").split() == fold(reference).split()


def follows(answer: str, form: str) -> bool:
    """Whether an answer has the form that the prompt asks for, right or wrong."""
    return re.fullmatch(text_units.nfc(form), text_units.nfc(answer).strip(), re.DOTALL) is not None


@cache
def whisper_english() -> Callable[[str], str]:
    """Whisper's English normaliser (Radford et al. 2022, arXiv 2212.04356), without its list of British spellings."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def _spelt(signs: regex.Match[str]) -> str:
    """The Unicode names of signs."""
    return "".join(f" {unicodedata.name(sign, '')} " for sign in signs[0].strip())


def normalise_english(text: str) -> str:
    """Whisper's English normalisation, with the signs spelt that it would drop and that change the meaning."""
    text = _MINUS.sub("-", _INVISIBLE.sub("", text_units.nfc(text)))
    text = regex.sub(r"(?<![\p{L}\p{N}\p{M}])-(?=[$¢€£]?\p{N})", "minus ", text)
    text = _SIGNS.sub(_spelt, text)
    text = regex.sub(r"(?<=\p{L}(?: plus)*)\+|(?<=\p{N}(?: plus)*)\+(?!\+*[\p{L}\p{N}])", " plus", text)
    text = regex.sub(r"(?<=\p{L})#", " sharp", regex.sub(r"#(?=[\p{L}\p{N}])", "hash ", text))
    text = regex.sub(r"(?<=\p{N}) +(?=%)|(?<=[$¢€£]) +(?=\p{N})", "", text)
    text = regex.sub(r"(\p{N}[\p{N}.,]*) ?([$¢€£])(?!\p{N})", r"\2\1", text)
    text = regex.sub(r"[\p{Sc}--[$¢€£]]", _spelt, _SUPERSCRIPTS.sub(_spelt, text), flags=regex.V1)
    return whisper_english()(text).strip()


def normalise_words(text: str) -> str:
    """As Whisper's normaliser for all languages, which also drops remarks in brackets and cuts words at apostrophes."""
    return normalise(normalise(_REMARKS.sub("", text)).replace("'", " "))


def is_unspaced(text: str) -> bool:
    """Whether most letters of a text are of scripts that put no spaces between words."""
    return 2 * len(UNSPACED.findall(text)) > len(_LETTERS.findall(text)) > 0


def fitting(scorer: str, reference: str) -> str:
    """The scorer that a reference is scored by: `cer` where a task says word error rate and the script has no words."""
    return "cer" if scorer.startswith("wer") and is_unspaced(reference) else scorer


def _cleaned(answers: Sequence[str], references: Sequence[str], english: bool) -> tuple[list[str], list[str]]:
    """Normalised answers and references, without the pairs whose reference is empty."""
    kept: tuple[list[str], list[str]] = ([], [])
    for answer, reference in zip(answers, references, strict=True):
        clean = normalise_english if english and not _NOT_LATIN.search(reference) else normalise_words
        if cleaned := clean(reference):
            kept[0].append(clean(answer))
            kept[1].append(cleaned)
    return kept


def wer(answers: Sequence[str], references: Sequence[str], english: bool = False) -> float | None:
    """Word error rate of all answers together; empty references are left out, None where none is left.

    Where a script has no spaces each character counts as a word, so that a text of two scripts has a mixed error rate.
    """
    cleaned = [[" ".join(unit.strip() for unit in text_units.units(text)) for text in texts]
               for texts in _cleaned(answers, references, english)]  # fmt: skip
    return float(jiwer.wer(cleaned[1], cleaned[0])) if cleaned[1] else None


def cer(answers: Sequence[str], references: Sequence[str]) -> float | None:
    """Character error rate of all answers together; empty references are left out, None where none is left."""
    cleaned, right = _cleaned(answers, references, english=False)
    return float(jiwer.cer(right, cleaned)) if right else None


def nearness(scorer: str, answer: str, reference: str) -> float:
    """How near one answer is to its reference, between 0 and 1: 1 - error rate, chrF or exact match, as the scorer says."""
    scorer = fitting(scorer, reference)
    if scorer.startswith("wer") or scorer == "cer":
        english = scorer == "wer_english"
        rate = cer([answer], [reference]) if scorer == "cer" else wer([answer], [reference], english)
        return 1.0 - min(1.0, rate) if rate is not None else float(not normalise(answer))
    return chrf([answer], [reference]) if scorer in ("bleu", "similarity") else float(exact_match(answer, reference))


@cache
def bleu_tokenizer(name: str) -> Callable[[str], str]:
    """sacrebleu's tokenizer of that name."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=name).tokenizer


def tokenize_for_bleu(text: str, reference: str) -> str:
    """The text cut as the reference's script needs: `zh` for Chinese, `char` for others without spaces, else `13a`."""
    if not is_unspaced(reference):
        return bleu_tokenizer("13a")(text.rstrip())
    chinese = regex.search(r"\p{Han}", reference) and not regex.search(r"[\p{Hiragana}\p{Katakana}]", reference)
    return bleu_tokenizer("zh" if chinese else "char")(text.rstrip())


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU between 0 and 1, sacrebleu's default signature but for the tokenizer of scripts without spaces."""
    from sacrebleu import corpus_bleu

    texts = [(text_units.nfc(answer), text_units.nfc(right)) for answer, right in zip(answers, references, strict=True)]
    cut = [tokenize_for_bleu(answer, right) for answer, right in texts]
    right = [tokenize_for_bleu(right, right) for _, right in texts]
    return float(corpus_bleu(cut, [right], tokenize="none", force=True).score) / 100


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF (Popovic 2015) between 0 and 1."""
    from sacrebleu import corpus_chrf

    texts, right = ([text_units.nfc(text) for text in some] for some in (answers, references))
    return float(corpus_chrf(texts, [right]).score) / 100
