from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mtbi.batches.loader import Loader
from mtbi.batches.plan import Plan
from mtbi.engine.seeding import seed_micro_batch
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards


def draws(seed: int, step: int, row: int) -> tuple[object, ...]:
    seed_micro_batch(seed, step, row)
    mask = torch.nn.functional.dropout(torch.ones(64), 0.5)
    return tuple(mask.tolist()), float(np.random.random()), random.random()


def test_draws_depend_on_seed_step_and_row_alone() -> None:
    first = draws(1, 7, 2)
    torch.rand(5)
    assert draws(1, 7, 2) == first
    others = [draws(1, 7, 3), draws(1, 8, 2), draws(2, 7, 2), draws(1, 72, 0)]
    assert len({first, *others}) == 5


def test_processes_draw_for_rows_of_their_own(shard_folder: Path, small_recipe: Recipe) -> None:
    shards = Shards(str(shard_folder))
    small_recipe.plan.rows_per_step = 6

    def rows(rank: int, world: int) -> list[int]:
        plan = Plan(shards.index, small_recipe, FrameGeometry.from_config(small_recipe.model))
        with Loader(shards, plan, rank, world) as loader:
            [step] = islice(loader, 1)
            return [step.first_row(part) for part in range(step.parts)]

    assert rows(0, 1) == [0, 1, 2, 3, 4, 5]
    assert [rows(rank, 2) for rank in (0, 1)] == [[0, 2, 4], [1, 3, 5]]
