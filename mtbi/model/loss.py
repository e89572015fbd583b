"""The loss of imitation: cross-entropy on the stored answers, divergence from the stored top-k teacher, or a mix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.data.batch import Batch
from mtbi.errors import UserError
from mtbi.recipe import LossConfig


class LossOutput(NamedTuple):
    """Sums over the targets of a batch, float32. Divide by the global step's total weight, which the plan knows."""

    loss: Tensor  #: (), sum of weight * loss; the only one with a gradient
    weight: Tensor  #: ()
    task_loss: Tensor  #: (tasks,), as `loss`
    task_weight: Tensor  #: (tasks,)
    task_correct: Tensor  #: (tasks,), targets whose likeliest token is the stored one
    task_count: Tensor  #: (tasks,), targets


class AnswerHead(nn.Module):
    """The LLM's output layer and the loss in one module, over answer positions only.

    At most `chunk` positions' full-vocabulary logits exist at once, and none are computed twice (`InChunks`). The output
    layer's parameters are this module's own too, so that ZeRO-3 gathers them once a pass however many chunks a rank has.
    """

    def __init__(self, output: nn.Module, config: LossConfig, tasks: int, llm_config: object) -> None:
        """`output` is the LLM's output layer. Raises UserError for one that is no plain linear layer, or a loss of nothing."""
        super().__init__()
        if type(output) is not nn.Linear:
            raise UserError(f"the LLM's output layer is a {type(output).__name__}; only a plain linear layer is supported")
        if config.ce <= 0 and config.kl <= 0:
            raise UserError("loss.ce and loss.kl are both 0: nothing would be learnt; set at least one above 0")
        self.weight, self.bias = output.weight, output.bias
        self.config, self.tasks = config, tasks
        self.factor = getattr(llm_config, "logit_scale", None) or 1 / (getattr(llm_config, "logits_scaling", None) or 1)
        self.cap = getattr(llm_config, "final_logit_softcapping", None)

    def forward(self, hidden: Tensor, batch: Batch) -> LossOutput:
        """`hidden` is (targets, hidden). Raises UserError when the teacher is asked for and none is stored."""
        if self.config.kl and batch.target_ids.numel() and not batch.teacher_ids.shape[1]:
            raise UserError("loss.kl is above 0, but the shards hold no teacher: set behaviour.top_k and make them again")
        losses, correct = InChunks.apply(hidden, self, batch.target_ids, batch.teacher_ids, batch.teacher_logprobs)
        weighted = losses * batch.target_weight
        by_task = hidden.new_zeros(4, self.tasks, dtype=torch.float32)
        counts = torch.stack([weighted.detach(), batch.target_weight, correct.float(), torch.ones_like(weighted)])
        return LossOutput(weighted.sum(), batch.target_weight.sum(), *by_task.index_add(1, batch.target_task, counts.detach()))

    def logits(self, hidden: Tensor) -> Tensor:
        """The LLM's float32 logits (targets, vocabulary)."""
        logits = functional.linear(hidden, self.weight, self.bias).float() * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def chunk(self, hidden: Tensor, ids: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (targets,) and whether the likeliest token is the stored one (targets,)."""
        logits = self.logits(hidden)
        normaliser = logits.logsumexp(-1)
        loss = logits.sum(-1) * 0  # connected to the graph also where there is no target
        if self.config.ce:
            loss = loss + self.config.ce * (normaliser - logits.gather(1, ids[:, None])[:, 0])
        if self.config.kl and len(ids):
            loss = loss + self.config.kl * teacher_divergence(logits, normaliser, teacher_ids, teacher_logprobs)
        return loss, logits.argmax(-1) == ids


class InChunks(torch.autograd.Function):
    """`AnswerHead.chunk` on a few targets at a time.

    Each target's gradient is computed with its loss, while the logits are there, and only scaled in the backward pass (as in
    Liger's fused cross-entropy, arXiv 2410.10989). The output layer is frozen, so nothing else needs them.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: AnswerHead, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `hidden` and the columns are targets. Returns losses, and whether the likeliest token is the stored one."""
        parts: list[tuple[Tensor, Tensor]] = []
        gradients: list[Tensor] = []
        for piece, *others in zip(*(column.split(head.config.chunk) for column in (hidden, *columns)), strict=True):
            own = piece.detach().requires_grad_(ctx.needs_input_grad[0])
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                loss, correct = head.chunk(own, *others)
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, own, torch.ones_like(loss))
            parts.append((loss.detach(), correct))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        losses, correct = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """The gradient of `hidden`."""
        [gradient] = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None, None


def teacher_divergence(logits: Tensor, normaliser: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Kullback-Leibler divergence (targets,) of the student from the teacher over the top-k tokens, all others as one class.

    `logits` is (targets, vocabulary), `normaliser` its log-sum-exp, the teacher (targets, k); -inf marks unused places.
    """
    used = teacher_logprobs > -torch.inf
    share = teacher_logprobs.exp()
    student = logits.gather(1, teacher_ids) - normaliser[:, None]
    divergence = torch.where(used, share * (teacher_logprobs - student), 0).sum(-1)
    # The student's mass on all other tokens comes from their own logits: 1 - sum would cancel to nothing.
    named = torch.zeros_like(logits).scatter_add_(1, teacher_ids, used.to(logits.dtype)) > 0
    others = logits.masked_fill(named, torch.finfo(logits.dtype).min / 2).logsumexp(-1) - normaliser
    rest = (1 - share.sum(-1)).clamp(min=0)  # stored in float16, the shares may add up to a little more than 1
    return divergence + torch.where(rest > 1e-6, rest * (rest.clamp(min=1e-6).log() - others), 0)
