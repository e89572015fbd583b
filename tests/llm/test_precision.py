from __future__ import annotations

import torch

from mtbi.llm import precision


def test_the_recipe_decides_or_the_device() -> None:
    assert precision.of("bf16", "cpu") == torch.bfloat16
    assert precision.of("fp32", "cuda") == torch.float32
    assert precision.of("auto", "cpu") == torch.float32
    assert precision.of("auto", torch.device("cuda", 1)) == torch.bfloat16
    assert [precision.name_of(dtype) for dtype in (torch.bfloat16, torch.float32)] == ["bf16", "fp32"]
