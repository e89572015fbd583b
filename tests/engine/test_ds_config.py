"""DeepSpeed's configurations: the shipped ones are completed, wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine.conftest import REPOSITORY

from mtbi import recipe as recipes
from mtbi.engine.ds_config import micro_batch_count, read_ds_config
from mtbi.errors import UserError

CONFIGS = REPOSITORY / "ds_configs"


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.json")))
def test_shipped_configurations_are_filled_in(config: str) -> None:
    recipe = recipes.load("demo", ["plan.rows_per_step=12", "plan.rows_per_micro_batch=2", "train.grad_clip=0.5"])
    filled = read_ds_config(CONFIGS / config, recipe, world=4, dtype=torch.bfloat16)
    assert "auto" not in json.dumps(filled)
    assert filled["gradient_accumulation_steps"] == micro_batch_count(recipe, 4) == 2
    assert filled["gradient_clipping"] == 0.5
    assert filled["bf16"] == {"enabled": True}


def test_wrong_configurations_are_explained(tmp_path: Path) -> None:
    recipe, path = recipes.load("demo", []), tmp_path / "ds.json"
    with pytest.raises(UserError, match="not a DeepSpeed configuration"):
        read_ds_config(path, recipe, 1, torch.float32)
    path.write_text(json.dumps({"gradient_clipping": 3.0, "zero_optimization": {"stage": 2}}))
    with pytest.raises(UserError, match='"gradient_clipping" must be "auto"'):
        read_ds_config(path, recipe, 1, torch.float32)
    path.write_text("{}")
    with pytest.raises(UserError, match="stage must be 1, 2 or 3"):
        read_ds_config(path, recipe, 1, torch.float32)
    with pytest.raises(UserError, match=r"model\.compile needs each process's LLM whole"):
        read_ds_config(CONFIGS / "zero3.json", recipes.load("demo", ["model.compile=true"]), 1, torch.float32)
