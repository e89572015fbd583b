"""DeepSpeed's configurations: the shipped ones are completed, wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine.conftest import REPOSITORY

from mtbi import recipe as recipes
from mtbi.engine.ds_config import micro_batch_count, parameter_groups, read_ds_config
from mtbi.errors import UserError
from mtbi.model.adapter import Output, build_adapter
from mtbi.recipe import AdapterConfig, TrainConfig

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


@pytest.mark.parametrize("kind", ["mlp", "swiglu", "conv", "qformer", "transformer"])
def test_each_part_has_its_learning_rate(kind: str) -> None:
    adapter = build_adapter(AdapterConfig(kind, hidden=8), encoder_width=4, llm_hidden=8)
    parameters = {f"adapter.{name}": value for name, value in adapter.named_parameters()}
    parameters |= {"encoder.layer.weight": torch.nn.Parameter(torch.zeros(1)), "llm.lora": torch.nn.Parameter(torch.zeros(1))}
    rates = {"learning_rate": 1e-3, "encoder_learning_rate": 1e-5, "hidden_learning_rate": 1e-4}
    (output,) = (module for module in adapter.modules() if isinstance(module, Output))

    groups = parameter_groups(parameters, TrainConfig(**rates))
    shares = {id(parameter): group["rate_share"] for group in groups for parameter in group["params"]}
    assert [group["rate_share"] for group in groups] == pytest.approx([1, 0.01, 0.1])
    assert len(shares) == len(parameters)
    for parameter in adapter.parameters():
        is_output = any(parameter is own for own in output.parameters())
        assert shares[id(parameter)] == pytest.approx(1 if is_output else 0.1)
    # Without rates of their own, all are one group, as DeepSpeed's partitions of earlier versions were.
    assert [group["rate_share"] for group in parameter_groups(parameters, TrainConfig(learning_rate=1e-3))] == [1]
