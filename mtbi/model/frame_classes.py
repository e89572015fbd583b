"""What an adapter frame says, by the LLM's embeddings: silence, or one of the LLM's tokens.

The alignment loss (`mtbi.model.losses.alignment`) trains the adapter to say each spoken token at one frame, and silence at all
others. The LLM was never trained on text with so many spaces. With `model.adapter.drop_silence` it does not read those frames,
as in the compression of Gaido et al. (2021, arXiv 2102.01578), whose classes are those of a CTC layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtbi.llm.load import gathered, mean_embedding

#: The logit of a class is `SHARPNESS` × (e·o − e²/2) ÷ the mean e² of all classes, for the embedding e and the frame o.
SHARPNESS = 20.0
CHUNK = 1024  #: frames whose probabilities are computed at once
Embed = Callable[[Tensor], Tensor]


class FrameClasses:
    """Silence (class 0), and the LLM's first tokens. It has no parameters; the embeddings are copied once."""

    @torch.no_grad()
    def __init__(self, embed: Embed, vocabulary: Tensor, silence: Sequence[int], tokens: int = 0) -> None:
        """`embed` gives the LLM's embeddings of token ids, `vocabulary` are all of its ids. ZeRO-3 must have gathered them.

        Silence is the mean embedding of the token ids `silence`, or of the whole vocabulary where there are none. The other
        classes are the first `tokens` ids (0 = all).
        """
        self.first_rare = min(tokens or len(vocabulary), len(vocabulary))  #: the lowest id without a class
        common = vocabulary[: self.first_rare]
        if len(silence) == 1:
            common = common[common != silence[0]]
        silent = mean_embedding(embed, vocabulary.new_tensor(silence) if silence else vocabulary)
        self.embeddings = torch.cat([silent[None].float(), embed(common).float()])  #: (classes, hidden) float32
        self.half = self.embeddings.square().sum(1) / 2  #: (classes,) half of the squared lengths
        self.size = 2 * self.half.mean()  #: (), the mean squared length

    def logits(self, frames: Tensor) -> Tensor:
        """`(…, hidden)` float32 to `(…, classes)`."""
        return SHARPNESS / self.size * (frames @ self.embeddings.T - self.half)


class SilenceFilter(NamedTuple):
    """Tells the frames that the LLM does not read."""

    classes: FrameClasses
    least: float  #: probability of silence

    @torch.no_grad()
    def silent(self, frames: Tensor) -> Tensor:
        """Whether each adapter frame of `(frames, hidden)` is silence: (frames,) bool."""
        parts = [self.classes.logits(part.float()).softmax(1)[:, 0] >= self.least for part in frames.split(CHUNK)]
        return torch.cat(parts)

    @property
    def device(self) -> torch.device:
        """Where the classes are."""
        return self.classes.embeddings.device


def classes_of(llm: Any, silence: Sequence[int], tokens: int) -> FrameClasses:
    """The classes of an LLM. Under ZeRO-3 every process must call this."""
    table = llm.get_input_embeddings()
    with gathered(table.weight):
        return FrameClasses(table, torch.arange(table.num_embeddings, device=table.weight.device), silence, tokens)
