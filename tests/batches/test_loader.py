from __future__ import annotations

import shutil
import threading
import time
from itertools import chain, islice
from pathlib import Path

import pytest
import torch

from mtbi.batches.batch import Batch
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Plan, Position, Row
from mtbi.errors import DamagedError, UnavailableError, UserError
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance, unpack


@pytest.fixture
def shards(shard_folder: Path) -> Shards:
    return Shards(str(shard_folder))


def make_plan(shards: Shards, recipe: Recipe) -> Plan:
    return Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))


def answers_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The rows' tokens, whatever their order: what was trained on."""
    return sorted(
        tuple(ids[group >= 0].tolist())
        for batch in batches
        for ids, group in zip(batch.token_ids, batch.group, strict=True)
        if (group >= 0).any()
    )


@pytest.mark.parametrize(("world", "rows"), [(1, 3), (2, 1), (2, 2), (4, 1)])
def test_the_global_batches_do_not_depend_on_the_processes(shards: Shards, small_recipe: Recipe, world: int, rows: int) -> None:
    def run(world: int, rows: int) -> list[list[tuple[int, ...]]]:
        steps: list[list[Batch]] = [[] for _ in range(8)]
        for rank in range(world):
            with Loader(shards, make_plan(shards, small_recipe), rank, world, rows) as loader:
                for place, step in enumerate(islice(loader, 8)):
                    steps[place] += list(step.micro_batches)
        return [answers_of(batches) for batches in steps]

    assert run(world, rows) == run(1, 1)


def test_it_goes_on_from_any_position(shards: Shards, small_recipe: Recipe) -> None:
    with Loader(shards, make_plan(shards, small_recipe)) as loader:
        whole = [(step.position, step.next_position, list(step.micro_batches)) for step in islice(loader, 12)]
    for place in (3, 7, 10):
        position = Position.from_json(whole[place][1].to_json())
        with Loader(shards, make_plan(shards, small_recipe), position=position) as loader:
            step = next(iter(loader))
            batches = list(step.micro_batches)
        assert step.position == whole[place + 1][0]
        for one, two in zip(batches, whole[place + 1][2], strict=True):
            torch.testing.assert_close(one.waveforms, two.waveforms, rtol=0, atol=0)
            assert one.token_ids.tolist() == two.token_ids.tolist()
            assert one.target_slot.tolist() == two.target_slot.tolist()


def test_all_waiting_is_counted(shards: Shards, small_recipe: Recipe) -> None:
    class SlowPlan(Plan):
        def window_rows(self, epoch: int, window: int) -> list[Row]:
            time.sleep(0.2)
            return super().window_rows(epoch, window)

    plan = SlowPlan(shards.index, small_recipe, FrameGeometry.from_config(small_recipe.model))
    counted, began = 0.0, time.perf_counter()
    with Loader(shards, plan) as loader:
        for step in islice(loader, 12):
            list(step.micro_batches)
            counted += step.data_wait_seconds
        passed = time.perf_counter() - began
    assert passed > 0.5  # several windows
    assert 0.6 * passed < counted <= passed


def test_errors_reach_the_consumer_and_threads_end(shards: Shards, small_recipe: Recipe) -> None:
    def broken(_number: int) -> None:
        raise UserError("shard.00000.mds: damaged")

    shards.__class__ = type("Broken", (Shards,), {"__getitem__": lambda _self, number: broken(number)})
    before = threading.active_count()
    with Loader(shards, make_plan(shards, small_recipe)) as loader:
        assert not any(len(batch.target_ids) for batch in next(iter(loader)).micro_batches)
        assert "damaged" in str(loader.failure)
    assert threading.active_count() <= before


def test_an_impossible_plan_is_an_error_at_the_first_step(shards: Shards, small_recipe: Recipe) -> None:
    small_recipe.plan.row_tokens = 8
    with pytest.raises(UserError, match="no utterance fits"), Loader(shards, make_plan(shards, small_recipe)) as loader:
        next(iter(loader))


def test_utterances_of_a_damaged_shard_stop_the_run_or_are_left_out(
    shard_folder: Path, small_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(shard_folder, folder)
    victim = sorted(folder.glob("shard.*.mds"))[1]
    victim.write_bytes(victim.read_bytes()[:-50] + bytes(50))
    damaged = Shards(str(folder))
    with Loader(damaged, make_plan(damaged, small_recipe)) as loader:
        list(chain.from_iterable(step.micro_batches for step in islice(loader, 40)))
        assert f"{victim.name}: damaged" in str(loader.failure)
    whole = Shards(str(shard_folder))
    with (
        Loader(damaged, make_plan(damaged, small_recipe), skip_unreadable=True) as loader,
        Loader(whole, make_plan(whole, small_recipe)) as other,
    ):
        kept = missing = 0
        for step, complete in zip(islice(loader, 20), islice(other, 20), strict=True):
            assert step.weight_total == complete.weight_total
            for batch, full in zip(step.micro_batches, complete.micro_batches, strict=True):
                kept, missing = kept + len(batch.target_ids), missing + len(full.target_ids) - len(batch.target_ids)
        assert 0 < missing < kept
        assert loader.unreadable > 0
    assert f"{victim.name}: damaged" in caplog.text


REFUSAL = UserError("s3://speech/digits: the default endpoint refuses access (ExpiredToken)")


@pytest.mark.parametrize(
    "error", [REFUSAL, UnavailableError("12 attempts failed"), OSError(116, "Stale file handle"), ValueError("disagree")]
)
def test_only_lost_samples_are_skipped(shards: Shards, small_recipe: Recipe, error: Exception) -> None:
    def broken(_number: int) -> None:
        raise error

    shards.__class__ = type("Broken", (Shards,), {"__getitem__": lambda _self, number: broken(number)})
    with Loader(shards, make_plan(shards, small_recipe), skip_unreadable=True) as loader:
        assert not any(len(batch.target_ids) for batch in next(iter(loader)).micro_batches)
        assert loader.failure is error
        assert loader.unreadable == 0


def test_what_is_left_out_is_counted_with_its_step(shards: Shards, small_recipe: Recipe) -> None:
    whole, real = make_plan(shards, small_recipe), shards.columns

    def sometimes(_self: Shards, number: int) -> StoredUtterance:
        if number % 3 == 0:
            raise DamagedError("damaged")
        return unpack(real(number))

    shards.__class__ = type("Damaged", (Shards,), {"__getitem__": sometimes})
    with Loader(shards, whole, skip_unreadable=True, prefetch=8) as loader:
        for step in islice(loader, 5):
            list(step.micro_batches)
            lost = sum(group.utterance % 3 == 0 for row in step.step.rows for group in row.groups)
            assert step.unreadable == lost
