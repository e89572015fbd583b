from __future__ import annotations

import pytest

from mtbi.engine.schedule import learning_rate
from mtbi.recipe import TrainConfig

CONFIG = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)])
def test_warm_up_then_cosine(step: int, rate: float) -> None:
    assert learning_rate(step, CONFIG) == pytest.approx(rate)


def test_no_warm_up() -> None:
    assert learning_rate(0, TrainConfig(warmup_steps=0, learning_rate=2.0)) == pytest.approx(2.0)
