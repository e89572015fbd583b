"""Cross-entropy by Liger's fused kernel (Hsu et al. 2024, arXiv 2410.10989), for GPUs where `liger-kernel` is installed.

It leaves the logits in the precision of the hidden states and overwrites them with their gradient in one kernel, a part of the
targets at a time. It has no divergence from a stored teacher: a loss with one is computed by `imitation.py`.
"""

from __future__ import annotations

import logging
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from mtbi.recipe import LossConfig

log = logging.getLogger(__name__)
#: Arguments of the kernel that are needed here. The function is not public, and its first versions have fewer.
ARGUMENTS = {"bias", "reduction", "compute_gradients", "weight_requires_grad", "return_predicted_tokens"}


@cache
def installed() -> bool:
    """Whether a kernel with these arguments is installed. A kernel that lacks some is named in a warning."""
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
    except ModuleNotFoundError:
        return False
    except ImportError as error:
        log.warning("liger-kernel is installed, but not used: %s", error)
        return False
    if lacking := ARGUMENTS - set(signature(fused_linear_cross_entropy_forward).parameters):
        log.warning(
            "liger-kernel is installed, but not used: its kernel lacks %s; install a newer one", ", ".join(sorted(lacking))
        )
    return not lacking


def takes(config: LossConfig, device: torch.device) -> bool:
    """Whether the kernel computes this loss on this device."""
    return config.kernel == "auto" and not config.kl and device.type == "cuda" and installed()


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    _teacher_ids: Tensor,
    _logprobs: Tensor,
    ce: Tensor,
    *_: Tensor,
) -> tuple[Tensor, Tensor]:
    """`LigerCrossEntropy`, given the columns of `ImitationLoss`."""
    return LigerCrossEntropy.apply(hidden, weight, bias, ids, ce)


class LigerCrossEntropy(torch.autograd.Function):
    """Losses under a frozen output layer."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, ce: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`hidden` (targets, hidden), the output layer, the stored tokens (targets,), the weights of the loss (targets,).

        Returns losses (targets,) float32 and whether the top-1 token is the stored one (targets,).
        """
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

        wanted = {"compute_gradients": ctx.needs_input_grad[0], "weight_requires_grad": False, "return_predicted_tokens": True}
        losses, _, _, top_token, gradient, *_ = fused_linear_cross_entropy_forward(
            hidden.detach(), weight, ids, bias=bias, reduction="none", **wanted
        )
        correct = top_token == ids
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(gradient)
        ctx.ce = ce
        return ce * losses, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `hidden`. The forward pass has computed it with the loss; it is only scaled here."""
        [gradient] = ctx.saved_tensors
        return (gradient * (ctx.ce * grads[0])[:, None]).to(gradient.dtype), None, None, None, None
