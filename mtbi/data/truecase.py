"""The spelling of transcripts: some corpora are all lower or all upper case, while an LLM reads ordinary writing best.

A text style is a function from a transcript to a transcript. Shipped ones are in `STYLES`; a package adds its own, such as a
punctuation model, by an entry point of the group `mtbi.text_styles` (docs/plugins.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mtbi import plugins
from mtbi.data.text_units import unspaced

TextStyle = Callable[[str], str]


def keep(text: str) -> str:
    """The transcript as it is."""
    return text


def sentence(text: str) -> str:
    """English sentence case: "AND I'M HERE" → "And I'm here." Text of a script without spaces is kept as it is.

    A transcript without any lower-case letter is lower-cased first; other capitals are kept. The first letter of each sentence
    and the word "i" become capital; a full stop ends a transcript that lacks a final mark. Names are not found: use a model.
    """
    if unspaced(text):
        return text
    if not any(letter.islower() for letter in text):
        text = text.lower()
    text = re.sub(r"\bi\b(?!\.\w)", "I", text)  # "i.e." stays
    text = re.sub(r"(^\W*|(?<!\.\w)[.?!]\s+)(\w)", lambda found: found[1] + found[2].upper(), text.strip())
    return text + "." if re.search(r"\w$", text) else text


STYLES: dict[str, TextStyle] = {"none": keep, "lower": str.lower, "sentence": sentence}


def style(name: str) -> TextStyle:
    """The text style of that name, shipped or installed. Raises UserError for an unknown one."""
    return plugins.find(plugins.TEXT_STYLES, name, STYLES, "text style")
