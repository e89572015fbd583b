"""The spelling of transcripts: some corpora are all lower or all upper case, while an LLM reads ordinary writing best.

A text style is a function from a transcript to a transcript. Shipped ones are in `STYLES`; a package adds its own, such as a
punctuation model, by an entry point of the group `mtbi.text_styles` (docs/plugins.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mtbi import plugins
from mtbi.text_units import unspaced

TextStyle = Callable[[str], str]
#: Notes of transcribers that are no speech: [noise], <unk>, {laugh}, 【笑】, and such words as (laughter) in round brackets.
TAG = re.compile(
    r"\[[^\[\]]*\]|<[^<>\s][^<>]*>|\{\w+\}|【[^【】]*】|\+\+\w+\+\+|&=[\w:]+|!SIL\b"
    r"|[(（](?:laugh(?:s|ter|ing)?|noise|music|applause|clap(?:s|ping)?|cough(?:s|ing)?|breath(?:s|ing|es)?|sighs?|sniffs?|sneezes?"
    r"|silence|pause|inaudible|unintelligible|indistinct|crosstalk|background noise|笑|笑い|音乐|音楽|拍手)[)）]",
    re.IGNORECASE,
)
MASK = "\ue000"  # stands for a tag while a text style writes


def strip_tags(text: str) -> str:
    """The text without tags; of a word that was said laughing (Switchboard: [laughter-yeah]) the word stays."""
    return TAG.sub(" ", re.sub(r"\[laughter-([^\[\]\s]+)\]", r"\1", text, flags=re.IGNORECASE))


def keep(text: str) -> str:
    """The transcript as it is."""
    return text


def lower(text: str) -> str:
    """Lower case, but for tags such as [NOISE]."""
    return _beside_tags(text, str.lower)


def sentence(text: str) -> str:
    """English sentence case: "AND I'M HERE" → "And I'm here." Text of a script without spaces is kept as it is.

    A transcript without any lower-case letter is lower-cased first; other capitals are kept. The first letter of each sentence
    and the word "i" become capital; a full stop ends a transcript that lacks a final mark. Names are not found: use a model.
    Tags such as [noise] stay as they are, and count as no words.
    """
    return _beside_tags(text, _sentence)


def _beside_tags(text: str, write: TextStyle) -> str:
    """`write` of the text, in which a character that is no letter stands for each tag."""
    tags = TAG.findall(text)
    if not tags or MASK in text:
        return write(text)
    parts = iter(tags)
    return re.sub(MASK, lambda _: next(parts), write(TAG.sub(MASK, text)))


def _sentence(text: str) -> str:
    if unspaced(text):
        return text
    if not any(letter.islower() for letter in text):
        text = text.lower()
    text = re.sub(r"\bi\b(?!\.\w)", "I", text)  # "i.e." stays
    text = re.sub(rf"(^\W*|(?<!\.\w)[.?!][\s{MASK}]+)(\w)", lambda found: found[1] + found[2].upper(), text.strip())
    spoken = text.rstrip(f" {MASK}")
    return f"{spoken}.{text[len(spoken) :]}" if re.search(r"\w$", spoken) else text


STYLES: dict[str, TextStyle] = {"none": keep, "lower": lower, "sentence": sentence}


def style(name: str) -> TextStyle:
    """The text style of that name, shipped or installed. Raises UserError for an unknown one."""
    return plugins.find(plugins.TEXT_STYLES, name, STYLES, "text style")
