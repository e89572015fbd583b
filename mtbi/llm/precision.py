"""The precision of a run, from the recipe or by the device."""

from __future__ import annotations

import torch

NAMES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def of(precision: str, device: torch.device | str) -> torch.dtype:
    """bfloat16 or float32 for the recipe's `precision`: `auto` is bfloat16 on a GPU, float32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if torch.device(device).type == "cuda" else "fp32"
    return NAMES[precision]


def name_of(dtype: torch.dtype) -> str:
    """The name in the recipe: `bf16` or `fp32`."""
    return next(name for name, known in NAMES.items() if known == dtype)
