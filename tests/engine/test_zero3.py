"""The linear layer of frozen weights that takes DeepSpeed's place under ZeRO-3; test_engine.py trains with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import families
import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from engine.conftest import REPOSITORY, ds_config
from torch import Tensor
from torch.nn import functional

from mtbi.engine import zero3


@pytest.mark.parametrize("biased", [True, False])
def test_frozen_weights_keep_no_input_and_give_the_same_gradient(biased: bool) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(2, 5, 8), torch.randn(3, 8)
    bias = torch.randn(3) if biased else None
    found = {}
    for name, layer in {"ours": zero3.linear, "torch": functional.linear, "deepspeed": zero3_linear_wrap}.items():
        kept: list[int] = []

        def keep(saved: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(saved.numel())
            return saved

        own = inputs.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            out = layer(own, weight, bias)
        out.square().sum().backward()
        found[name] = (out.detach(), own.grad, kept)
    for mine, right in zip(found["ours"][:2], found["torch"][:2], strict=True):
        torch.testing.assert_close(mine, right)
    assert found["ours"][2] == [weight.numel()]
    assert inputs.numel() in found["deepspeed"][2]  # what is spared


def test_outside_of_a_graph_nothing_is_kept_and_trained_weights_get_their_gradient() -> None:
    inputs, weight = torch.randn(4, 8), torch.randn(3, 8)
    assert zero3.linear(inputs, weight).grad_fn is None
    with torch.no_grad():
        assert zero3.linear(inputs.requires_grad_(), weight).grad_fn is None
    trained = weight.clone().requires_grad_()
    zero3.linear(inputs.detach(), trained).sum().backward()
    torch.testing.assert_close(trained.grad, inputs.detach().sum(0).expand(3, -1))


def test_only_deepspeeds_own_layer_is_replaced(monkeypatch) -> None:
    before = functional.linear
    zero3.use_frozen_linear()
    assert functional.linear is before
    monkeypatch.setattr(functional, "linear", zero3_linear_wrap)
    zero3.use_frozen_linear()
    assert functional.linear is zero3.linear


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gemma3 with vision", "llama"])
def test_an_llm_is_read_into_partitions(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """Gemma 3's embedding has a buffer, for which transformers filled weights that were elsewhere (IndexError)."""
    folder = tmp_path / "llm"
    families.build(families.RIGHT[name](), "eager").save_pretrained(folder)
    command = [sys.executable, str(Path(__file__).with_name("load_partitioned.py")), str(folder), ds_config(3)]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert "all weights are those on disk" in done.stdout, done.stderr[-3000:]
