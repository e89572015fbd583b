"""What `mtbi plan` prints about an epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtbi.batches import plan_report
from mtbi.batches.plan import Plan
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards


def test_the_report_counts_the_first_epoch(shard_folder: Path, small_recipe: Recipe) -> None:
    recipe = replace(small_recipe, plan=replace(small_recipe.plan, max_audio_seconds=2))
    plan = Plan(Shards(str(shard_folder)).index, recipe, FrameGeometry.from_config(recipe.model))
    epoch = plan_report.report(plan, train_steps=30)
    steps = []
    for step in plan.steps():
        if step.position.epoch:
            break
        steps.append(step)
    groups = [group for step in steps for row in step.rows for group in row.groups]
    assert (epoch.steps, epoch.utterances) == (len(steps), len({group.utterance for group in groups}))
    assert epoch.left_out.too_long > 0
    assert epoch.utterances + epoch.left_out.too_long == epoch.utterances_in_shards
    assert epoch.used_share == pytest.approx(np.mean([step.used_share for step in steps]))
    assert epoch.epochs == 30 / len(steps)
    lines = plan_report.render(epoch, plan, 30).splitlines()
    assert lines[0] == f"steps an epoch  {len(steps)}"
    assert f"{epoch.left_out.too_long} too long, 0 too big for a row, 0 without an answer" in lines[2]
    assert epoch.to_json()["left_out"] == {"too_long": epoch.left_out.too_long, "too_big": 0, "unanswered": 0}
