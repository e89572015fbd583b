"""An adapter: the mean of each window of frames, and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from mtbi.model.adapter import Output, windows
from mtbi.recipe import AdapterConfig


class MeanPool(nn.Module):
    """One LLM position for each window of `stack` frames."""

    def __init__(self, config: AdapterConfig, width: int, llm_hidden: int, scale: float) -> None:
        super().__init__()
        self.stack = config.stack
        self.norm = nn.LayerNorm(width)
        self.output = Output(width, llm_hidden, scale, input_rms=1.0)

    def forward(self, frames: Tensor, exists: Tensor) -> Tensor:
        """`(clips, frames, width)` to `(clips, ceil(frames / stack), llm_hidden)`; `exists`: `(clips, frames, 1)`."""
        count = windows(exists.to(frames.dtype), self.stack).sum(2).clamp(min=1)
        return self.output(self.norm(windows(frames * exists, self.stack).sum(2) / count))
