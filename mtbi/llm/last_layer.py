"""The LLM's last layer computes only what is read.

Of the last hidden states only those that predict a target are used. All other positions are still keys and values in the last
layer, but their queries, what attention gives them and their part of the feed-forward layer reach nothing: with answers at a
quarter of the positions that is two thirds of the layer, forwards and backwards. The parts that treat each position by itself
get those that are read, and what they give is put back among zeros, which nothing sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtbi.errors import UserError


class LastLayer:
    """Hooks on an LLM's last decoder layer; they do something only where the forward keyword `packing` names what is read.

    Hooks, because then no model's code is copied and no weight changes its name. A layer whose parts have other names is left
    as it is: it computes everything.
    """

    def __init__(self, llm: Any) -> None:
        """Put the hooks on the layer."""
        self.read: Tensor | None = None
        self.shape = torch.Size()
        layer = decoder_layers(llm)[-1]
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        layer.register_forward_hook(self._leave, always_call=True)
        for part in parts(layer):
            part.register_forward_pre_hook(self._pick)
            part.register_forward_hook(self._put)

    def _enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Recomputed activations pass here too, with the packing of their own forward pass."""
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
        whole = output.new_zeros(self.shape.numel(), output.shape[-1])
        return whole.index_copy(0, self.read, output[0]).view(*self.shape, -1)


def decoder_layers(llm: Any) -> nn.ModuleList:
    """An LLM's decoder layers, first to last. Raises UserError for a model that keeps them under another name (GPT-2)."""
    layers = getattr(llm.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(
            f"model.llm: {type(llm).__name__} is built of other modules than Llama and its like (its decoder has no `layers`), "
            "which is not supported: choose another LLM (docs/your-models.md)"
        )
    return layers


def parts(layer: nn.Module) -> list[nn.Module]:
    """The parts of a decoder layer that treat each position by itself and are not needed for keys and values.

    Those of Llama, Qwen, Mistral, Gemma and their like. A mixture of experts, whose router reports all positions, is not one.
    """
    attention, feed_forward = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    found = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
    found.append(feed_forward if hasattr(feed_forward, "down_proj") else None)
    return [part for part in found if part is not None]
