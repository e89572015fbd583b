"""The frozen LLM's linear layers as 8-bit floats (`model.llm_fp8`).

Weights and activations become float8 E4M3 (Micikevicius et al. 2022, arXiv 2209.05433). Each row has a scale of its own: a row
is an output of the layer, or a token. The gradient of the input is computed in its own precision from the rounded weights, with
rounding taken as the identity. The weights are frozen and have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mtbi.errors import UserError
from mtbi.llm.last_layer import decoder_of

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max  # 448
SMALLEST = 1e-12  #: smallest value that a row is scaled by, so that rows of zeros have a scale
CAPABILITY = (8, 9)  #: compute capability of the first GPUs with 8-bit floats
MULTIPLE = 16  #: both sizes of a weight must be multiples of this for the GPU's kernel
#: Names of routers in mixtures of experts. They are small, and rounding would make them choose other experts.
ROUTERS = {"gate", "router", "shared_expert_gate"}


def scales(values: Tensor) -> Tensor:
    """The factors (rows, 1) float32 by which float8 values must be multiplied, for `(rows, width)` of any float type."""
    return values.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST) / LARGEST


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """`(rows, width)` as float8, and their scales."""
    scale = scales(values)
    return (values / scale).to(FORMAT), scale


@cache
def _one_kernel() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`quantise` in one kernel, for a GPU. Several kernels that all read the activations would cost as much as is saved."""
    return torch.compile(quantise)


class Product(torch.autograd.Function):
    """Activations times rounded weights."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """`x (tokens, in)`, `weight (out, in)` float8 and `scale (out, 1)` float32 to `(tokens, out)` in the type of `x`."""
        ctx.save_for_backward(weight, scale)
        gpu = x.device.type == "cuda"
        rounded, own = _one_kernel()(x) if gpu and not torch.compiler.is_compiling() else quantise(x)
        if gpu and x.dtype == torch.bfloat16 and not any(size % MULTIPLE for size in weight.shape):
            return torch._scaled_mm(rounded, weight.t(), own, scale.t(), out_dtype=x.dtype, use_fast_accum=True)
        # Every float8 value is a bfloat16 value, so these are the kernel's operands (the CPU's kernel takes no scales of rows).
        # The last operation must make a new tensor. If it returns its input, as a cast to the same type does, torch 2.11
        # compiles this function to a gradient of zero.
        return (rounded.to(x.dtype) @ weight.t().to(x.dtype)) * (own * scale.t()).to(x.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """The gradient of `x`."""
        weight, scale = ctx.saved_tensors
        [grad] = grads
        return (grad * scale.t().to(grad.dtype)) @ weight.to(grad.dtype), None, None


class Fp8Linear(nn.Module):
    """A frozen linear layer with rounded weights and its own bias. The weights are buffers, in no checkpoint."""

    bits: Tensor  #: (out, in) uint8: float8 as plain bytes, which no cast of a whole model touches
    scale: Tensor  #: (out, 1) float32

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        """The weights of `linear`, rounded on `device`."""
        super().__init__()
        weight = linear.weight.detach().to(device)
        # The scales are bfloat16 numbers, so that multiplying a bfloat16 gradient by them rounds once. If a scale is rounded
        # down, the largest value is up to 1/256 above 448, and still becomes 448.
        scale = scales(weight).bfloat16().float()
        self.register_buffer("bits", (weight / scale).to(FORMAT).view(torch.uint8), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """`(out, in)` float8, still to be multiplied by `scale`."""
        return self.bits.view(FORMAT)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` to `(…, out)`, both of one float type."""
        out = Product.apply(x.reshape(-1, x.shape[-1]), self.weight, self.scale.float()).view(*x.shape[:-1], len(self.bits))
        return out if self.bias is None else out + self.bias


def check(device: torch.device) -> None:
    """Raises UserError for a GPU without 8-bit floats."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise UserError(
            f"model.llm_fp8 needs a GPU that computes in 8-bit floats (compute capability {'.'.join(map(str, CAPABILITY))} or "
            f"higher, such as H100); this one has {'.'.join(map(str, capability))}: leave it off"
        )


def convert(llm: Any, device: torch.device) -> None:
    """Replace the frozen linear layers inside the LLM's decoder in place, one by one. LoRA's updates of them stay.

    The rounded weights are on `device`, wherever the others are. Raises UserError if there is no layer to replace.
    """
    decoder = decoder_of(llm)
    names = [name for name, module in decoder.named_modules() if type(module) is nn.Linear and not module.weight.requires_grad]
    names = [name for name in names if not ROUTERS & set(name.split("."))]
    if not names:
        raise UserError(f"model.llm_fp8: {type(llm).__name__} has no plain linear layers to convert; leave it off")
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, Fp8Linear(decoder.get_submodule(name), device))


def size(model: nn.Module) -> int:
    """The number of weights that are 8-bit floats. They are not among the model's parameters."""
    return sum(module.bits.numel() for module in model.modules() if isinstance(module, Fp8Linear))
