"""Instructions about the form of an answer that a program can check, such as a number of words or JSON.

The names and arguments are those of IFEval (Zhou et al. 2023, arXiv 2311.07911) as Speech-IFEval (Lu et al. 2025, arXiv
2505.19037) uses them for speech. As in Speech-IFEval, a text in capitals may be in any language, and a line break ends a
paragraph. Sentences are counted by their end signs: IFEval counts them with NLTK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex

from mtbi.errors import UserError

Check = Callable[..., bool]  #: from an answer and the instruction's arguments

_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "less than": lambda count, limit: count < limit,
    "at most": lambda count, limit: count <= limit,
    "exactly": lambda count, limit: count == limit,
    "at least": lambda count, limit: count >= limit,
    "more than": lambda count, limit: count > limit,
}
_SENTENCE_END = regex.compile(r"(?:[.!?…]+[\p{Pe}\p{Pf}\"']*(?=\s|$)|[。！？]+)")
_FENCE = re.compile(r"^```\w*\s*(.*?)\s*```$", re.DOTALL)


def _compare(count: int, relation: str | None, limit: int) -> bool:
    """Whether a count stands in a relation to a limit. No relation means `at least`, as for most of IFEval's counts."""
    return _RELATIONS[relation or "at least"](count, int(limit))


def _count(pattern: str, answer: str, flags: int = re.IGNORECASE) -> int:
    """How often a pattern occurs."""
    return len(re.findall(pattern, answer, flags | re.MULTILINE))


def _is_json(answer: str) -> bool:
    """Whether an answer is one JSON document. A Markdown fence around it is allowed."""
    fenced = _FENCE.match(answer.strip())
    try:
        json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return True


def _sentences(answer: str) -> int:
    """The number of sentences. A last one without an end sign counts."""
    parts = [part for part in _SENTENCE_END.split(answer) if regex.search(r"[\p{L}\p{N}]", part)]
    return len(parts)


def _paragraphs(answer: str) -> int:
    """The number of paragraphs: between line breaks or dividers `***`."""
    return sum(bool(part.strip()) for part in re.split(r"\*\*\*|\n", answer))


def _bullets(answer: str) -> int:
    """The number of lines that begin with `-` or with one `*`."""
    return _count(r"^[ \t]*(?:-|\*(?!\*))", answer)


def _quoted(answer: str) -> bool:
    """Whether an answer stands in double quotation marks."""
    text = answer.strip()
    return len(text) > 1 and text[0] in '"“' and text[-1] in '"”'


def _starts_with(answer: str, start: str) -> bool:
    """Whether an answer starts with a phrase, in any case. Quotation marks before it are ignored."""
    return answer.strip().strip("\"'").casefold().startswith(start.strip().casefold())


def _ends_with(answer: str, end: str) -> bool:
    """Whether an answer ends with a phrase, in any case. A quotation mark after it is ignored."""
    return answer.strip().strip('"').casefold().endswith(end.strip().casefold())


#: The checks by IFEval's name. Each is called with the answer and with the arguments of an item's `kwargs`.
CHECKS: dict[str, Check] = {
    "change_case:english_capital": lambda answer: answer.isupper(),
    "change_case:english_lowercase": lambda answer: answer.islower(),
    "detectable_format:json_format": _is_json,
    "detectable_format:number_bullet_lists": lambda answer, num_bullets: _bullets(answer) == num_bullets,
    "detectable_format:title": lambda answer: bool(re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", answer)),
    "startend:quotation": _quoted,
    "startend:end_checker": lambda answer, end_phrase: _ends_with(answer, end_phrase),
    "startend:start_checker": lambda answer, start_phrase: _starts_with(answer, start_phrase),
    "combination:repeat_prompt": lambda answer, prompt_to_repeat: _starts_with(answer, prompt_to_repeat),
    "keywords:existence": lambda answer, keywords: all(_count(re.escape(word), answer) for word in keywords),
    "keywords:forbidden_words": lambda answer, forbidden_words: (
        not any(_count(rf"\b{re.escape(word)}\b", answer) for word in forbidden_words)
    ),
    "keywords:frequency": lambda answer, keyword, frequency, relation=None: _compare(
        _count(re.escape(keyword), answer), relation, frequency
    ),
    "length_constraints:number_words": lambda answer, num_words, relation=None: _compare(
        _count(r"\w+", answer), relation, num_words
    ),
    "length_constraints:number_sentences": lambda answer, num_sentences, relation=None: _compare(
        _sentences(answer), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": lambda answer, num_paragraphs: _paragraphs(answer) == num_paragraphs,
    "punctuation:no_comma": lambda answer: "," not in answer,
}


def follows_all(answer: str, names: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer follows every instruction (strict, by prompt). An empty answer follows none.

    `arguments` holds one mapping for each name. Arguments of None are left out, since some copies of IFEval hold all of them.
    Raises UserError for an unknown name or for wrong arguments.
    """
    return bool(answer.strip()) and all(_follows(answer, name, given) for name, given in _pairs(names, arguments))


def check_names(names: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for instructions that `follows_all` cannot check."""
    for name, given in _pairs(names, arguments):
        _follows("probe", name, given)


def _pairs(names: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    given = arguments or [{}] * len(names)
    if len(given) != len(names):
        raise UserError(f"{len(names)} instructions (`instruction_id_list`) have {len(given)} groups of arguments (`kwargs`)")
    return list(zip(names, given, strict=True))


def _follows(answer: str, name: str, given: Mapping[str, Any]) -> bool:
    if name not in CHECKS:
        raise UserError(f"instruction {name!r} cannot be checked; there are {', '.join(CHECKS)}")
    try:
        return CHECKS[name](answer, **{key: value for key, value in (given or {}).items() if value is not None})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"instruction {name!r} has unusable arguments {dict(given)}: {error!r}") from error
