"""Cross-entropy by Liger's fused kernel (Hsu et al. 2024, arXiv 2410.10989), for GPUs where `liger-kernel` is installed.

It leaves the logits in the precision of the hidden states and overwrites them with their gradient in one kernel, a part of the
targets at a time. It knows no stored teacher: with a divergence in the loss, `mtbi.model.loss` computes both itself.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from mtbi.recipe import LossConfig


@cache
def installed() -> bool:
    """Whether there is a kernel."""
    return find_spec("liger_kernel") is not None


def takes(config: LossConfig, device: torch.device) -> bool:
    """Whether the kernel computes such a loss on such a device."""
    return config.kernel == "auto" and not config.kl and device.type == "cuda" and installed()


class LigerCrossEntropy(torch.autograd.Function):
    """Losses under a frozen output layer."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, ce: float) -> tuple[Tensor, Tensor]:
        """`hidden` (targets, hidden), the output layer, the stored tokens (targets,), the factor of the loss.

        Returns losses (targets,) float32, and whether the likeliest token is the stored one (targets,).
        """
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

        wanted = {"compute_gradients": ctx.needs_input_grad[0], "weight_requires_grad": False, "return_predicted_tokens": True}
        losses, _, _, likeliest, gradient, *_ = fused_linear_cross_entropy_forward(
            hidden.detach(), weight, ids, bias=bias, reduction="none", **wanted
        )
        correct = likeliest == ids
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(gradient)
        ctx.ce = ce
        return ce * losses, correct

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """The gradient of `hidden`: each target's was computed with its loss."""
        [gradient] = ctx.saved_tensors
        return (gradient * (ctx.ce * grads[0])[:, None]).to(gradient.dtype), None, None, None, None
