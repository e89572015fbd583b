"""Text styles: the spelling of transcripts. Some corpora are all upper case; an LLM reads ordinary writing best.

A text style is a function from a transcript to a transcript. Shipped ones are in `STYLES`; a package adds its own, such as a
punctuation model, by an entry point of the group `mtbi.text_styles` (docs/plugins.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mtbi import plugins
from mtbi.text_units import unspaced

TextStyle = Callable[[str], str]
#: Tags of transcribers, which are no speech: [noise], <unk>, {laugh}, 【笑】, and words like (laughter) in round brackets.
TAG = re.compile(
    r"\[[^\[\]]*\]|<[^<>\s][^<>]*>|\{\w+\}|【[^【】]*】|\+\+\w+\+\+|&=[\w:]+|!SIL\b"
    r"|[(（](?:laugh(?:s|ter|ing)?|noise|music|applause|clap(?:s|ping)?|cough(?:s|ing)?|breath(?:s|ing|es)?|sighs?|sniffs?|sneezes?"
    r"|silence|pause|inaudible|unintelligible|indistinct|crosstalk|background noise|笑|笑い|音乐|音楽|拍手)[)）]",
    re.IGNORECASE,
)
MASK = "\ue000"  # replaces a tag while a text style runs


def strip_tags(text: str) -> str:
    """The text without tags. A word that was spoken with laughter (Switchboard: [laughter-yeah]) stays."""
    return TAG.sub(" ", re.sub(r"\[laughter-([^\[\]\s]+)\]", r"\1", text, flags=re.IGNORECASE))


def keep(text: str) -> str:
    """The transcript as it is."""
    return text


def lower(text: str) -> str:
    """Lower case, except for tags such as [NOISE]."""
    return _beside_tags(text, str.lower)


def sentence(text: str) -> str:
    """English sentence case: "AND I'M HERE" → "And I'm here." Text of a script without spaces is kept as it is.

    A transcript without any lower-case letter is lower-cased first; other capitals are kept. The first letter of each sentence
    and the word "i" become capital. A transcript without a final mark gets a full stop. Names need a model and stay as they
    are. Tags such as [noise] stay as they are, and do not count as words.
    """
    return _beside_tags(text, _sentence)


def _beside_tags(text: str, write: TextStyle) -> str:
    """Apply `write` to the text while a character that is no letter replaces each tag."""
    tags = TAG.findall(text)
    if not tags or MASK in text:
        return write(text)
    remaining = iter(tags)
    return re.sub(MASK, lambda _: next(remaining), write(TAG.sub(MASK, text)))


def _sentence(text: str) -> str:
    """`sentence` for text without tags."""
    if unspaced(text):
        return text
    if not any(letter.islower() for letter in text):
        text = text.lower()
    text = re.sub(r"\bi\b(?!\.\w)", "I", text)  # "i.e." stays
    text = re.sub(rf"(^\W*|(?<!\.\w)[.?!][\s{MASK}]+)(\w)", lambda match: match[1] + match[2].upper(), text.strip())
    spoken = text.rstrip(f" {MASK}")
    return f"{spoken}.{text[len(spoken) :]}" if re.search(r"\w$", spoken) else text


STYLES: dict[str, TextStyle] = {"none": keep, "lower": lower, "sentence": sentence}


def style(name: str) -> TextStyle:
    """The text style of that name, shipped or installed. Raises UserError for an unknown one."""
    return plugins.find(plugins.TEXT_STYLES, name, STYLES, "text style")
