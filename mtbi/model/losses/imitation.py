"""The loss of imitation: divergence from the stored top-k teacher and cross-entropy on the stored answer, target by target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtbi.batches.batch import Batch
from mtbi.errors import UserError
from mtbi.model.losses import liger
from mtbi.recipe import LossConfig


class ImitationLoss:
    """What the recipe's `loss` section asks of each answer token.

    A target with a stored teacher has the weights `ce` and `kl`. One without (a gold answer) has no divergence, and `gold_ce`
    for its cross-entropy. So gold and imitated answers can lie in one corpus.
    """

    def __init__(self, config: LossConfig) -> None:
        """Raises UserError for a loss that is always 0."""
        if config.ce <= 0 and config.kl <= 0:
            raise UserError("loss.ce and loss.kl are both 0: nothing would be learnt; set at least one above 0")
        self.config = config

    def columns(self, batch: Batch) -> tuple[Tensor, ...]:
        """Stored tokens (targets,), the teacher's tokens and log-probabilities (targets, k), weights of both parts (targets,).

        Raises UserError where a divergence is asked for and no teacher is stored.
        """
        config, ids, logprobs = self.config, batch.teacher_ids, batch.teacher_logprobs
        if config.kl and not config.gold_ce and batch.target_ids.numel() and not ids.shape[1]:
            raise UserError("loss.kl is above 0, but the shards hold no teacher: set behaviour.top_k and make them again")
        taught = (logprobs > -torch.inf).any(1)
        ce = torch.where(taught, config.ce, config.gold_ce or config.ce).to(logprobs.dtype)
        if not config.kl:
            ids, logprobs = ids[:, :0], logprobs[:, :0]
        return batch.target_ids, ids, logprobs, ce, config.kl * taught.to(logprobs.dtype)

    def __call__(self, logits: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (targets,) and whether the top-1 token is the stored one (targets,). The logits are overwritten."""
        return Imitation.apply(logits, *columns)

    def fused(self, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """Liger's kernel, where it computes this loss."""
        return liger.cross_entropy if liger.takes(self.config, device) else None


class Imitation(torch.autograd.Function):
    """Cross-entropy of the stored tokens and divergence from the stored teacher, with the gradient written by hand.

    The gradient overwrites the logits in place. No other tensor of that size is allocated, and memory is traversed about 6
    times instead of autograd's 20. The teacher gives the named tokens the probabilities t, and r to all others together. The
    student gives p to a token and R to all others together, q = p / R to each among them. The divergence is
    Σ t·log(t / p) + r·log(r / R). Its gradient is p·(Σ t + r) - t at a named token and q·(R·(Σ t + r) - r) at another. The
    gradient of cross-entropy is p, less 1 at the stored token.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor, ce: Tensor, kl: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`logits` (targets, vocabulary), the stored tokens (targets,), the teacher's top tokens (targets, k), each once, and
        their log-probabilities, -inf where one is unused. `ce` and `kl` (targets,) weigh the two parts of the loss.

        Returns losses (targets,) and whether the stored token is the top-1 token (targets,).
        """
        used = teacher_logprobs > -torch.inf
        share = torch.where(used, teacher_logprobs.exp(), 0)
        rest = (1 - share.sum(-1)).clamp(min=0)  # stored in float16, the shares may add up to a little more than 1
        rest = torch.where(rest > 1e-6, rest, 0)
        stored = logits.gather(1, ids[:, None])[:, 0]
        named = logits.gather(1, teacher_ids).masked_fill(~used, -torch.inf)

        # The named tokens' logits are pushed far down. The others' share then comes from their own logits: one minus the named
        # tokens' share would cancel to nothing.
        away = torch.finfo(logits.dtype).min / 2  # finite: a row in which all tokens are named must not become NaN
        logits.scatter_add_(1, teacher_ids, used.to(logits.dtype) * away)
        top_logit, top_token = logits.max(-1)
        if teacher_ids.shape[1]:
            top_named, index = named.max(-1)
            top_token = torch.where(top_named > top_logit, teacher_ids.gather(1, index[:, None])[:, 0], top_token)
        total = logits.sub_(top_logit[:, None]).exp_().sum(-1)
        others = top_logit + total.log()
        normaliser = torch.logaddexp(others, named.logsumexp(-1)) if teacher_ids.shape[1] else others
        log_named, log_rest = named - normaliser[:, None], others - normaliser

        loss = ce * (normaliser - stored)
        if teacher_ids.shape[1]:
            of_named = torch.where(used, share * (teacher_logprobs - log_named), 0).sum(-1)
            loss = loss + kl * (of_named + torch.where(rest > 0, rest * (rest.clamp(min=1e-6).log() - log_rest), 0))
        if ctx.needs_input_grad[0]:
            whole = ce + kl * (share.sum(-1) + rest)
            gradient = logits.mul_(((whole * log_rest.exp() - kl * rest) / total)[:, None])
            gradient.scatter_add_(1, teacher_ids, torch.where(used, whole[:, None] * log_named.exp() - kl[:, None] * share, 0))
            gradient.scatter_add_(1, ids[:, None], -ce[:, None])
            ctx.save_for_backward(gradient)
        correct = top_token == ids
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits, in their memory. Autograd raises an error for a second backward pass."""
        [gradient] = ctx.saved_tensors
        return gradient.mul_(grads[0][:, None]), None, None, None, None, None


def teacher_divergence(logits: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Kullback-Leibler divergence (targets,) of the student from the teacher over the top-k tokens, all others as one class.

    `logits` (targets, vocabulary) are overwritten. The teacher is as in `Imitation`.
    """
    none, one = (logits.new_full((len(logits),), weight) for weight in (0.0, 1.0))
    return Imitation.apply(logits, none.long(), teacher_ids, teacher_logprobs, none, one)[0]
