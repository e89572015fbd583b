"""The frozen LLM's linear layers as 8-bit floats (`model.llm_fp8`).

Weights and activations become float8 E4M3 (Micikevicius et al. 2022, arXiv 2209.05433) with one scale for each row: for an
output of the layer, and for a token. The gradient of the input comes from the same rounded weights, in its own precision;
rounding counts as the identity in it. The weights, being frozen, have none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mtbi.errors import UserError

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max  # 448
SMALLEST = 1e-12  #: the largest value of a row is taken for at least this, so that rows of zeros have a scale
CAPABILITY = (8, 9)  #: the first GPUs that compute in 8-bit floats
MULTIPLE = 16  #: of which both sizes of a weight must be for the GPU's kernel
ROUTERS = {"gate", "router", "shared_expert_gate"}  #: of mixtures of experts: small, and rounding them would choose others


def scales(values: Tensor) -> Tensor:
    """`(rows, 1)` float32 for `(rows, width)` of any float type: by what float8 values must be multiplied."""
    return values.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST) / LARGEST


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """`(rows, width)` as float8, and their scales."""
    scale = scales(values)
    return (values / scale).to(FORMAT), scale


@cache
def _one_kernel() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`quantise` for a GPU: several kernels that each read and write all activations would cost what the product saves."""
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
        # Float8 values are bfloat16 values too, so the operands are those of the kernel (the CPU's takes no scales of rows).
        # The last operation must make a new tensor: after one that returns its input, such as a cast to the same type, torch
        # 2.11 compiles this function to a gradient of zero.
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
        # Numbers that bfloat16 has too, so that multiplying a bfloat16 gradient by them rounds once. A value of at most 1/256
        # above 448, which a scale rounded down gives, still becomes 448.
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
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        raise UserError(
            f"model.llm_fp8 needs a GPU that computes in 8-bit floats (compute capability {'.'.join(map(str, CAPABILITY))} or "
            f"higher, such as H100); this one has {'.'.join(map(str, found))}: leave it off"
        )


def convert(llm: Any, device: torch.device) -> None:
    """Replace the frozen linear layers inside the LLM's decoder in place, one by one; what LoRA adds to them stays.

    The rounded weights lie on `device`, wherever the others are. Raises UserError where there is none to replace.
    """
    decoder = llm.get_decoder()
    names = [name for name, module in decoder.named_modules() if type(module) is nn.Linear and not module.weight.requires_grad]
    names = [name for name in names if not ROUTERS & set(name.split("."))]
    if not names:
        raise UserError(f"model.llm_fp8: {type(llm).__name__} has no plain linear layers to convert; leave it off")
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, Fp8Linear(decoder.get_submodule(name), device))


def size(model: nn.Module) -> int:
    """How many weights are 8-bit floats; they are not among the parameters."""
    return sum(module.bits.numel() for module in model.modules() if isinstance(module, Fp8Linear))
