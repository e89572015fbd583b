"""How much a token costs in a frozen LLM: four operations a parameter, two forwards and two for the gradient of activations.

Frozen weights have no gradient of their own (with one it would be six: Kaplan et al., arXiv 2001.08361). Attention scores are
not counted, nor are the second forward pass of activation checkpointing and the updates of LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from mtbi.llm import fp8
from mtbi.llm.last_layer import decoder_layers, parts


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers in all of them, wherever ZeRO-3 keeps them."""
    return sum(getattr(one, "ds_numel", one.numel()) for one in parameters)


def size(module: nn.Module) -> int:
    """Parameters of a module, 8-bit floats among them."""
    return count(module.parameters()) + fp8.size(module)


class LLMSize(NamedTuple):
    """Parameters of an LLM, by what is multiplied with them. Embeddings are only looked up."""

    all: int
    per_token: int  #: the layers, but for what only answers see
    per_answer: int  #: the output layer, and the last layer's parts that only positions with a target see

    @classmethod
    def of(cls, llm: Any) -> LLMSize:
        """Count them."""
        decoder = llm.get_decoder()
        last = sum(size(part) for part in parts(decoder_layers(llm)[-1]))
        layers = size(decoder) - size(llm.get_input_embeddings())
        return cls(size(llm), layers - last, size(llm.get_output_embeddings()) + last)

    def computed_flops(self, tokens: int, answers: int) -> int:
        """What a step computes for so many tokens, padding left out, of which so many answer tokens are learnt."""
        return 4 * (self.per_token * tokens + self.per_answer * answers)
