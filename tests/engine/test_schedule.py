from __future__ import annotations

import dataclasses

import pytest

from mtbi.engine.schedule import learning_rate
from mtbi.recipe import TrainConfig

CONFIG = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)])
def test_warm_up_then_cosine(step: int, rate: float) -> None:
    assert learning_rate(step, CONFIG) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.2), (9, 2.0), (10, 2.0), (60, 1.05), (110, 0.1), (119, 1.0), (170, 0.55)])
def test_the_steps_on_the_alignment_loss_have_a_schedule_of_their_own(step: int, rate: float) -> None:
    config = dataclasses.replace(CONFIG, steps=220, alignment_steps=110, alignment_learning_rate=2.0)
    assert learning_rate(step, config) == pytest.approx(rate)


def test_no_warm_up() -> None:
    assert learning_rate(0, TrainConfig(warmup_steps=0, learning_rate=2.0)) == pytest.approx(2.0)
