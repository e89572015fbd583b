"""The loss of imitation: cross-entropy on the stored answers, divergence from the stored top-k teacher, or a mix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.batches.batch import Batch
from mtbi.errors import UserError
from mtbi.model.losses import liger
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
        plain = self.factor == 1 and self.cap is None
        if plain and len(hidden) and liger.takes(self.config, hidden.device):
            losses, correct = liger.LigerCrossEntropy.apply(hidden, self.weight, self.bias, batch.target_ids, self.config.ce)
        else:
            losses, correct = InChunks.apply(hidden, self, batch.target_ids, batch.teacher_ids, batch.teacher_logprobs)
        weighted = losses * batch.target_weight
        by_task = hidden.new_zeros(4, self.tasks, dtype=torch.float32)
        counts = torch.stack([weighted.detach(), batch.target_weight, correct.float(), torch.ones_like(weighted)])
        return LossOutput(weighted.sum(), batch.target_weight.sum(), *by_task.index_add(1, batch.target_task, counts.detach()))

    def logits(self, hidden: Tensor) -> Tensor:
        """The LLM's float32 logits (targets, vocabulary)."""
        logits = functional.linear(hidden, self.weight, self.bias).float()
        logits = logits if self.factor == 1 else logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def chunk(self, hidden: Tensor, ids: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (targets,) and whether the likeliest token is the stored one (targets,)."""
        return Imitation.apply(self.logits(hidden), ids, teacher_ids, teacher_logprobs, self.config.ce, self.config.kl)


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


class Imitation(torch.autograd.Function):
    """Cross-entropy of the stored tokens and divergence from the stored teacher, with the gradient written down.

    The logits are overwritten, by their gradient: nothing else of their size is made, and they are gone over half a dozen
    times instead of autograd's twenty. With the teacher's shares t of the named tokens and r of all others together, the
    student's p, its share R of all others and q = p / R among them, the divergence is Σ t·log(t / p) + r·log(r / R). Its
    gradient is p·(Σ t + r) - t at a named token and q·(R·(Σ t + r) - r) at another. Cross-entropy's is p, less 1 at the stored
    token.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, ids: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor, ce: float, kl: float
    ) -> tuple[Tensor, Tensor]:
        """`logits` (targets, vocabulary), the stored tokens (targets,), the teacher's likeliest ones (targets, k), each once,
        and their log-probabilities; -inf marks unused places. Returns losses, and whether the stored token is the likeliest.
        """
        if not kl:
            teacher_ids, teacher_logprobs = teacher_ids[:, :0], teacher_logprobs[:, :0]
        used = teacher_logprobs > -torch.inf
        share = torch.where(used, teacher_logprobs.exp(), 0)
        rest = (1 - share.sum(-1)).clamp(min=0)  # stored in float16, the shares may add up to a little more than 1
        rest = torch.where(rest > 1e-6, rest, 0)
        stored = logits.gather(1, ids[:, None])[:, 0]
        named = logits.gather(1, teacher_ids).masked_fill(~used, -torch.inf)

        # From here on the logits of named tokens are out of the way: the others' share comes from their own logits, since one
        # minus the named ones' would cancel to nothing.
        away = torch.finfo(logits.dtype).min / 2  # finite, so that a row without others is no row of NaN
        logits.scatter_add_(1, teacher_ids, used.to(logits.dtype) * away)
        most, likeliest = logits.max(-1)
        if teacher_ids.shape[1]:
            most_named, place = named.max(-1)
            likeliest = torch.where(most_named > most, teacher_ids.gather(1, place[:, None])[:, 0], likeliest)
        total = logits.sub_(most[:, None]).exp_().sum(-1)
        others = most + total.log()
        normaliser = torch.logaddexp(others, named.logsumexp(-1)) if teacher_ids.shape[1] else others
        log_named, log_rest = named - normaliser[:, None], others - normaliser

        loss = ce * (normaliser - stored)
        if kl:
            told = torch.where(used, share * (teacher_logprobs - log_named), 0).sum(-1)
            loss = loss + kl * (told + torch.where(rest > 0, rest * (rest.clamp(min=1e-6).log() - log_rest), 0))
        if ctx.needs_input_grad[0]:
            whole = ce + kl * (share.sum(-1) + rest)
            gradient = logits.mul_(((whole * log_rest.exp() - kl * rest) / total)[:, None])
            gradient.scatter_add_(1, teacher_ids, torch.where(used, whole[:, None] * log_named.exp() - kl * share, 0))
            gradient.scatter_add_(1, ids[:, None], torch.full_like(stored, -ce)[:, None])
            ctx.save_for_backward(gradient)
        correct = likeliest == ids
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """The gradient of the logits, in their memory: a second pass backwards is an error of autograd's."""
        [gradient] = ctx.saved_tensors
        return gradient.mul_(grads[0][:, None]), None, None, None, None, None


def teacher_divergence(logits: Tensor, teacher_ids: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """Kullback-Leibler divergence (targets,) of the student from the teacher over the top-k tokens, all others as one class.

    `logits` (targets, vocabulary) are overwritten; the teacher is as in `Imitation`.
    """
    return Imitation.apply(logits, logits.new_zeros(len(logits), dtype=torch.long), teacher_ids, teacher_logprobs, 0.0, 1.0)[0]
