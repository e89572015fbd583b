"""The LLM's last layer computes only the hidden states that predict a target.

Elsewhere the last layer's keys and values are still needed, but its queries, attention outputs and MLP outputs are never read.
With answers at a quarter of the positions, skipping them saves two thirds of the layer, forward and backward. The parts of the
layer that treat each position alone get the positions that are read, and their outputs are put back among zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtbi.errors import UserError


class LastLayer:
    """Hooks on an LLM's last decoder layer. They act only if the forward keyword `packing` names the positions that are read.

    With hooks, no model's code is copied and no weight changes its name. A layer whose parts have other names computes all
    positions, as before.
    """

    def __init__(self, llm: Any) -> None:
        """Register the hooks on the last layer of `llm`."""
        self.read: Tensor | None = None
        self.shape = torch.Size()
        layer = decoder_layers(llm)[-1]
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        layer.register_forward_hook(self._leave, always_call=True)
        for part in parts(layer):
            part.register_forward_pre_hook(self._pick)
            part.register_forward_hook(self._put)

    def _enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Activation checkpointing calls this too, with the packing of the forward pass that it repeats."""
        packing = kwargs.get("packing")
        self.read = None if packing is None else packing.read

    def _leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        self.read = None

    def _pick(self, part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.read is None:
            return None
        states, *others = args
        self.shape = states.shape[:-1]
        return states.flatten(0, -2)[self.read][None], *others

    def _put(self, part: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if self.read is None:
            return None
        zeros = output.new_zeros(self.shape.numel(), output.shape[-1])
        return zeros.index_copy(0, self.read, output[0]).view(*self.shape, -1)


def decoder_of(llm: Any) -> Any:
    """An LLM without its output layer. `get_decoder` of transformers 5 returns the whole LLM for Llama 4."""
    decoder = llm.get_decoder()
    return llm.model if decoder is llm and hasattr(llm, "model") else decoder


def decoder_layers(llm: Any) -> nn.ModuleList:
    """An LLM's decoder layers, first to last. Raises UserError for a model that keeps them under another name (GPT-2)."""
    layers = getattr(decoder_of(llm), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(
            f"model.llm: {type(llm).__name__} is built of other modules than Llama and its like (its decoder has no `layers`), "
            "which is not supported: choose another LLM (docs/your-models.md)"
        )
    return layers


def parts(layer: nn.Module) -> list[nn.Module]:
    """The parts of a decoder layer that treat each position alone and do not compute keys or values.

    They are found by the names that Llama, Qwen, Mistral, Gemma and similar models use. A mixture of experts is not among them,
    because its router reports all positions.
    """
    attention, feed_forward = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    named = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
    named.append(feed_forward if hasattr(feed_forward, "down_proj") else None)
    return [part for part in named if part is not None]
