from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.conftest import ds_config
from shards.copies import copy_of

from launcher.ranks import Ranks
from mtbi import recipe as recipes
from mtbi.batches.plan import Position
from mtbi.engine import agreement, checkpoint, inputs
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.checkpointing import Progress
from mtbi.engine.inputs import Start, changed_fields, check_same_plan
from mtbi.errors import UserError

ALONE = Ranks(0, 1, 0, 1)
PLAN = ["plan.row_tokens=256", "plan.window_utterances=20", "precision=fp32", "train.eval_every_steps=5"]
AT_STEP_5 = Position(epoch=2, step=4, window=1, window_step=3)
Begin = Callable[..., Start]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """The start of a run, up to its models, in one process."""

    def call(shards: list[Path | str], *overrides: str, evaluation: Path | str = "") -> Start:
        places = [f"data.shards=[{','.join(map(str, shards))}]", f"data.eval_shards=[{evaluation}]"]
        recipe = recipes.load("demo", [f"run_dir={tmp_path / 'run'}", *places, *PLAN, *overrides])
        opened = agreement.attempt(lambda: inputs.open_inputs(recipe))
        begun = inputs.agree(recipe, ds_config(1), ALONE, torch.device("cpu"), opened)
        assert begun.lease
        begun.lease.release()
        return begun

    return call


def save(begun: Start, run_dir: Path, score: float | None = None, **facts: object) -> None:
    """A checkpoint of a run's fifth step; `facts` of None are left out, as earlier versions did."""
    begun.progress.step, begun.progress.position = 5, AT_STEP_5
    recipe = recipes.load(run_dir / "recipe.yaml")
    state = {**begun.progress.to_state(recipe, 1), "optimizer_steps": 5, **facts}
    state = {name: value for name, value in state.items() if value is not None}
    checkpoint.save(run_dir, 5, Snapshot({"w": torch.ones(1)}, {}, state))
    checkpoint.keep(run_dir, 2, score)


def test_a_run_goes_on_with_the_data_it_began_with(begin: Begin, shard_folder: Path, tmp_path: Path) -> None:
    save(begin([shard_folder]), tmp_path / "run")
    moved = shutil.copytree(shard_folder, tmp_path / "moved")
    for place in (shard_folder, moved):  # the same bytes elsewhere are the same data
        begun = begin([place], "loss.ce=1", "train.steps=9", "plan.rows_per_micro_batch=2")
        assert (begun.progress.step, begun.progress.position) == (5, AT_STEP_5)
        assert begun.newest == checkpoint.folder_of(tmp_path / "run", 5)


@pytest.mark.parametrize("which", ["more", "order", "content", "geometry"])
def test_other_data_are_refused_or_begin_a_new_epoch(
    begin: Begin, shard_folder: Path, tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(copy_of(shard_folder, tmp_path / "other"))
    words = np.load(other / "words.npy")
    words["tokens"] += 1
    np.save(other / "words.npy", words)
    save(begin([shard_folder, other] if which == "order" else [shard_folder]), tmp_path / "run")
    places, overrides, message = {
        "more": ([shard_folder, shard_folder], [], "data.shards are other shards, or the same in another order"),
        "order": ([other, shard_folder], [], "data.shards are other shards, or the same in another order"),
        "content": ([other], [], r"data.shards are other shards.*\(words.tokens"),
        "geometry": ([shard_folder], ["model.adapter.stack=8"], "the encoder or adapter gives another number of LLM positions"),
    }[which]
    with pytest.raises(UserError, match=f"made with other data: {message}.*train.new_data=new_epoch"):
        begin(places, *overrides)
    begun = begin(places, *overrides, "train.new_data=new_epoch")
    assert (begun.progress.step, begun.progress.position) == (5, Position(epoch=3))
    assert "going on with epoch 3" in capsys.readouterr().out
    save(begun, tmp_path / "run")
    assert begin(places, *overrides).progress.position == AT_STEP_5  # from now on these are the run's data


def test_another_plan_is_refused_or_begins_a_new_epoch(begin: Begin, shard_folder: Path, tmp_path: Path) -> None:
    save(begin([shard_folder]), tmp_path / "run")
    with pytest.raises(UserError, match=r"plan\.row_tokens=256, the recipe says 320.*train\.new_data=new_epoch"):
        begin([shard_folder], "plan.row_tokens=320")
    assert begin([shard_folder], "plan.row_tokens=320", "train.new_data=new_epoch").progress.position == Position(epoch=3)


def test_a_checkpoint_of_an_earlier_version_goes_on(begin: Begin, shard_folder: Path, tmp_path: Path) -> None:
    save(begin([shard_folder]), tmp_path / "run", data=None, evaluation=None, numpy=None)
    assert begin([shard_folder]).progress.position == AT_STEP_5


def test_another_version_of_numpy_is_a_warning(
    begin: Begin, shard_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(begin([shard_folder]), tmp_path / "run", numpy="1.0")
    with caplog.at_level(logging.WARNING):
        assert begin([shard_folder]).progress.position == AT_STEP_5
    assert "made with numpy 1.0" in caplog.text


def test_scores_of_another_evaluation_are_not_compared(
    begin: Begin, shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    save(begin([shard_folder], evaluation=shard_folder), run_dir, score=0.9)
    begin([shard_folder], evaluation=shard_folder)
    assert checkpoint.read_best(run_dir) == {"step": 5, "score": 0.9}
    begin([shard_folder], "train.eval_utterances=8", evaluation=shard_folder)
    assert checkpoint.read_best(run_dir) is None
    assert "the best checkpoint is chosen anew" in capsys.readouterr().out


def test_checkpoints_of_which_none_is_whole_are_no_fresh_start(begin: Begin, shard_folder: Path, tmp_path: Path) -> None:
    save(begin([shard_folder]), tmp_path / "run")
    (checkpoint.folder_of(tmp_path / "run", 5) / checkpoint.OPTIMIZER).unlink()
    with pytest.raises(UserError, match=r"none of its 1 checkpoints can be used .*delete them to start afresh"):
        begin([shard_folder])


def test_a_run_goes_on_with_the_plan_it_began_with() -> None:
    before = recipes.to_dict(recipes.load("demo", []))
    check_same_plan(recipes.load("demo", ["plan.rows_per_micro_batch=1", "train.steps=9", "data.workers=7"]), before)
    for change in ("plan.row_tokens=512", "interleave.share=0.1", "seed=5"):
        with pytest.raises(UserError, match=change.split("=")[0]):
            check_same_plan(recipes.load("demo", [change]), before)


def test_every_changed_field_is_reported_with_both_values() -> None:
    before = recipes.to_dict(recipes.load("demo", []))
    del before["train"]["beta2"]  # a field that the version of the checkpoint did not have
    del before["data"]
    now = recipes.load("demo", ["train.learning_rate=0.001", "loss.ce=0.5", "data.workers=7", "run_dir=elsewhere"])
    assert changed_fields(now, before) == ["loss.ce from 0.0 to 0.5", "train.learning_rate from 0.002 to 0.001"]


def test_fields_that_the_checkpoints_version_did_not_have_count_as_their_defaults() -> None:
    before = recipes.to_dict(recipes.load("demo", ["plan.hours=0"]))
    del before["plan"]["hours"]
    before["interleave"]["of_a_later_version"] = 3
    check_same_plan(recipes.load("demo", []), before)
    with pytest.raises(UserError, match=r"plan\.hours=0\.0, the recipe says 2"):
        check_same_plan(recipes.load("demo", ["plan.hours=2"]), before)


def test_positions_and_digests_are_kept() -> None:
    progress = Progress(3, AT_STEP_5, 7.0, {"shards": "abc"}, "def")
    state = progress.to_state(recipes.load("demo"), 2)
    assert Progress.of(Snapshot({}, {}, state)).position == AT_STEP_5
    assert (state["data"], state["evaluation"], state["numpy"]) == ({"shards": "abc"}, "def", np.__version__)
