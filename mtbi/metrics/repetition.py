"""Answers that go round in circles: a phrase said again and again until the answer is cut off."""

from __future__ import annotations

from functools import lru_cache

from mtbi import text_units
from mtbi.metrics.normalise import normalise

TIMES = 3  #: a phrase said so many times in a row is a loop
SHORTEST = 8  #: units that a loop has at least; a shorter one may be meant, as in "no, no, no"
LONGEST_PHRASE = 40  #: units


@lru_cache(maxsize=1 << 17)  # an answer is in many cells of a table
def repeated_units(text: str, times: int = TIMES) -> int:
    """The number of units (`mtbi.text_units`) in the longest stretch that is one phrase, `times` times or more in a row.

    0 where there is none of at least `SHORTEST` units. The last time may be cut off. Case, punctuation and the numbers of a
    list make no difference.
    """
    units = [cleaned for unit in text_units.units(text) if (cleaned := _clean(unit))]
    longest = 0
    for period in range(1, min(LONGEST_PHRASE, len(units) // times) + 1):
        run = best = 0
        for left, right in zip(units, units[period:], strict=False):
            run = run + 1 if left == right else 0
            best = max(best, run)
        if best + period >= max(times * period, SHORTEST) and best:
            longest = max(longest, best + period)
    return longest


def is_repetitive(text: str, times: int = TIMES) -> bool:
    """Whether some phrase of a text is said `times` times or more in a row."""
    return repeated_units(text, times) > 0


def _clean(unit: str) -> str:
    """A unit for comparisons. The numbers of a list are all the same."""
    plain = normalise(unit)
    return "0" if plain.isdecimal() and unit.strip()[-1:] in ".)" else plain
