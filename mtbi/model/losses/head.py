"""The LLM's output layer over the answer positions, with any loss of their tokens on top, a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.batches.batch import Batch
from mtbi.errors import UserError
from mtbi.model.losses.imitation import ImitationLoss
from mtbi.model.losses.several_tokens import LaterTokens
from mtbi.model.new_rows import with_new_logits
from mtbi.recipe import LossConfig


class LossOutput(NamedTuple):
    """The loss of a batch and named sums over its targets, float32. Nothing is normalised."""

    loss: Tensor  #: (), sum of weight × loss, all parts of the loss together. The only one with a gradient.
    #: Quantities to log, by name: `(2,)`, or `(2, tasks)` for one by task and `(2, sources)` for one by folder of shards. The
    #: first row is a sum over targets, the second is what to divide it by. Sums of several batches can be added. `loss` is
    #: always among them.
    means: dict[str, Tensor]

    @property
    def weight(self) -> Tensor:
        """(), the sum of the targets' weights. A training step divides by the global step's total, which the plan knows."""
        return self.means["loss"][1]


class TokenLoss(Protocol):
    """A loss of answer tokens, given the output layer's logits."""

    def columns(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the loss needs of a batch besides logits; the first dimension of each tensor is targets."""
        ...

    def __call__(self, logits: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (targets,) and whether the top-1 token is the stored one (targets,).

        `logits` (targets, vocabulary) are float32 and may be overwritten.
        """
        ...

    def fused(self, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """A kernel that makes no logits, where there is one: a function of `(hidden, weight, bias, *columns)`."""
        ...


class AnswerHead(nn.Module):
    """The LLM's output layer and a loss in one module, over answer positions only.

    At most `chunk` positions' full-vocabulary logits exist at once, and none are computed twice (`InChunks`). The output
    layer's parameters are this module's own too, so that ZeRO-3 gathers them once a pass however many chunks a rank has.
    """

    def __init__(self, output: nn.Module, token_loss: TokenLoss, chunk: int, tasks: int, llm_config: object) -> None:
        """`output` is the LLM's output layer. Raises UserError for one that is not a plain linear layer."""
        super().__init__()
        if type(output) is not nn.Linear:
            raise UserError(f"the LLM's output layer is a {type(output).__name__}; only a plain linear layer is supported")
        self.weight, self.bias, self.width = output.weight, output.bias, output.in_features
        self.new_rows, self.first_new_id = getattr(output, "new_rows", None), getattr(output, "first_new_id", 0)
        self.token_loss, self.chunk, self.tasks = token_loss, chunk, tasks
        self.factor = getattr(llm_config, "logit_scale", None) or 1 / (getattr(llm_config, "logits_scaling", None) or 1)
        self.cap = getattr(llm_config, "final_logit_softcapping", None)
        self.sources = 1  #: folders of shards; the sums are also made by source where there are several
        self.later: LaterTokens | None = None  #: heads of further tokens, where the recipe asks for some

    def forward(self, hidden: Tensor, batch: Batch) -> LossOutput:
        """`hidden` is (targets, hidden). Raises UserError where the batch lacks what the loss needs."""
        columns = self.token_loss.columns(batch)
        losses, correct = self.token_losses(hidden, columns)
        weighted = losses * batch.target_weight
        loss = weighted.sum()
        counts = torch.stack([weighted.detach(), batch.target_weight, correct.float(), torch.ones_like(weighted).detach()])
        by_task = hidden.new_zeros(4, self.tasks, dtype=torch.float32).index_add(1, batch.target_task, counts)
        means = {
            "loss": torch.stack([loss.detach(), batch.target_weight.sum()]),
            "task_loss": by_task[:2],
            "task_agreement": by_task[2:],
        }
        if self.sources > 1:
            by_source = hidden.new_zeros(4, self.sources, dtype=torch.float32).index_add(1, batch.target_source, counts)
            means |= {"source_loss": by_source[:2], "source_agreement": by_source[2:]}
        if self.later is not None:
            further, more = self.later(hidden, batch, columns, self.token_losses)
            loss, means = loss + further, means | more
        return LossOutput(loss, means)

    def token_losses(self, hidden: Tensor, columns: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Losses (targets,) and whether the top-1 token is the stored one (targets,), from `hidden` (targets, hidden)."""
        trained = self.trained_parameters()
        plain = self.factor == 1 and self.cap is None and self.new_rows is None and len(hidden) and not trained
        if plain and (kernel := self.token_loss.fused(hidden.device)):
            return kernel(hidden, self.weight, self.bias, *columns)
        return InChunks.apply(hidden, self, len(columns), *columns, *trained)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of the output layer that train: none of a frozen LLM."""
        return [parameter for parameter in self.parameters(recurse=False) if parameter.requires_grad]

    def logits(self, hidden: Tensor) -> Tensor:
        """The LLM's float32 logits (targets, vocabulary)."""
        logits = functional.linear(hidden, self.weight, self.bias)
        if self.new_rows is not None:
            logits = with_new_logits(logits, hidden, self.new_rows, self.first_new_id)
        logits = logits.float()
        logits = logits if self.factor == 1 else logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def chunk_losses(self, hidden: Tensor, columns: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`token_losses` with the logits of all targets at once."""
        return self.token_loss(self.logits(hidden), *columns)


class InChunks(torch.autograd.Function):
    """`AnswerHead.chunk_losses` on a few targets at a time.

    The gradient of each hidden state is computed with its loss, while the logits exist, and only scaled in the backward pass
    (as in Liger's fused cross-entropy, arXiv 2410.10989). The output layer is usually frozen. Where some of its parameters
    train, the backward pass computes the chunks once more for their gradients: only then the scale of each target is known.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: AnswerHead, count: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """`tensors` are `count` columns of the targets, then the head's trained parameters. Returns losses and top-1 hits."""
        columns, trained = tensors[:count], tensors[count:]
        parts: list[tuple[Tensor, Tensor]] = []
        gradients: list[Tensor] = []
        for piece, *others in split(head.chunk, hidden, *columns):
            own = piece.detach().requires_grad_(ctx.needs_input_grad[0])
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                loss, correct = head.chunk_losses(own, tuple(others))
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, own, torch.ones_like(loss))
            parts.append((loss.detach(), correct))
        ctx.head, ctx.columns = head, count
        gradient = torch.cat(gradients) if gradients else None
        ctx.save_for_backward(gradient, *((hidden, *columns) if trained else ()))
        losses, correct = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `hidden` and of the trained parameters."""
        gradient, *saved = ctx.saved_tensors
        scale = grads[0]
        own = None if gradient is None else (gradient * scale[:, None]).to(gradient.dtype)
        of_parameters: list[Tensor] = []
        if saved:
            hidden, *columns = saved
            of_parameters = parameter_gradients(ctx.head, hidden, columns, scale)
        return own, None, None, *(None for _ in range(ctx.columns)), *of_parameters


def split(size: int, *tensors: Tensor) -> zip:
    """Neighbouring rows of several tensors, `size` at a time."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def parameter_gradients(head: AnswerHead, hidden: Tensor, columns: list[Tensor], scale: Tensor) -> list[Tensor]:
    """Gradients of the sum of `scale` (targets,) × loss for the output layer's trained parameters, chunk by chunk."""
    trained = head.trained_parameters()
    totals = [torch.zeros_like(parameter) for parameter in trained]
    for piece, scales, *others in split(head.chunk, hidden.detach(), scale, *columns):
        with torch.enable_grad():
            losses, _ = head.chunk_losses(piece, tuple(others))
        for total, part in zip(totals, torch.autograd.grad(losses, trained, scales), strict=True):
            total += part
    return totals


def build_head(output: nn.Module, config: LossConfig, tasks: int, llm_config: object) -> AnswerHead:
    """The head that a recipe's loss asks for. Raises UserError for an output layer or a loss that cannot be trained with."""
    head = AnswerHead(output, ImitationLoss(config), config.chunk, tasks, llm_config)
    if config.later_tokens:
        head.later = LaterTokens(head.width, config.later_tokens).to(head.weight.device, head.weight.dtype)
    return head
