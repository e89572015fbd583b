"""DeepSpeed's configuration: a file of `ds_configs/` completed from the recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from mtbi.errors import UserError
from mtbi.recipe import Recipe

#: Fields of `model` that ZeRO-3 cannot be used with, and the message about each.
NOT_WITH_ZERO3 = {
    "llm_fp8": "model.llm_fp8 keeps each process's LLM whole: use ds_configs/zero1.json or ds_configs/zero2.json",
    "compile": "model.compile needs each process's LLM whole: use ds_configs/zero1.json or ds_configs/zero2.json",
}


def micro_batch_count(recipe: Recipe, world: int) -> int:
    """Micro-batches of each of `world` processes in a global step."""
    rows_per_process = math.ceil(recipe.plan.rows_per_step / world)
    return math.ceil(rows_per_process / recipe.plan.rows_per_micro_batch)


def decided_settings(recipe: Recipe, world: int, dtype: torch.dtype) -> dict[str, Any]:
    """The settings that the recipe decides. They must be `auto` or missing in the file."""
    train = recipe.train
    optimizer = {
        "lr": train.learning_rate,
        "betas": [train.beta1, train.beta2],
        "weight_decay": train.weight_decay,
        "torch_adam": True,
    }
    return {
        "train_micro_batch_size_per_gpu": recipe.plan.rows_per_micro_batch,
        "gradient_accumulation_steps": micro_batch_count(recipe, world),
        "gradient_clipping": train.grad_clip,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "optimizer": {"type": "AdamW", "params": optimizer},
    }


def read_ds_config(path: Path | str, recipe: Recipe, world: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration from a JSON file, completed from the recipe. Raises UserError for a wrong one."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed {path}: not a DeepSpeed configuration: {error}. Choose one of ds_configs/.") from error
    for key, value in decided_settings(recipe, world, dtype).items():
        if config.get(key, "auto") != "auto":
            raise UserError(f'{path}: "{key}" must be "auto"; the recipe decides it (mtbi recipe show)')
        config[key] = value
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 1, 2 or 3")
    for field, message in NOT_WITH_ZERO3.items():
        if stage == 3 and getattr(recipe.model, field):
            raise UserError(f"{path}: {message}")
    return config
