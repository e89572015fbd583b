"""The spelling of transcripts: some corpora are all lower or all upper case, while an LLM reads ordinary writing best.

A text style is a function from a transcript to a transcript. Shipped ones are in `STYLES`; a package adds its own, such as a
punctuation model, by an entry point in the group `mtbi.text_style`:

    [options.entry_points]
    mtbi.text_style =
        german = my_package.writing:restore_german
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import entry_points

from mtbi.errors import UserError

GROUP = "mtbi.text_style"
TextStyle = Callable[[str], str]


def keep(text: str) -> str:
    """The transcript as it is."""
    return text


def sentence(text: str) -> str:
    """English sentence case: "AND I'M HERE" → "And I'm here."

    A transcript without any lower-case letter is lower-cased first; other capitals are kept. The first letter of each sentence
    and the word "i" become capital; a full stop ends a transcript that lacks a final mark. Names are not found: use a model.
    """
    if not any(letter.islower() for letter in text):
        text = text.lower()
    text = re.sub(r"\bi\b(?!\.\w)", "I", text)  # "i.e." stays
    text = re.sub(r"(^\W*|(?<!\.\w)[.?!]\s+)(\w)", lambda found: found[1] + found[2].upper(), text.strip())
    return text + "." if re.search(r"\w$", text) else text


STYLES: dict[str, TextStyle] = {"none": keep, "lower": str.lower, "sentence": sentence}


def style(name: str) -> TextStyle:
    """The text style of that name, shipped or installed. Raises UserError for an unknown one."""
    if name in STYLES:
        return STYLES[name]
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in installed:
        return installed[name].load()
    names = [*STYLES, *installed]
    nearest = get_close_matches(name, names, 1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(names)}"
    raise UserError(f"text style {name!r} is unknown: {hint} (other packages add styles by the entry point group {GROUP})")
