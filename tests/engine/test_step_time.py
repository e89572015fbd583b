from __future__ import annotations

from dataclasses import replace

import pytest

from mtbi import recipe as recipes
from mtbi.engine import memory, step_time
from mtbi.engine.memory import Sizes
from mtbi.recipe import Recipe

SIZES = Sizes(8_000_000_000, 600_000_000, 50_000_000, 32, 4096, 128_000, 500_000_000)
SPEEDS = step_time.Speeds(tokens=10_000, network=40, node=300)


@pytest.fixture
def recipe() -> Recipe:
    """128 rows of 4,096 tokens a step."""
    base = recipes.load("demo", ["precision=bf16"])
    return replace(base, plan=replace(base.plan, rows_per_step=128, row_tokens=4096, rows_per_micro_batch=2))


def paces(recipe: Recipe, gpus: int) -> dict[str, step_time.Pace]:
    estimates = memory.estimates(recipe, SIZES, gpus)
    return {each.name: step_time.predict(recipe, SIZES, each, gpus, 8, SPEEDS) for each in estimates}


def test_one_gpu_sends_nothing_and_takes_its_measured_time(recipe: Recipe) -> None:
    for one in paces(recipe, 1).values():
        assert (one.gather, one.reduce) == (0, 0)
        assert one.step == pytest.approx(128 * 4096 / 10_000)


def test_computation_is_shared_and_sending_is_not(recipe: Recipe) -> None:
    few, many = paces(recipe, 8), paces(recipe, 64)
    assert many["ZeRO-1"].compute == pytest.approx(few["ZeRO-1"].compute / 8)
    # 64 GPUs: one micro-batch of two rows, whose 16 GB of weights travel twice at 40 GB/s.
    assert many["ZeRO-3"].gather == pytest.approx(2 * 16 / 40 * 63 / 64)
    assert many["ZeRO-3, weights whole in each node (hpZ)"].gather == pytest.approx(16 / 40 * 63 / 64 + 16 / 300 * 7 / 8)
    assert many["ZeRO-1"].reduce == pytest.approx(2 * 0.1 / 40 * 63 / 64)
    assert many["ZeRO-1"].step == many["ZeRO-3"].step  # gathering is hidden behind the computation here, …
    slow = memory.estimates(recipe, SIZES, 64)
    steps = {one.name: step_time.predict(recipe, SIZES, one, 64, 8, replace(SPEEDS, network=10)).step for one in slow}
    assert steps["ZeRO-1"] < steps["ZeRO-3, weights whole in each node (hpZ)"] < steps["ZeRO-3"]  # … and not on a slow network


def test_the_table_tells_days_and_idle_gpus(recipe: Recipe) -> None:
    table = step_time.render(step_time.tabulate(recipe, [8, 256], 80, 8, SPEEDS))
    assert "days" in table
    assert "128 GPUs have no row: raise plan.rows_per_step" in table
    assert "days" not in step_time.render(step_time.tabulate(recipe, [8], 80, 8))
