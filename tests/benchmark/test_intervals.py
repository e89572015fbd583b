from __future__ import annotations

import numpy as np
import pytest

from mtbi.benchmark.intervals import MeanOverSeeds, holm, t_quantile, t_two_sided


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (30, 2.04227), (1000, 1.96234)],
)
def test_quantiles_of_students_distribution_are_those_of_its_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(quantile, abs=1e-4)
    assert t_two_sided(quantile, freedom) == pytest.approx(0.95, abs=1e-5)


def test_three_seeds_have_a_t_interval() -> None:
    found = MeanOverSeeds.of([0.146, 0.048, 0.144])  # of the generalisation benchmark: multi-task against transcription only
    assert found.low is not None
    assert found.high is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.1127, -0.0263, 0.2516), abs=1e-3)
    assert (found.seeds, found.above) == (3, 3)
    assert found.p == pytest.approx(0.0727, abs=1e-3)


def test_the_interval_holds_the_truth_in_95_of_100() -> None:
    rng = np.random.default_rng(0)
    for seeds in (3, 10):
        drawn = [MeanOverSeeds.of(list(rng.normal(0, 0.08, seeds))) for _ in range(1000)]
        held = sum(one.low <= 0 <= one.high for one in drawn if one.low is not None and one.high is not None)
        assert 930 <= held <= 970


def test_one_seed_has_no_interval_and_equal_seeds_are_no_evidence() -> None:
    one = MeanOverSeeds.of([0.3])
    assert (one.value, one.low, one.high, one.p) == (0.3, None, None, None)
    assert MeanOverSeeds.of([0.3, 0.3]).p == 1.0


def test_holm_stops_at_the_first_that_does_not_hold() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == [True, False, False, False]
    assert holm([0.01, 0.02, 0.04]) == [True, True, True]
    assert holm([None]) == [False]
