"""Means, differences and their intervals on made-up results whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mtbi.benchmark.grid import findings, report
from mtbi.benchmark.grid import grid as grids
from mtbi.benchmark.grid.findings import RunResult, Sums
from mtbi.benchmark.grid.grid import Job
from mtbi.benchmark.intervals import MeanOverSeeds

KEY = ("known", "never-trained tasks")


def make(arm: str, seed: int, share: float, utterances: int = 200) -> RunResult:
    """Five dialogues about each utterance, of which a share is answered right; harder utterances are hard for every arm."""
    rng = np.random.default_rng(seed * 1000 + len(arm))
    hard = np.random.default_rng(7).normal(0, 0.1, utterances)
    sums: Sums = {}
    for number in range(utterances):
        right = rng.binomial(5, np.clip(share + hard[number], 0, 1))
        sums[f"u{number}"] = np.array([right, 5, 4, 5], float)
    return RunResult(Job(arm, seed), 1.0, 30.0, {KEY: sums}, {})


def test_measures_are_shares_of_all_of_the_text_llm_and_of_the_cascade() -> None:
    runs = [make("a", seed, 0.8) for seed in (1, 2, 3)]
    means = [findings.over_seeds(runs, KEY, measure) for measure in (findings.accuracy, findings.kept, findings.of_cascade)]
    assert all(means)
    accuracy, kept, of_cascade = (mean for mean in means if mean)
    assert accuracy.low < 0.8 < accuracy.high
    assert accuracy.high - accuracy.low < 0.15
    assert kept.value == accuracy.value
    assert of_cascade.value == pytest.approx(accuracy.value / 0.8)
    assert findings.over_seeds(runs, ("unknown", "x"), findings.accuracy) is None


def test_a_difference_that_is_there_excludes_zero_and_one_that_is_not_does_not() -> None:
    better, worse, same = (
        [make(arm, seed, share) for seed in (1, 2, 3)] for arm, share in (("a", 0.85), ("bb", 0.7), ("ccc", 0.85))
    )
    real, none = findings.difference(better, worse, KEY), findings.difference(better, same, KEY)
    assert real
    assert none
    assert real.low > 0
    assert real.value == pytest.approx(0.15, abs=0.03)
    assert (real.above, real.seeds) == (3, 3)
    assert none.low < 0 < none.high
    assert findings.difference(better[:1], worse[1:], KEY) is None  # no seed in common


def test_seeds_that_disagree_widen_the_interval() -> None:
    agree = findings.over_seeds([make("a", seed, 0.7) for seed in (1, 2, 3)], KEY, findings.accuracy)
    differ = findings.over_seeds(
        [make("a", seed, share) for seed, share in ((1, 0.5), (2, 0.7), (3, 0.9))], KEY, findings.accuracy
    )
    assert agree
    assert differ
    assert differ.high - differ.low > 3 * (agree.high - agree.low)


def test_speech_needed_for_a_goal() -> None:
    assert findings.minutes_to_reach([(1, 0.9), (10, 0.95)], 0.8) == 1
    assert findings.minutes_to_reach([(1, 0.6), (100, 1.0)], 0.8) == pytest.approx(10)
    assert findings.minutes_to_reach([(1, 0.6), (100, 0.7)], 0.8) is None


def test_three_seeds_of_equal_arms_rarely_differ() -> None:
    """The spread over seeds is most of the noise here: an interval that draws three seeds again holds 0 in 79 of 100."""
    rng = np.random.default_rng(0)

    def arm(name: str) -> list[RunResult]:
        shares = np.clip(rng.normal(0.7, 0.08, 3), 0, 1)
        tables: list[Sums] = [
            {f"u{n}": np.array([right, 3, 3, 3.0]) for n, right in enumerate(rng.binomial(3, share, 50))} for share in shares
        ]
        return [RunResult(Job(name, seed), 1.0, 30.0, {KEY: sums}, {}) for seed, sums in enumerate(tables)]

    differences = [findings.difference(arm("a"), arm("b"), KEY) for _ in range(400)]
    assert 0.92 <= sum(difference.low <= 0 <= difference.high for difference in differences) / 400 <= 0.98


def test_the_table_of_gains_says_seeds_and_corrects_for_its_size() -> None:
    mean = MeanOverSeeds.of([0.146, 0.048, 0.144])
    assert report.signed(mean, False) == "+11.3 (-2.6 to +25.2), 3 of 3"
    assert report.signed(mean, True) == "**+11.3 (-2.6 to +25.2), 3 of 3**"
    assert report.signed(MeanOverSeeds.of([0.03]), False) == "+3.0, one seed"
    assert report.signed(None, False) == "–"
    arms = {arm: [make(arm, seed, share, 60) for seed in (1, 2, 3)] for arm, share in (("a", 0.9), ("bb", 0.4), ("ccc", 0.9))}
    grid = replace(grids.load("digits"), compare=grids.Compare("a", ["bb", "ccc"]))
    drawn = report.gains(grid, arms, "known").splitlines()
    assert drawn[2].count("**") == 2
    assert "**" not in drawn[3]
