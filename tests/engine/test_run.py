"""Whole runs of one process, in this one: stopped, resumed, with bad steps and lost samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.comm import comm as deepspeed_comm
from engine.conftest import SMALL, ds_config, rank_environment

from launcher.ranks import STOPPED, Ranks, free_port
from mtbi import recipe as recipes
from mtbi import train
from mtbi.engine import checkpoint, guard
from mtbi.engine.engine import Engine
from mtbi.errors import UserError
from mtbi.llm.load import load_llm
from mtbi.recipe import ModelConfig
from mtbi.use.open_run import find_checkpoint


class Flag:
    """Asks the run to stop in its step number `stop`; 0 = never. The real one catches signals of this process."""

    def __init__(self, stop: int) -> None:
        self.left = stop

    @property
    def set(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """One process group for all runs here: DeepSpeed keeps it for as long as the process lives."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1, free_port()).items():
            patch.setenv(name, value)
        destroy = dist.destroy_process_group
        patch.setattr(dist, "destroy_process_group", lambda: None)
        yield
        destroy()
        deepspeed_comm.cdb = None


@pytest.fixture
def train_here(alone: None, shard_folder: Path) -> Callable[..., int]:
    """Run `mtbi.train.train` on espeak-ng's digits as the only process; returns its status."""

    def start(run_dir: Path, *overrides: str, stop: int = 0) -> int:
        fields = [*SMALL, f"run_dir={run_dir}", f"data.shards=[{shard_folder}]", "train.hang_seconds=0", *overrides]
        return train.train(recipes.load("demo", fields), ds_config(1), Ranks(0, 1, 0, 1), Flag(stop))  # type: ignore[arg-type]

    return start


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load(folder)
    return {**found.trainable, **found.moments}


def same(one: Path, other: Path) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def names(run_dir: Path) -> list[str]:
    return [folder.name for folder in checkpoint.all_of(run_dir)]


def test_a_resumed_run_draws_the_same_masks_and_keeps_its_start(
    train_here: Callable[..., int], shard_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = ["model.llm_lora.rank=4", "model.llm_lora.dropout=0.5", "train.steps=4", "train.alignment_steps=2"]
    fields += ["augment.time_masks=2", "augment.channel_masks=2", "augment.gain_probability=0.5"]
    other = [f"data.eval_shards=[{shard_folder}]", "train.eval_every_steps=1", "train.eval_utterances=1"]
    assert train_here(tmp_path / "whole", *fields) == 0
    assert train_here(tmp_path / "resumed", *fields, *other, "train.sample_dialogues=1", stop=3) == STOPPED
    assert names(tmp_path / "resumed")[-1] == "step-00000003"
    assert capfd.readouterr().out.count("train.start is solved") == 2
    torch.rand(17)
    assert train_here(tmp_path / "resumed", *fields) == 0
    assert "train.start" not in capfd.readouterr().out
    assert same(checkpoint.folder_of(tmp_path / "whole", 4), checkpoint.folder_of(tmp_path / "resumed", 4))


def test_steps_without_the_llm_leave_its_own_weights_alone_and_later_steps_train_them(
    train_here: Callable[..., int], tmp_path: Path
) -> None:
    fields = ["model.llm_trainable=last 1", "train.llm_learning_rate=1e-4", "train.alignment_steps=2", "train.weight_decay=0.5"]
    assert train_here(tmp_path, *fields, "train.steps=4", stop=2) == STOPPED
    before = dict(load_llm(ModelConfig(), torch.float32, torch.device("cpu")).named_parameters())
    first = checkpoint.load_trainable(checkpoint.folder_of(tmp_path, 2))
    own = [name for name in first if name.startswith("llm.")]
    assert len(own) == 9
    assert all(torch.equal(first[name], before[name.removeprefix("llm.")]) for name in own)
    assert train_here(tmp_path, *fields, "train.steps=4") == 0
    last = checkpoint.load_trainable(checkpoint.folder_of(tmp_path, 4))
    for name in own:
        change = (last[name] - first[name]).abs().max()
        assert 0 < change < 5e-4, name  # two steps of at most 1e-4, and weight decay


def test_steps_smaller_than_a_bf16_digit_add_up_in_float32(train_here: Callable[..., int], tmp_path: Path) -> None:
    fields = ["model.llm_trainable=last 1", "train.llm_learning_rate=1e-7", "precision=bf16", "train.warmup_steps=0"]
    assert train_here(tmp_path, *fields, "train.steps=2", "plan.rows_per_step=1") == 0
    before = dict(load_llm(ModelConfig(), torch.bfloat16, torch.device("cpu")).named_parameters())
    after = checkpoint.load_trainable(checkpoint.folder_of(tmp_path, 2))
    for name in (name for name in after if name.startswith("llm.") and "proj" in name):
        first = before[name.removeprefix("llm.")]
        assert (after[name].bfloat16() == first).float().mean() > 0.9, name  # too little to reach the next number in 16 bits
        change = (after[name] - first.float()).abs()
        assert (change > 0).float().mean() > 0.9, name
        assert change.max() < 3e-7, name


def test_a_run_does_not_go_on_with_other_trainable_parts(train_here: Callable[..., int], tmp_path: Path) -> None:
    layers = ["model.llm_trainable=last 1", "train.llm_learning_rate=1e-4"]
    assert train_here(tmp_path / "run", *layers, "train.steps=2", "plan.rows_per_step=1") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(UserError, match=r"of another model \(the checkpoint trains LLM layers, and the recipe does not: 9 "):
        train_here(tmp_path / "run", "train.steps=4", "plan.rows_per_step=1")
    with pytest.raises(UserError, match=r"of another model \(the recipe trains LLM LoRA, and the checkpoint does not: "):
        train_here(tmp_path / "copy", *layers, "model.llm_lora.rank=2", "train.steps=4", "plan.rows_per_step=1")


@pytest.fixture
def high_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the loss of some steps (from 1) look a million times as high."""
    real, steps = Engine.train_step, set()
    monkeypatch.setattr(guard, "FEWEST_STEPS", 1)

    def faulty(engine: Engine, step: Any, number: int, stop: bool) -> Any:
        sums = real(engine, step, number, stop)
        return replace(sums, loss=sums.loss * (1e6 if number + 1 in steps else 1.0))

    monkeypatch.setattr(Engine, "train_step", faulty)
    return lambda *numbers: steps.update(numbers)


def test_a_stop_in_a_bad_step_loses_nothing(
    train_here: Callable[..., int], high_loss: Callable[..., None], tmp_path: Path
) -> None:
    high_loss(3, 4)
    fields = ["train.steps=5", "train.max_bad_steps=2", "train.start=random"]  # a solved start's first losses are near 0
    assert train_here(tmp_path / "whole", *fields) == 0
    assert train_here(tmp_path / "resumed", *fields, stop=3) == STOPPED
    assert names(tmp_path / "resumed") == ["step-00000002", "step-00000003"]
    assert checkpoint.after_bad_steps(checkpoint.folder_of(tmp_path / "resumed", 3))
    # Going on, the second bad step in a row puts the weights of step 2 back in both runs.
    assert train_here(tmp_path / "resumed", *fields) == 0
    assert same(checkpoint.folder_of(tmp_path / "whole", 5), checkpoint.folder_of(tmp_path / "resumed", 5))
    states = [checkpoint.load_state(checkpoint.folder_of(tmp_path / name, 5)) for name in ("whole", "resumed")]
    assert states[0]["guard"] == states[1]["guard"]
    assert states[0]["counts"] == states[1]["counts"]
    assert (states[1]["counts"]["rollbacks"], states[1]["counts"]["loss_spikes"]) == (1, 2)


def test_a_bad_last_step_leaves_a_checkpoint_that_nobody_goes_back_to(
    train_here: Callable[..., int],
    high_loss: Callable[..., None],
    tmp_path: Path,
    shard_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    high_loss(4)
    evaluation = [f"data.eval_shards=[{shard_folder}]", "train.eval_every_steps=2", "train.eval_utterances=1"]
    fields = ["train.steps=4", "train.keep_last=1", *evaluation, "train.sample_dialogues=0", "train.start=random"]
    assert train_here(tmp_path, *fields) == 0
    assert "done: 4 steps" in (output := capfd.readouterr().out)
    assert "The last checkpoint follows 1 bad step(s)" in output
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    assert checkpoint.latest_valid(tmp_path) == checkpoint.folder_of(tmp_path, 4)
    good = checkpoint.folder_of(tmp_path, 2)
    assert [checkpoint.latest_good(tmp_path), checkpoint.best(tmp_path), find_checkpoint(tmp_path, "latest")] == [good] * 3


def damaged(shard_folder: Path, out: Path, count: int) -> Path:
    """The shards with the first few spoilt."""
    for path in sorted(Path(shutil.copytree(shard_folder, out)).glob("shard.*.mds"))[:count]:
        path.write_bytes(path.read_bytes()[:-50] + bytes(50))
    return out


def test_too_many_lost_samples_stop_the_run_with_its_state(
    train_here: Callable[..., int], shard_folder: Path, tmp_path: Path
) -> None:
    shards = damaged(shard_folder, tmp_path / "shards", 1)
    fields = [f"data.shards=[{shards}]", "data.unreadable=skip", "train.steps=12"]
    with pytest.raises(UserError, match=r"data\.max_unreadable_share=0\.01"):
        train_here(tmp_path / "run", *fields)
    found = checkpoint.latest_valid(tmp_path / "run")
    assert found
    state = checkpoint.load_state(found)
    assert 0 < state["counts"]["unreadable_utterances"] <= state["utterances"]
    assert train_here(tmp_path / "run", *fields, "data.max_unreadable_share=0.9") == 0


def test_steps_without_targets_move_no_weight(
    train_here: Callable[..., int], shard_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards = damaged(shard_folder, tmp_path / "shards", 1000)
    fields = [f"data.shards=[{shards}]", "data.unreadable=skip", "data.max_unreadable_share=1", "train.weight_decay=0.5"]
    assert train_here(tmp_path / "run", *fields, "train.steps=2", "train.checkpoint_every_steps=1") == 0
    assert "follows 2 bad step(s)" in capfd.readouterr().out
    first, second = (checkpoint.load(folder) for folder in checkpoint.all_of(tmp_path / "run"))
    assert all(torch.equal(value, second.trainable[name]) for name, value in first.trainable.items())
    assert not any(value.any() for value in second.moments.values())
    assert second.state["optimizer_steps"] == 0
    with pytest.raises(UserError, match="there was no target to learn from in 2 steps in a row, before any checkpoint"):
        train_here(tmp_path / "other", *fields, "train.max_bad_steps=2")
