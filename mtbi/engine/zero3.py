"""What ZeRO-3 of DeepSpeed needs to be told about a model of which little trains."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3, zero3_linear_wrap
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor
from torch.nn import functional

from mtbi.model.speech_llm import SpeechLLMModule

_plain = torch._C._nn.linear  # torch.nn.functional.linear before DeepSpeed replaces it


def prepare(model: SpeechLLMModule) -> None:
    """Have ZeRO-3 fetch and free each layer of the LLM in one piece, and leave a frozen encoder alone.

    By default it does so for each linear layer and norm on its own: a dozen collectives a layer, and in Python some 50
    hooks. An encoder that trains stays as it is: DeepSpeed 0.19 frees a layer too early where its input needs no gradient.
    A frozen one is small beside an LLM. Whole, it is not gathered, and each process calls it as often as its own clips want.
    """
    for layers in (module for module in model.llm.modules() if isinstance(module, torch.nn.ModuleList)):
        for layer in layers:
            set_z3_leaf_module(layer, True)
    if not model.encoder_trains:
        model.__dict__["encoder"] = model._modules.pop("encoder")  # DeepSpeed partitions all parameters that it finds


def use_frozen_linear() -> None:
    """Put `linear` in the place of `torch.nn.functional.linear`, where DeepSpeed has put its own for ZeRO-3."""
    if functional.linear is zero3_linear_wrap:
        functional.linear = linear


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """DeepSpeed's linear layer for weights that train; for frozen ones `FrozenLinear`, or torch's own outside of a graph."""
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return zero3_linear_wrap(input, weight, bias)
    if not (torch.is_grad_enabled() and input.requires_grad):
        return _plain(input, weight, bias)
    return FrozenLinear.apply(input, weight, bias)


class FrozenLinear(LinearFunctionForZeroStage3):
    """A linear layer of frozen weights under ZeRO-3.

    As DeepSpeed's, it holds the parameter and not what was gathered of it. Unlike DeepSpeed's, it does not keep its input for
    a gradient of the weights that nobody wants.
    """

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `torch.nn.functional.linear`."""
        return _plain(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keep the weight."""
        LinearFunctionForZeroStage3.setup_context(ctx, (None, inputs[1]), output)
