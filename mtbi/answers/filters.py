"""Rules by which answers of the text LLM are left out of training (`behaviour.filter`)."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mtbi.errors import UserError
from mtbi.metrics.repetition import is_repetitive


@dataclass(frozen=True)
class CheckedAnswer:
    """What the rules see of an answer."""

    transcript: str
    text: str
    truncated: bool  #: cut off at its longest length, or because it repeats itself


#: Japanese is written in three scripts, which Unicode names apart. They count as the one that Chinese is written in.
JAPANESE = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}


def main_script(text: str) -> str:
    """The script of most letters of a text, by their Unicode names, such as `LATIN`; empty without letters."""
    letters = (letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    scripts = Counter(JAPANESE.get(name, name) for name in names)
    return scripts.most_common(1)[0][0] if scripts else ""


def in_other_script(answer: CheckedAnswer) -> bool:
    """Whether most letters of the answer are of another script than most letters of the transcript."""
    scripts = main_script(answer.text), main_script(answer.transcript)
    return all(scripts) and scripts[0] != scripts[1]


#: The rules in the order in which they are tried. The first one that holds is the reason.
RULES: dict[str, Callable[[CheckedAnswer], bool]] = {
    "empty": lambda answer: not answer.text.strip(),
    "repetitive": lambda answer: is_repetitive(answer.text),
    "script": in_other_script,
    "truncated": lambda answer: answer.truncated,
}


def check_names(names: Iterable[str], where: str) -> None:
    """Raises UserError, which begins with `where`, for a rule that does not exist."""
    for name in names:
        if name not in RULES:
            near = difflib.get_close_matches(name, RULES, 1)
            raise UserError(
                f"{where}: no rule {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RULES)}")
            )


def reason(answer: CheckedAnswer, names: Iterable[str]) -> str:
    """The first of the named rules that leaves the answer out; empty where none does."""
    wanted = set(names)
    return next((name for name, holds in RULES.items() if name in wanted and holds(answer)), "")
