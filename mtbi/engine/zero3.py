"""DeepSpeed ZeRO-3 settings for a mostly frozen model."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3, zero3_linear_wrap
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor
from torch.nn import functional

from mtbi.model.speech_llm import SpeechLLMModule

_torch_linear = torch._C._nn.linear  # torch.nn.functional.linear before DeepSpeed replaces it


def prepare(model: SpeechLLMModule) -> None:
    """Make ZeRO-3 fetch and free each layer of the LLM in one piece, and keep a frozen encoder whole on each process.

    By default ZeRO-3 fetches each linear layer and norm by itself: a dozen collectives and some 50 Python hooks per layer. The
    layers of an encoder that trains are not changed, because DeepSpeed 0.19 frees a layer too early if its input needs no
    gradient. A frozen encoder is small beside an LLM. Kept whole, it needs no gathering, so processes may call it different
    numbers of times, as their clips require.
    """
    for layers in (module for module in model.llm.modules() if isinstance(module, torch.nn.ModuleList)):
        for layer in layers:
            set_z3_leaf_module(layer, True)
    if not model.encoder_trains:
        model.__dict__["encoder"] = model._modules.pop("encoder")  # hides it: DeepSpeed partitions all parameters that it finds


def use_frozen_linear() -> None:
    """Replace DeepSpeed's own `torch.nn.functional.linear`, which it installs for ZeRO-3, by `linear`."""
    if functional.linear is zero3_linear_wrap:
        functional.linear = linear


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """DeepSpeed's linear layer for weights that train, `FrozenLinear` for frozen ones, torch's own if no gradient is needed."""
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return zero3_linear_wrap(input, weight, bias)
    if not (torch.is_grad_enabled() and input.requires_grad):
        return _torch_linear(input, weight, bias)
    return FrozenLinear.apply(input, weight, bias)


class FrozenLinear(LinearFunctionForZeroStage3):
    """A linear layer of frozen weights under ZeRO-3.

    Like DeepSpeed's, it saves the partitioned parameter for the backward pass, not the gathered weights. Unlike DeepSpeed's, it
    does not save its input, which only the weights' gradient would need.
    """

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute `torch.nn.functional.linear`."""
        return _torch_linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Save the weight for the backward pass."""
        LinearFunctionForZeroStage3.setup_context(ctx, (None, inputs[1]), output)
