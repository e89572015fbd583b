"""Means with 95% intervals: a bootstrap over recordings, t-intervals over seeds, and Holm's correction for many comparisons.

A bootstrap over three seeds cannot leave their range, so its interval is far too narrow. A t-interval estimates the spread from
the seeds and assumes that their values are about normal. It covers other seeds with the same recordings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import fmean, stdev

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean, or a ratio of sums, with its 95% interval. `low` and `high` are None where there is no interval."""

    value: float
    low: float | None
    high: float | None


@lru_cache(maxsize=8)
def resample_counts(clusters: int) -> np.ndarray:
    """`(RESAMPLES, clusters)`: how often each cluster is drawn in each bootstrap sample."""
    return np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES)


def bootstrap(counts: Iterable[tuple[str, tuple[float, float]]]) -> MeanWithInterval | None:
    """The ratio of two sums, with a percentile bootstrap interval (Efron 1979) over clusters; None where the second sum is 0.

    `counts` holds the cluster (a recording) and the two numbers of each answer. Answers about one recording depend on each
    other, so whole recordings are resampled.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for cluster, (numerator, denominator) in counts:
        sums[cluster][0] += numerator
        sums[cluster][1] += denominator
    table = np.array(list(sums.values())).reshape(-1, 2)
    numerator, denominator = table.sum(0) if len(table) else (0.0, 0.0)
    if not denominator:
        return None
    resampled = resample_counts(len(table)) @ table
    ratios = resampled[:, 0] / np.maximum(resampled[:, 1], 1e-9)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return MeanWithInterval(float(numerator / denominator), float(low), float(high))


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution with `freedom` degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
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
class MeanOverSeeds(MeanWithInterval):
    """A mean over seeds with its 95% t-interval. A single seed has no interval."""

    seeds: int
    above: int  #: seeds whose value is above zero
    p: float | None  #: two-sided p-value of a mean of zero; None for a single seed
    values: tuple[float, ...] = ()  #: of each seed

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanOverSeeds:
        """The mean of one value a seed, at least one."""
        mean, seeds, above = fmean(values), len(values), sum(value > 0 for value in values)
        if seeds < 2:
            return cls(mean, None, None, seeds, above, None, tuple(values))
        error = stdev(values) / math.sqrt(seeds)
        reach = t_quantile(LEVEL, seeds - 1) * error
        # Seeds that agree to the last digit have no spread, so they are no evidence.
        p = 1 - t_two_sided(abs(mean) / error, seeds - 1) if error else 1.0
        return cls(mean, mean - reach, mean + reach, seeds, above, p, tuple(values))


def holm(p_values: Sequence[float | None], alpha: float = 1 - LEVEL) -> list[bool]:
    """Which comparisons are significant together: the chance of any false one is at most `alpha` (Holm 1979).

    A p-value of None stands for a comparison that cannot be made. It is never significant.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    significant = [False] * len(p_values)
    for rank, (p, index) in enumerate(known):
        if p > alpha / (len(known) - rank):
            break
        significant[index] = True
    return significant
