from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtbi import recipe as recipes
from mtbi.engine.engine import micro_batches, read_config
from mtbi.errors import UserError

CONFIGS = Path(__file__).parents[2] / "ds_configs"
SCRIPT = str(Path(__file__).with_name("gradients.py"))


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.json")))
def test_shipped_configurations_are_filled_in(config: str) -> None:
    recipe = recipes.load("demo", ["plan.rows_per_step=12", "plan.rows_per_micro_batch=2", "train.grad_clip=0.5"])
    filled = read_config(CONFIGS / config, recipe, world=4, dtype=torch.bfloat16)
    assert "auto" not in json.dumps(filled)
    assert filled["gradient_accumulation_steps"] == micro_batches(recipe, 4) == 2
    assert filled["gradient_clipping"] == 0.5
    assert filled["bf16"] == {"enabled": True}


def test_wrong_configurations_are_explained(tmp_path: Path) -> None:
    recipe, path = recipes.load("demo", []), tmp_path / "ds.json"
    with pytest.raises(UserError, match="not a DeepSpeed configuration"):
        read_config(path, recipe, 1, torch.float32)
    path.write_text(json.dumps({"gradient_clipping": 3.0, "zero_optimization": {"stage": 2}}))
    with pytest.raises(UserError, match='"gradient_clipping" must be "auto"'):
        read_config(path, recipe, 1, torch.float32)
    path.write_text("{}")
    with pytest.raises(UserError, match="stage must be 1, 2 or 3"):
        read_config(path, recipe, 1, torch.float32)
    with pytest.raises(UserError, match=r"model\.compile needs each process's LLM whole"):
        read_config(CONFIGS / "zero3.json", recipes.load("demo", ["model.compile=true"]), 1, torch.float32)


@pytest.fixture
def gradients(
    launch: Callable[..., list[str]], run: Callable[..., str], tmp_path: Path
) -> Callable[..., dict[str, torch.Tensor]]:
    """Gradients of one step for a number of processes, a ZeRO stage and rows in a micro-batch."""

    def compute(processes: int, stage: int, rows: int) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{processes}-{stage}-{rows}.safetensors"
        command = launch(
            tmp_path / "run", f"plan.rows_per_micro_batch={rows}", "train.grad_clip=0", processes=processes, stage=stage
        )
        script = next(place for place, word in enumerate(command) if word.endswith("train.py"))
        command[script] = SCRIPT
        run([*command, "--out", str(out)])
        return load_file(out)

    return compute


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = value.abs().max()
        assert scale > 0, name
        assert (value - other[name]).abs().max() <= 1e-5 * scale, name


def test_the_gradient_is_the_same_on_one_and_two_processes(gradients: Callable[..., dict[str, torch.Tensor]]) -> None:
    assert_same(gradients(1, 1, 4), gradients(2, 3, 1))


@pytest.mark.slow
def test_the_gradient_does_not_depend_on_the_split(gradients: Callable[..., dict[str, torch.Tensor]]) -> None:
    whole = gradients(1, 2, 4)
    for processes, stage, rows in [(2, 1, 2), (2, 2, 1), (3, 3, 1), (4, 3, 1)]:
        assert_same(whole, gradients(processes, stage, rows))
