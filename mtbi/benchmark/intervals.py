"""What a few seeds say: t-intervals over them, and Holm's correction for many comparisons.

A bootstrap of three seeds cannot leave their range, and is far too narrow. A t-interval assumes that the values of the seeds
are about normal, and takes their spread from the seeds themselves. It speaks of other seeds and the same recordings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

LEVEL = 0.95


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution with so many degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, term, total = math.cos(angle), 1.0, 1.0
    odd = freedom % 2
    for step in range(1, (freedom - odd) // 2):
        term *= cosine**2 * (2 * step - 1 + odd) / (2 * step + odd)
        total += term
    if odd:
        return 2 / math.pi * (angle + (math.sin(angle) * cosine * total if freedom > 1 else 0.0))
    return math.sin(angle) * total


@cache
def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = `level`, by bisection."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) < level else (low, middle)
    return high


@dataclass(frozen=True)
class OverSeeds:
    """A mean over seeds with its 95% t-interval; without one where there are fewer than two seeds."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    above: int  #: seeds whose value is above zero
    p: float | None  #: of the mean's being zero, two-sided; None without an interval
    values: tuple[float, ...] = ()  #: of each seed

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """Of the values of each seed, at least one."""
        mean, seeds, above = fmean(values), len(values), sum(value > 0 for value in values)
        if seeds < 2:
            return cls(mean, None, None, seeds, above, None, tuple(values))
        error = stdev(values) / math.sqrt(seeds)
        reach = t_quantile(LEVEL, seeds - 1) * error
        # Seeds that agree to the last digit have no spread to compare with: that is no evidence.
        p = 1 - t_two_sided(abs(mean) / error, seeds - 1) if error else 1.0
        return cls(mean, mean - reach, mean + reach, seeds, above, p, tuple(values))


def holm(p_values: Sequence[float | None], alpha: float = 1 - LEVEL) -> list[bool]:
    """Which of several comparisons hold together, with at most `alpha` of one false claim among all (Holm 1979).

    A None is no comparison, and does not hold.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    held = [False] * len(p_values)
    for rank, (p, place) in enumerate(known):
        if p > alpha / (len(known) - rank):
            break
        held[place] = True
    return held
