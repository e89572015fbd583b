"""The bound on dialogues holds for what plans really draw, and is no looser than rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mtbi.batches.longest import longest_tokens
from mtbi.batches.plan import Plan
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import AdapterConfig, Recipe
from mtbi.shards.read import Shards


@pytest.fixture
def planned(shard_folder: Path, tmp_path: Path) -> Callable[[Recipe], Plan]:
    index = Shards([str(shard_folder)], str(tmp_path), 0.0, 1).index
    return lambda recipe: Plan(index, recipe, FrameGeometry.from_config(recipe.model))


def drawn(plan: Plan, epochs: int) -> int:
    """Positions of the longest dialogue among those that are drawn."""
    longest = 0
    single = Plan(
        plan.index, Recipe(plan=replace(plan.config, tasks_per_utterance=1), interleave=plan.interleave), plan.geometry
    )
    for epoch in range(epochs):
        for window in range(len(single.windows(epoch))):
            groups = [group for row in single.window_rows(epoch, window) for group in row.groups]
            longest = max(longest, *(group.tokens for group in groups))
    return longest


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("cut", ["slice", "encode"])
def test_no_dialogue_is_longer_than_the_bound(planned, small_recipe: Recipe, share: float, cut: str) -> None:
    recipe = replace(small_recipe, interleave=replace(small_recipe.interleave, share=share, cut=cut))
    plan = planned(recipe)
    found, bound = drawn(plan, 30), longest_tokens(plan)
    assert found <= bound
    assert bound <= (found if share == 0 else 1.5 * found)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_bound_holds_for_queries_of_whole_clips(planned, small_recipe: Recipe, share: float) -> None:
    model = replace(small_recipe.model, adapter=AdapterConfig("clip-qformer", queries=6))
    plan = planned(replace(small_recipe, model=model, interleave=replace(small_recipe.interleave, share=share, cut="encode")))
    found, bound = drawn(plan, 30), longest_tokens(plan)
    assert found <= bound <= (found if share == 0 else 1.5 * found)


def test_it_depends_on_what_is_taken(planned, small_recipe: Recipe) -> None:
    whole = longest_tokens(planned(small_recipe))
    assert longest_tokens(planned(replace(small_recipe, plan=replace(small_recipe.plan, row_tokens=32)))) == 32
    short = replace(small_recipe.plan, max_audio_seconds=1.0)
    assert longest_tokens(planned(replace(small_recipe, plan=short))) < whole
