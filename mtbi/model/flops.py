"""Operations of an LLM: four a parameter and token, two forward and two for the gradient of activations.

Weights that train have a gradient of their own, which takes two more (Kaplan et al., arXiv 2001.08361). Attention scores, the
second forward pass of activation checkpointing and LoRA's updates are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from mtbi.llm import fp8
from mtbi.llm.last_layer import decoder_layers, decoder_of, parts


def count(parameters: Iterable[nn.Parameter]) -> int:
    """The total size of parameters, also if ZeRO-3 has split them."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def size(module: nn.Module) -> int:
    """The number of parameters of a module, 8-bit floats included."""
    return count(module.parameters()) + fp8.size(module)


def own_trained(module: nn.Module) -> int:
    """The number of a module's own parameters that train, LoRA's left out."""
    return count(value for name, value in module.named_parameters() if value.requires_grad and "lora_" not in name)


class LLMSize(NamedTuple):
    """An LLM's number of parameters, by the tokens that are multiplied with them. Embeddings are only looked up."""

    all: int
    per_token: int  #: of the layers, without those in `per_answer`
    per_answer: int  #: of the output layer, and of the last layer's parts that only positions with a target pass
    trained_per_token: int = 0  #: of those in `per_token`, the ones that train
    trained_per_answer: int = 0  #: of those in `per_answer`

    @classmethod
    def of(cls, llm: Any) -> LLMSize:
        """The sizes of an LLM of transformers."""
        decoder = decoder_of(llm)
        last = sum(size(part) for part in parts(decoder_layers(llm)[-1]))
        layers = size(decoder) - size(llm.get_input_embeddings())
        trained_last = sum(own_trained(part) for part in parts(decoder_layers(llm)[-1]))
        trained = own_trained(decoder_layers(llm)) - trained_last
        return cls(size(llm), layers - last, size(llm.get_output_embeddings()) + last, trained, trained_last)

    def computed_flops(self, tokens: int, answers: int) -> int:
        """Operations of a step with `tokens` tokens, padding left out, of which `answers` are answer tokens to learn."""
        trained = self.trained_per_token * tokens + self.trained_per_answer * answers
        return 4 * (self.per_token * tokens + self.per_answer * answers) + 2 * trained
