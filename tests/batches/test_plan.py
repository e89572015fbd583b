from __future__ import annotations

import dataclasses
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pytest

from mtbi import recipe as recipes
from mtbi.batches.loader import rows_of
from mtbi.batches.plan import Plan, Position, Step, best_fit, next_fit
from mtbi.errors import UserError
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards.index import BRANCH, UTTERANCE, WORD, Index
from mtbi.shards.read import Shards


@pytest.fixture
def plan(shard_folder: Path, small_recipe: Recipe) -> Plan:
    return Plan(Shards(str(shard_folder)).index, small_recipe, FrameGeometry.from_config(small_recipe.model))


def epoch(plan: Plan, number: int) -> list[Step]:
    return list(takewhile(lambda step: step.position.epoch == number, plan.steps(Position(number))))


def test_every_utterance_once_an_epoch_and_rows_within_budget(plan: Plan) -> None:
    for number in (0, 1):
        rows = [row for step in epoch(plan, number) for row in step.rows]
        assert sorted(group.utterance for row in rows for group in row.groups) == list(range(60))
        assert all(sum(group.tokens for group in row.groups) <= 256 for row in rows)
        assert all(len(group.branches) == len(set(group.branches)) == 3 for row in rows for group in row.groups)


def test_epochs_and_seeds_differ_and_repeat_exactly(plan: Plan, small_recipe: Recipe) -> None:
    first, second = epoch(plan, 0), epoch(plan, 1)
    assert first != second
    assert first == epoch(plan, 0)
    other = Plan(plan.index, dataclasses.replace(small_recipe, seed=2), plan.geometry)
    assert first != epoch(other, 0)


def test_any_position_goes_on_exactly(plan: Plan) -> None:
    steps = list(islice(plan.steps(), 25))
    assert steps[-1].position.epoch > 0
    for place, step in enumerate(steps[:-1]):
        position = Position.from_json(step.next_position.to_json())
        assert position == steps[place + 1].position
        assert list(islice(plan.steps(position), len(steps) - place - 1)) == steps[place + 1 :]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_processes_share_out_each_step(plan: Plan, world: int) -> None:
    for step in epoch(plan, 0):
        parts = [rows_of(step.rows, 3, rank, world, 1) for rank in range(world)]
        assert len({len(part) for part in parts}) == 1
        rows = [row for part in parts for micro in part for row in micro if row.groups]
        assert sorted(map(repr, rows)) == sorted(map(repr, step.rows))


def test_weights_of_tasks_are_in_the_denominator(plan: Plan, small_recipe: Recipe) -> None:
    task = plan.index.tasks[0]
    doubled = dataclasses.replace(small_recipe, loss=dataclasses.replace(small_recipe.loss, task_weights={task: 2.0}))
    more = Plan(plan.index, doubled, plan.geometry)
    for one, two in zip(epoch(plan, 0), epoch(more, 0), strict=True):
        assert one.weight_total == one.target_tokens == two.target_tokens
        assert two.weight_total > one.weight_total or not any(
            plan.index.branches[plan.index.utterances[g.utterance]["first_branch"] + np.array(g.branches)]["task"]
            .tolist()
            .count(0)
            for row in one.rows
            for g in row.groups
        )
    with pytest.raises(UserError, match="no task 'sing'"):
        Plan(
            plan.index,
            dataclasses.replace(small_recipe, loss=dataclasses.replace(small_recipe.loss, task_weights={"sing": 1.0})),
            plan.geometry,
        )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_leaves_a_step_without_denominator_is_refused(plan: Plan, small_recipe: Recipe, weight: float) -> None:
    small_recipe.loss.task_weights = {plan.index.tasks[0]: weight}
    with pytest.raises(UserError, match="must be above 0"):
        Plan(plan.index, small_recipe, plan.geometry)


def test_nothing_that_fits_is_a_clear_error(plan: Plan, small_recipe: Recipe) -> None:
    tiny = dataclasses.replace(small_recipe, plan=dataclasses.replace(small_recipe.plan, row_tokens=8))
    with pytest.raises(UserError, match="60 need more tokens"):
        next(Plan(plan.index, tiny, plan.geometry).steps())
    short = dataclasses.replace(small_recipe, plan=dataclasses.replace(small_recipe.plan, max_audio_seconds=0.1))
    with pytest.raises(UserError, match="60 are longer"):
        next(Plan(plan.index, short, plan.geometry).steps())


def test_what_the_encoder_cannot_take_is_left_out(plan: Plan, small_recipe: Recipe) -> None:
    assert isinstance(plan.geometry, FrameGeometry)
    samples = int(np.median(plan.index.utterances["samples"]))
    shorter = Plan(plan.index, small_recipe, dataclasses.replace(plan.geometry, max_samples=samples))
    kept = [group.utterance for step in epoch(shorter, 0) for row in step.rows for group in row.groups]
    assert sorted(kept) == np.flatnonzero(plan.index.utterances["samples"] <= samples).tolist()


def test_best_fit_puts_an_item_into_the_fullest_row_that_takes_it() -> None:
    assert best_fit(np.array([5, 3, 7, 2, 3]), 10) == [[2, 1], [0, 4, 3]]
    assert best_fit(np.array([], int), 10) == []


def librispeech_like(utterances: int) -> Index:
    """Durations as in LibriSpeech train-clean-100: a short tail of small ones and most near 14 seconds."""
    rng = np.random.default_rng(0)
    seconds = np.clip(
        np.where(rng.random(utterances) < 0.7, rng.normal(14.3, 1.2, utterances), rng.uniform(1.5, 13, utterances)), 1.5, 16.7
    )
    table = np.zeros(utterances, UTTERANCE)
    table["samples"] = seconds * 16_000
    table["branches"] = 4
    table["first_branch"] = 4 * np.arange(utterances)
    branches = np.zeros(4 * utterances, BRANCH)
    branches["prompt_tokens"] = rng.integers(8, 24, 4 * utterances)
    branches["answer_tokens"] = np.clip(rng.lognormal(3.2, 0.6, 4 * utterances), 1, 128)
    sizes = [500] * (utterances // 500)
    facts = {"fingerprint": "", "llm": "", "prefix_ids": list(range(20)), "end_id": 0, "top_k": 32, "prompt_first": False}
    return Index(
        **facts, encoded="", feature_width=0, tasks=["task"], shard_sizes=sizes, utterances=table, branches=branches,
        words=np.zeros(0, WORD),
    )  # fmt: skip


def test_rows_have_hardly_any_holes_on_speech_of_ordinary_lengths() -> None:
    recipe = recipes.load("demo", ["plan.row_tokens=4096", "plan.rows_per_step=16", "plan.window_samples=8000"])
    plan = Plan(librispeech_like(8000), recipe, FrameGeometry.from_config(recipe.model))
    rows = [row for step in epoch(plan, 0) for row in step.rows]
    used = sum(group.tokens for row in rows for group in row.groups) / (len(rows) * 4096)
    assert used >= 0.98


def replan(plan: Plan, recipe: Recipe, **changes: object) -> Plan:
    return Plan(plan.index, dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, **changes)), plan.geometry)


def test_only_chosen_tasks_are_planned(plan: Plan, small_recipe: Recipe) -> None:
    some = replan(plan, small_recipe, tasks=["repeat", "s*"])
    groups = [group for step in epoch(some, 0) for row in step.rows for group in row.groups]
    used = {
        plan.index.tasks[plan.index.branches[int(plan.index.utterances[group.utterance]["first_branch"]) + place]["task"]]
        for group in groups
        for place in group.branches
    }
    assert used == {task for task in plan.index.tasks if task == "repeat" or task.startswith("s")}
    assert 0 < len(groups) < 60  # utterances of which only other tasks are stored are left out
    with pytest.raises(UserError, match="no task 'sing'"):
        replan(plan, small_recipe, tasks=["sing"])


def test_less_speech_is_a_part_of_more_speech(plan: Plan, small_recipe: Recipe) -> None:
    def taken(minutes: float) -> set[int]:
        part = replan(plan, small_recipe, hours=minutes / 60)
        return {group.utterance for step in epoch(part, 0) for row in step.rows for group in row.groups}

    few, more = taken(0.5), taken(1.5)
    assert 0 < len(few) < len(more) < 60
    assert few < more
    seconds = plan.index.utterances["samples"][sorted(more)].sum() / 16_000
    assert 80 < seconds <= 90
    assert len(taken(0.0001)) == 1


def test_a_small_corpus_is_gone_through_until_a_window_is_full(plan: Plan, small_recipe: Recipe) -> None:
    whole = replan(plan, small_recipe, hours=0.5 / 60, passes_per_epoch=0, window_samples=200)
    heard = [group.utterance for step in epoch(whole, 0) for row in step.rows for group in row.groups]
    counts = {utterance: heard.count(utterance) for utterance in heard}
    assert set(counts.values()) == {200 // len(counts)}


def test_rows_with_a_limit_hold_as_many_utterances_each(plan: Plan, small_recipe: Recipe) -> None:
    limited = replan(plan, small_recipe, utterances_per_row=4, row_tokens=1024, window_samples=10_000)
    sizes = [len(row.groups) for step in epoch(limited, 0) for row in step.rows]
    assert sum(sizes) == 60
    assert sorted(sizes)[1:] == [4] * (len(sizes) - 1)


def test_next_fit_keeps_the_order_and_the_budget() -> None:
    assert next_fit(np.array([5, 3, 4, 2, 2, 2]), 8, 2) == [[0, 1], [2, 3], [4, 5]]
    assert next_fit(np.array([5, 4, 4]), 8, 9) == [[0], [1, 2]]
