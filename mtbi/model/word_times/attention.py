"""The cross-attention of chosen heads of Whisper's decoder, whatever implementation of attention computes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MEDIAN_FRAMES = 7
Head = tuple[int, int]  # layer, and head within it


class CrossAttention:
    """Records the queries and keys of chosen heads while the decoder runs.

    The forward pass itself may use any attention kernel: none of the fast ones returns its weights. Only the chosen heads
    cost memory.
    """

    def __init__(self, decoder: Any, heads: Iterable[Head]) -> None:
        """`heads` are Whisper's alignment heads. Raises IndexError for a head that the decoder does not have."""
        self._heads = sorted({(layer, head) for layer, head in heads})
        self._attention = {layer: decoder.layers[layer].encoder_attn for layer, _ in self._heads}
        self._recorded: dict[nn.Module, Tensor] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within this context the decoder's next pass is recorded. Afterwards nothing is kept."""

        def record(module: nn.Module, _: Any, output: Tensor) -> None:
            self._recorded[module] = output

        modules = [part for attention in self._attention.values() for part in (attention.q_proj, attention.k_proj)]
        handles = [module.register_forward_hook(record) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._recorded.clear()

    def weights(self, clip: int, rows: slice, frames: int) -> Tensor:
        """The attention `(heads, rows, frames)` of a clip's decoder positions over its frames alone, in float32."""
        logits = []
        for layer, head in self._heads:
            attention = self._attention[layer]
            inside = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            queries = self._recorded[attention.q_proj][clip, rows, inside].float()
            keys = self._recorded[attention.k_proj][clip, :frames, inside].float()
            logits.append(queries @ keys.T * attention.head_dim**-0.5)
        return torch.stack(logits).softmax(-1)


def evidence(weights: Tensor) -> Tensor:
    """How much each frame belongs to each token, `(tokens, frames)`, from attention `(heads, tokens, frames)`.

    As in OpenAI's timing.py (https://github.com/openai/whisper): standardised over the tokens, smoothed by a median over
    7 frames, mean over the heads.
    """
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    return median_filter((weights - mean) / deviation.clamp(min=1e-8)).mean(0)


def median_filter(values: Tensor) -> Tensor:
    """The median over 7 neighbours in the last dimension of `(…, …, frames)`. The edges are reflected."""
    half = MEDIAN_FRAMES // 2
    if values.shape[-1] <= half:
        return values
    padded = nn.functional.pad(values, (half, half), mode="reflect")
    return padded.unfold(-1, MEDIAN_FRAMES, 1).sort(-1)[0][..., half]
