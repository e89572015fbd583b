"""The closed-form start of an adapter: its output layer by ridge regression to the LLM's embeddings of the spoken words.

A fresh adapter's layers stay random up to the input of the output layer. The output layer is the one linear map of that input
that comes nearest to the embeddings of the words, in their places (docs/method.md). The sums of the regression are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtbi.batches.batch import clip_tensors
from mtbi.model.adapter import Output
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.shards.index import Index
from mtbi.shards.record import StoredUtterance

TABLE_ROWS = 8192  # of the LLM's embeddings that are converted to float32 or float64 at once
NEAREST = 10  # a word counts as near where its token is among so many


@dataclass(frozen=True)
class Spoken:
    """An utterance with word times."""

    stored: StoredUtterance
    samples: int  #: of its sound, also where features are stored in place of it

    @property
    def sound(self) -> np.ndarray:
        """The waveform `(samples,)`, or the encoder's stored output `(frames, width)`."""
        return self.stored.waveform if self.stored.features is None else self.stored.features


@dataclass(frozen=True)
class Fit:
    """How often the LLM's embedding that is nearest to the adapter's output is that of the spoken word."""

    words: int = 0  #: of a single token, in utterances that the regression did not read
    first: int = 0  #: of these, how many have their token nearest
    near: int = 0  #: of these, how many have their token among the NEAREST nearest

    def __str__(self) -> str:
        if not self.words:
            return "no words to test it on"
        first, near = self.first / self.words, self.near / self.words
        return f"of {self.words} other words {first:.1%} are nearest to their token, {near:.1%} among the nearest {NEAREST}"


def place_tokens(utterance: Spoken, frames: int, samples_per_frame: float) -> tuple[np.ndarray, np.ndarray]:
    """The adapter frame `(tokens,)` and the id `(tokens,)` of each token of an utterance.

    The tokens of a word share its time equally, in order. A token's frame is the one that contains the middle of its share.
    """
    middles = [
        begin + (np.arange(len(ids)) + 0.5) / len(ids) * (end - begin)
        for (begin, end), ids in zip(utterance.stored.word_times.astype(np.float64), utterance.stored.word_ids, strict=True)
    ]
    positions = (np.concatenate(middles) / samples_per_frame).astype(np.int64)
    return np.minimum(positions, frames - 1), np.concatenate(utterance.stored.word_ids).astype(np.int64)


class OutputRegression:
    """Ridge regression from the hidden activations of an adapter's output layer to the LLM's embeddings.

    All methods compute on the model's device. Under ZeRO-3 the LLM's embedding must be gathered (`mtbi.llm.load.gathered`).
    """

    def __init__(
        self, model: SpeechLLMModule, layer: Output, index: Index, samples_per_frame: float, silence: list[int], weight: float
    ) -> None:
        """`layer` is the adapter's output layer.

        Adapter frames without a token should be the mean embedding of the token ids `silence`, or of the whole vocabulary where
        there are none. They count with `weight`, frames with a token with 1.
        """
        self.model, self.layer, self.index = model, layer, index
        self.samples_per_frame, self.weight = samples_per_frame, weight
        vocabulary = torch.arange(model.llm.get_input_embeddings().num_embeddings)
        self.vocabulary = vocabulary.to(next(model.adapter.parameters()).device)
        self.mean = self._mean_embedding(self.vocabulary)  #: (llm_hidden,) float64
        self.silence = self._mean_embedding(self.vocabulary.new_tensor(silence)) if silence else self.mean

    @property
    def inputs(self) -> int:
        """Rows of the solution: the hidden activations, and a constant 1 where the layer has a bias."""
        return self.layer.in_features + (self.layer.bias is not None)

    def empty(self) -> Tensor:
        """The sums over nothing."""
        return self.mean.new_zeros(self.inputs, self.inputs + self.layer.out_features)

    @torch.no_grad()
    def hidden(self, spoken: Sequence[Spoken]) -> list[Tensor]:
        """The regression's input `(frames, inputs)` float64 for each utterance."""
        seen: list[Tensor] = []
        clips = clip_tensors([utterance.sound for utterance in spoken], self.index)
        hook = self.layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        parts = (self.model.encoder, self.model.adapter)
        training = [part.training for part in parts]
        for part in parts:
            part.eval()
        try:
            _, counts = self.model.encode_clips(**{name: clip.to(self.mean.device) for name, clip in clips.items()})
        finally:
            hook.remove()
            for part, mode in zip(parts, training, strict=True):
                part.train(mode)
        hidden = seen[0].reshape(len(spoken), -1, self.layer.in_features).double()
        hidden = functional.pad(hidden, (0, self.inputs - self.layer.in_features), value=1.0)
        return [frames[:count] for frames, count in zip(hidden, counts.tolist(), strict=True)]

    @torch.no_grad()
    def targets(self, utterance: Spoken, frames: int) -> tuple[Tensor, Tensor]:
        """What an utterance's adapter frames should be, `(frames, llm_hidden)`, and their weights `(frames,)`, float64.

        A frame with several tokens should be the mean of their embeddings.
        """
        places = place_tokens(utterance, frames, self.samples_per_frame)
        positions, ids = (torch.from_numpy(numbers).to(self.mean.device) for numbers in places)
        tokens = torch.bincount(positions, minlength=frames)
        total = self.mean.new_zeros(frames, len(self.mean))
        total.index_put_((positions,), self.model.embed(ids).double(), accumulate=True)  # unlike index_add_, always the same
        spoken = tokens > 0
        wanted = torch.where(spoken[:, None], total / tokens.clamp(min=1)[:, None], self.silence)
        return wanted, spoken.double().masked_fill(~spoken, self.weight)

    def sums(self, spoken: Sequence[Spoken]) -> Tensor:
        """Xᵀ·W·[X | Y] over all frames of the utterances, `(inputs, inputs + llm_hidden)` float64.

        X are the hidden activations, W the weights and Y the targets. Sums of several calls may be added.
        """
        total = self.empty()
        for utterance, hidden in zip(spoken, self.hidden(spoken), strict=True):
            wanted, weight = self.targets(utterance, len(hidden))
            total += (hidden * weight[:, None]).T @ torch.cat([hidden, wanted], 1)
        return total

    def solve(self, sums: Tensor, penalty: float) -> Tensor | None:
        """The solution `(inputs, llm_hidden)` float64 of the sums; None where they have none.

        `penalty` is a share of the mean diagonal of Xᵀ·W·X. The bias is not penalised.
        """
        gram, moments = sums[:, : self.inputs].cpu().clone(), sums[:, self.inputs :].cpu()
        if not sums.isfinite().all():
            return None
        diagonal = gram.diagonal()[: self.layer.in_features]
        diagonal += penalty * diagonal.mean()
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            return None
        return torch.cholesky_solve(moments, factor).to(sums.device).contiguous()

    @torch.no_grad()
    def put(self, solution: Tensor) -> None:
        """Set the layer's weights to a solution."""
        solution = solution / self.layer.scale
        self.layer.weight.copy_(solution[: self.layer.in_features].T)
        if self.layer.bias is not None:
            self.layer.bias.copy_(solution[-1])

    def words(self, spoken: Sequence[Spoken]) -> tuple[Tensor, Tensor]:
        """The regression's input `(words, inputs)` and the token id `(words,)` of all words of a single token."""
        rows, tokens = [self.mean.new_zeros(0, self.inputs)], [torch.zeros(0, dtype=torch.int64)]
        for utterance, hidden in zip(spoken, self.hidden(spoken), strict=True):
            positions, ids = (
                torch.from_numpy(numbers) for numbers in place_tokens(utterance, len(hidden), self.samples_per_frame)
            )
            counts = torch.tensor([len(word) for word in utterance.stored.word_ids])
            single = counts.repeat_interleave(counts) == 1
            rows.append(hidden[positions[single].to(hidden.device)])
            tokens.append(ids[single])
        return torch.cat(rows), torch.cat(tokens).to(self.mean.device)

    @torch.no_grad()
    def fit(self, solution: Tensor, hidden: Tensor, tokens: Tensor) -> Fit:
        """How well a solution fits words, from `words`. Nearness is the cosine, with the mean embedding taken off."""
        predicted = functional.normalize((hidden @ solution - self.mean).float(), dim=-1)
        right = self._directions(tokens)
        own = (predicted * right).sum(-1, keepdim=True)
        nearer = torch.zeros_like(tokens)
        for ids in self.vocabulary.split(TABLE_ROWS):
            others = predicted @ self._directions(ids).T
            nearer += ((others > own) & (ids != tokens[:, None])).sum(-1)
        return Fit(len(tokens), int((nearer == 0).sum()), int((nearer < NEAREST).sum()))

    def _directions(self, ids: Tensor) -> Tensor:
        return functional.normalize((self.model.embed(ids).double() - self.mean).float(), dim=-1)

    @torch.no_grad()
    def _mean_embedding(self, ids: Tensor) -> Tensor:
        """The mean of the LLM's embeddings of some token ids, `(llm_hidden,)` float64."""
        return torch.stack([self.model.embed(part).double().sum(0) for part in ids.split(TABLE_ROWS)]).sum(0) / len(ids)
