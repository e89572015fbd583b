"""The miniature world: digit strings, and the right answer to each task about them.

No audio or model is used here. The wordings of the tasks are in `mtbi/answers/library/digits.yaml`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FRENCH = ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf")
FILLERS = ("um", "uh", "er", "hmm")
MIN_DIGITS, MAX_DIGITS = 2, 6

#: Tasks that speech training uses. The other tasks of digits.yaml are never trained from speech.
TRAINED_TASKS = ("repeat", "reverse", "count", "last", "maximum", "sort", "numerals", "french", "drop_first", "has_seven")
#: Tasks that only the text LLM has seen; they measure task generalisation.
UNSEEN_TASKS = (
    "first", "minimum", "sort_down", "add_one", "subtract_one", "drop_last", "parity", "swap_ends", "second", "twice",
)  # fmt: skip


def _words(digits: Sequence[int]) -> str:
    return " ".join(DIGITS[d] for d in digits)


GOLD: dict[str, Callable[[Sequence[int]], str]] = {
    "repeat": _words,
    "reverse": lambda d: _words(d[::-1]),
    "count": lambda d: DIGITS[len(d)],
    "first": lambda d: DIGITS[d[0]],
    "last": lambda d: DIGITS[d[-1]],
    "maximum": lambda d: DIGITS[max(d)],
    "minimum": lambda d: DIGITS[min(d)],
    "sort": lambda d: _words(sorted(d)),
    "sort_down": lambda d: _words(sorted(d, reverse=True)),
    "numerals": lambda d: " ".join(map(str, d)),
    "french": lambda d: " ".join(FRENCH[i] for i in d),
    "add_one": lambda d: _words([(i + 1) % 10 for i in d]),
    "subtract_one": lambda d: _words([(i - 1) % 10 for i in d]),
    "drop_first": lambda d: _words(d[1:]),
    "drop_last": lambda d: _words(d[:-1]),
    "parity": lambda d: "odd" if d[-1] % 2 else "even",
    "has_seven": lambda d: "yes" if 7 in d else "no",
    "swap_ends": lambda d: _words([d[-1], *d[1:-1], d[0]]),
    "second": lambda d: DIGITS[d[1]],
    "twice": lambda d: " ".join(DIGITS[i] + " " + DIGITS[i] for i in d),
}
#: Constraints of digits.yaml: from the digits of an answer to the answer in the form that is asked for.
CONSTRAINED: dict[str, Callable[[Sequence[int]], str]] = {"numerals": GOLD["numerals"], "french": GOLD["french"]}
#: Tasks of digits.yaml under a constraint: those that are answered in digit words.
FORMATS = tuple(
    f"{task}/{constraint}"
    for task in GOLD
    if task not in ("numerals", "french", "parity", "has_seven")
    for constraint in CONSTRAINED
)


def parse(transcript: str) -> list[int]:
    """The digits of a transcript such as `"three five"`, without fillers. Raises ValueError for any other word."""
    words = [word for word in transcript.split() if word not in FILLERS]
    if strange := [word for word in words if word not in DIGITS]:
        raise ValueError(f"{strange[0]!r} is no digit")
    return [DIGITS.index(word) for word in words]


def gold_answer(task: str, transcript: str) -> str:
    """The right answer to `task` (such as `reverse` or, under a constraint, `reverse/french`) about `transcript`."""
    return answer_about(task, parse(transcript))


def answer_about(task: str, digits: Sequence[int]) -> str:
    """The right answer to `task` about `digits`."""
    name, _, constraint = task.partition("/")
    answer = GOLD[name](digits)
    return CONSTRAINED[constraint](parse(answer)) if constraint else answer


def random_digits(rng: random.Random) -> list[int]:
    """A digit string of 2 to 6 digits."""
    return [rng.randrange(10) for _ in range(rng.randint(MIN_DIGITS, MAX_DIGITS))]


def with_fillers(digits: Sequence[int], rng: random.Random, mean_per_gap: float) -> str:
    """The digits as words with hesitations ("um") before, between and after them, `mean_per_gap` on average in each gap."""
    words: list[str] = []
    keep_going = mean_per_gap / (1 + mean_per_gap)
    for digit in [*digits, None]:
        while rng.random() < keep_going:
            words.append(rng.choice(FILLERS))
        if digit is not None:
            words.append(DIGITS[digit])
    return " ".join(words)
