"""Trainable rows for new tokens, beside an LLM's frozen embedding and output layer.

The rows are parameters of these two modules, and hooks put them to use. So transformers' `generate` reads and predicts new
tokens too, the frozen matrices keep their names, and a checkpoint holds the new rows alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtbi.errors import UserError
from mtbi.llm.load import gathered
from mtbi.llm.vocabulary import add_new_tokens
from mtbi.recipe import ModelConfig

NAME = "new_rows"  #: of the parameter of each of the two modules, (new tokens, hidden)


class NewRows:
    """The hooks on an LLM's embedding and output layer."""

    def __init__(self, llm: Any, first: int, count: int) -> None:
        """The new tokens have the ids `first` to `first + count - 1`.

        Each new row begins as the mean of the frozen ones. A tied LLM has one table of new rows, another LLM has two.
        Raises UserError for an LLM whose embedding is of another kind, or has too few rows for its own tokens.
        """
        embedding, output = llm.get_input_embeddings(), llm.get_output_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise UserError(f"model.new_tokens: an embedding of the type {type(embedding).__name__} is not supported")
        if embedding.num_embeddings < first:
            raise UserError(
                f"model.new_tokens: the LLM has {embedding.num_embeddings} embeddings for {first} tokens; choose another LLM"
            )
        self.first, self.count = first, count
        self.offset = torch.zeros(0, dtype=torch.long)
        rows = mean_rows(embedding.weight, first, count)
        embedding.register_parameter(NAME, rows)
        tied = output.weight is embedding.weight
        output.register_parameter(NAME, rows if tied else mean_rows(output.weight, first, count))
        output.first_new_id = first
        embedding.register_forward_pre_hook(self._enter)
        embedding.register_forward_hook(self._embed)
        output.register_forward_hook(self._predict)

    def _enter(self, embedding: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The frozen embedding looks up token 0 in the place of a new one."""
        ids, *others = args
        self.offset = ids - self.first
        return ids.masked_fill(self._is_new(), 0), *others

    def _is_new(self) -> Tensor:
        return (self.offset >= 0) & (self.offset < self.count)

    def _embed(self, embedding: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = getattr(embedding, NAME)
        scale = getattr(embedding, "embed_scale", None)  # of Gemma's embedding
        rows = rows if scale is None else rows * torch.as_tensor(scale).to(rows)
        new = functional.embedding(self.offset.clamp(0, self.count - 1), rows)
        return torch.where(self._is_new()[..., None], new.to(output.dtype), output)

    def _predict(self, output: Any, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return with_new_logits(logits, args[0], getattr(output, NAME), self.first)


def mean_rows(weight: Tensor, stop: int, count: int) -> nn.Parameter:
    """`count` times the mean of the first `stop` rows of a weight (vocabulary, hidden)."""
    with gathered(weight), torch.no_grad():
        mean = weight[:stop].float().mean(0)
    return nn.Parameter(mean.to(weight.dtype).repeat(count, 1))


def with_new_logits(logits: Tensor, hidden: Tensor, rows: Tensor, first: int) -> Tensor:
    """Logits `(…, vocabulary)` with those of the new tokens from `first` on, which may be beyond the LLM's vocabulary."""
    new = functional.linear(hidden, rows)
    return torch.cat([logits[..., :first], new, logits[..., first + len(rows) :]], -1)


def add_new_rows(llm: Any, config: ModelConfig) -> None:
    """Trainable rows for the recipe's new tokens; nothing where there are none."""
    if not config.new_tokens:
        return
    from mtbi.llm.chat_format import load_llm_tokenizer

    tokenizer = load_llm_tokenizer(config.llm, config.trust_remote_code)
    ids = add_new_tokens(tokenizer, config.new_tokens, config.hidden_tokens)
    NewRows(llm, ids[0], len(ids))
