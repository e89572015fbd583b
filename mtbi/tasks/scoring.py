"""How good an answer is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import jiwer

from mtbi.errors import UserError


def normalise(text: str) -> str:
    """Lower case, no punctuation except apostrophes inside words, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w\s']|_", " ", text).replace(" '", " ").replace("' ", " ").strip("'").split())


def exact_match(answer: str | None, reference: str) -> bool:
    """Whether the two are the same after `normalise`."""
    return normalise(answer or "") == normalise(reference)


#: Agreement with the text LLM's own answer is exact match.
agreement = exact_match


def wer(answers: Sequence[str], references: Sequence[str]) -> float | None:
    """Word error rate of all answers together; empty references are left out, None where none is left."""
    pairs = [(normalise(r), normalise(a)) for a, r in zip(answers, references, strict=True) if normalise(r)]
    return float(jiwer.wer([r for r, _ in pairs], [a for _, a in pairs])) if pairs else None


def score(scorer: str, answer: str, reference: str) -> float:
    """A number between 0 and 1, higher is better, by the scorer a task names (`exact` or `wer`)."""
    if scorer == "exact":
        return float(exact_match(answer, reference))
    if scorer == "wer":
        rate = wer([answer], [reference])
        return 1.0 - min(1.0, rate) if rate is not None else float(not normalise(answer))
    raise UserError(f"unknown scorer {scorer!r}: choose `exact` or `wer`")
