"""One form of a text for comparisons: case, punctuation and Unicode variants that change no meaning are removed.

What changes the meaning stays: combining marks (the vowels of Hindi or Thai, the points of Arabic), a minus before a digit, the
signs of "C++" and "C#", the signs between the parts of a formula, per cent, degree and currency signs, superscripts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache

import regex

from mtbi import text_units
from mtbi.text_units import UNSPACED

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
_REMARKS = regex.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^)]+\)")  # noises, speakers and asides; Whisper's normalisers drop them too
_LETTERS = regex.compile(r"\p{L}")
_NOT_LATIN = regex.compile(r"[\p{L}--\p{Latin}]", regex.V1)


def fold(text: str) -> str:
    """The text without case and with compatibility characters replaced by plain ones. Superscripts and fractions stay."""
    parts = _SUPERSCRIPTS.split(_INVISIBLE.sub("", text))
    plain = "".join(part if index % 2 else unicodedata.normalize("NFKC", part) for index, part in enumerate(parts))
    return unicodedata.normalize("NFC", plain.replace("İ", "i").casefold())


@lru_cache(maxsize=1 << 17)  # an answer is in many cells of a table, and in several metrics
def normalise(text: str) -> str:
    """The text without case and punctuation, except apostrophes inside words.

    Words are separated by one space, and by none where the script has no spaces.
    """
    text = _MINUS.sub("-", fold(text).replace("’", "'").replace("ʼ", "'"))
    text = _DROPPED.sub(" ", text).replace(" '", " ").replace("' ", " ").strip("'")
    text = _AT_FORMULA.sub(r"\1", _BEFORE_SIGN.sub("", " ".join(text.split())))
    return _AT_UNSPACED.sub("", _AFTER_SIGN.sub(r"\1", text))


@cache
def whisper_english() -> Callable[[str], str]:
    """Whisper's English normaliser (Radford et al. 2022, arXiv 2212.04356), without its list of British spellings."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def _spell(signs: regex.Match[str]) -> str:
    """The Unicode names of signs."""
    return "".join(f" {unicodedata.name(sign, '')} " for sign in signs[0].strip())


def normalise_english(text: str) -> str:
    """Whisper's English normalisation. Signs that it would drop although they change the meaning are spelt out first."""
    text = _MINUS.sub("-", _INVISIBLE.sub("", text_units.nfc(text)))
    text = regex.sub(r"(?<![\p{L}\p{N}\p{M}])-(?=[$¢€£]?\p{N})", "minus ", text)
    text = _SIGNS.sub(_spell, text)
    text = regex.sub(r"(?<=\p{L}(?: plus)*)\+|(?<=\p{N}(?: plus)*)\+(?!\+*[\p{L}\p{N}])", " plus", text)
    text = regex.sub(r"(?<=\p{L})#", " sharp", regex.sub(r"#(?=[\p{L}\p{N}])", "hash ", text))
    text = regex.sub(r"(?<=\p{N}) +(?=%)|(?<=[$¢€£]) +(?=\p{N})", "", text)
    text = regex.sub(r"(\p{N}[\p{N}.,]*) ?([$¢€£])(?!\p{N})", r"\2\1", text)
    text = regex.sub(r"[\p{Sc}--[$¢€£]]", _spell, _SUPERSCRIPTS.sub(_spell, text), flags=regex.V1)
    return whisper_english()(text).strip()


def normalise_words(text: str) -> str:
    """The words of a text: `normalise`, without remarks in brackets, and with words cut at apostrophes.

    Whisper's normaliser for all languages does the same.
    """
    return normalise(normalise(_REMARKS.sub("", text)).replace("'", " "))


def is_unspaced(text: str) -> bool:
    """Whether most letters of a text are of scripts that put no spaces between words."""
    return 2 * len(UNSPACED.findall(text)) > len(_LETTERS.findall(text)) > 0


def has_non_latin_letters(text: str) -> bool:
    """Whether a text has letters of a script other than Latin."""
    return _NOT_LATIN.search(text) is not None
