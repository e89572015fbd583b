"""Several tokens from one position: heads that predict the tokens after the next one (`loss.later_tokens`).

Each of them has a small trainable layer before the LLM's frozen output layer, as in Medusa (arXiv 2401.10774). Its loss is the
loss of the token that it predicts. The heads train the adapter too: multi-token prediction (arXiv 2404.19737).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.batches.batch import Batch

#: Weight of the mean loss of all later tokens beside the loss of the next one, as in DeepSeek-V3 (arXiv 2412.19437).
SHARE = 0.3
Columns = tuple[Tensor, ...]


class LaterTokens(nn.Module):
    """One residual layer for each token after the next."""

    def __init__(self, hidden: int, count: int) -> None:
        """`hidden` is the width of the LLM, `count` the number of later tokens. A fresh layer is the identity."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(count))
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(
        self, hidden: Tensor, batch: Batch, columns: Columns, token_losses: Callable[[Tensor, Columns], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add, (), and its parts by name, as in `LossOutput`: `loss_token_2` is that of the token after the next.

        `hidden` (targets, hidden) are the LLM's last hidden states, `columns` and `token_losses` are those of `AnswerHead`.
        """
        loss, means = hidden.new_zeros((), dtype=torch.float32), {}
        for offset, layer in enumerate(self.layers, start=1):
            states = hidden[: max(0, len(hidden) - offset)]
            losses, _ = token_losses(states + functional.silu(layer(states)), tuple(column[offset:] for column in columns))
            weight = later_weight(batch, offset)
            total = (losses * weight).sum()
            loss = loss + SHARE / len(self.layers) * total
            means[f"loss_token_{offset + 1}"] = torch.stack([total.detach(), weight.sum()])
        return loss, means


def later_weight(batch: Batch, offset: int) -> Tensor:
    """Weights (targets - offset,) of the targets from number `offset` on.

    A weight is 0 where the target `offset` places before belongs to another answer. The targets of an answer lie at
    neighbouring positions of one branch.
    """
    later = batch.target_slot[offset:]
    first = batch.target_slot[: len(later)]
    same = later - first == offset
    for column in (batch.group.flatten(), batch.branch.flatten()):
        same &= column[first] == column[later]
    return batch.target_weight[offset:] * same
