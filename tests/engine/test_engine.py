"""The gradient of one step is the same however the step is split over processes and ZeRO stages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine.conftest import all_split
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("gradients.py"))


@pytest.fixture
def gradients(
    launch: Callable[..., list[str]], run: Callable[..., str], tmp_path: Path
) -> Callable[..., dict[str, torch.Tensor]]:
    """Gradients of one step for a number of processes, a ZeRO stage and rows in a micro-batch."""

    def compute(processes: int, stage: int, rows: int, *overrides: str, split: bool = False) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{processes}-{stage}-{rows}.safetensors"
        fields = [f"plan.rows_per_micro_batch={rows}", "train.grad_clip=0", *overrides]
        command = launch(tmp_path / "run", *fields, processes=processes, stage=stage, script=SCRIPT)
        run([*(all_split(command, tmp_path) if split else command), "--out", str(out)])
        return load_file(out)

    return compute


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = value.abs().max()
        assert scale > 0, name
        assert (value - other[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.slow
def test_the_gradient_does_not_depend_on_the_split(gradients: Callable[..., dict[str, torch.Tensor]]) -> None:
    whole = gradients(1, 2, 4)
    for processes, stage, rows in [(2, 1, 2), (2, 2, 1), (2, 3, 1), (4, 3, 1)]:
        assert_same(whole, gradients(processes, stage, rows))
    fields = ["train.alignment_steps=1", "augment.time_masks=2", "augment.channel_masks=2"]
    alone = gradients(1, 2, 4, *fields)
    assert not torch.equal(alone["loss"], whole["loss"])
    assert_same(alone, gradients(2, 3, 1, *fields))


@pytest.mark.slow
def test_the_gradient_of_the_llms_own_weights_does_not_depend_on_the_split(
    gradients: Callable[..., dict[str, torch.Tensor]],
) -> None:
    """Also with layers read straight into ZeRO-3's partitions, frozen layers below them, and recomputed activations."""
    fields = ["model.llm_trainable=1-3", "train.llm_learning_rate=1e-5"]
    whole = gradients(1, 2, 4, *fields)
    trained = {name for name in whole if name.startswith("llm.")}
    assert trained == {name for name in trained if ".layers.0." not in name and ".layers." in name} != set()
    recomputed = [*fields, "model.activation_checkpointing=on"]
    for processes, stage, rows, more, split in [
        (2, 1, 2, fields, False),
        (2, 3, 1, fields, True),
        (2, 3, 1, recomputed, True),
        (4, 3, 1, fields, False),
    ]:
        assert_same(whole, gradients(processes, stage, rows, *more, split=split))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_loss_that_is_not_finite_changes_nothing(
    launch: Callable[..., list[str]], run: Callable[..., str], tmp_path: Path, stage: int
) -> None:
    output = run(launch(tmp_path / "run", stage=stage, script=str(Path(__file__).with_name("bad_losses.py"))))
    found = [json.loads(text) for text in re.findall(r'\{"micro-batches".*?\}', output)]
    expected = {
        "micro-batches": [2, 2, 2],
        "all bad": [4, 0.0, False, True, 1],
        "as without it": True,
        "micro-batch 0 of one process": [1, True, True],
        "micro-batch 1 of one process": [1, True, True],
    }
    assert found == [expected] * 2
