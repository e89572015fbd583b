"""The closed-form start of an adapter: its output layer by ridge regression to the LLM's embeddings of the spoken words.

A fresh adapter's layers stay random up to the input of the output layer. The output layer is the one linear map of that input
that comes nearest to the embeddings of the words, in their places (docs/method.md). The sums of the regression are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtbi.batches.batch import clip_tensors
from mtbi.llm.load import TABLE_ROWS, mean_embedding
from mtbi.model.adapter import Output
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.shards.index import Index
from mtbi.shards.record import StoredUtterance

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


@dataclass(frozen=True)
class Shares:
    """The time of each token of an utterance, in adapter frames. The tokens of a word share its time equally, in order."""

    ids: Tensor  #: (tokens,) int64
    middle: Tensor  #: (tokens,) int64, the frame that contains the middle of the token's share
    inside: Tensor  #: (tokens, frames) bool: the middle frame, and all frames whose own middle is in the share

    @classmethod
    def of(cls, utterance: Spoken, frames: int, samples_per_frame: float) -> Shares:
        """Those of an utterance of so many adapter frames."""
        ids = utterance.stored.word_ids
        begin, end = utterance.stored.word_times.astype(np.float64).T / samples_per_frame
        counts = np.array([len(word) for word in ids])
        length = np.repeat((end - begin) / counts, counts)
        order = np.concatenate([np.arange(count) for count in counts])
        first = np.repeat(begin, counts) + order * length
        middle = np.minimum((first + length / 2).astype(np.int64), frames - 1)
        centres = np.arange(frames) + 0.5
        inside = (centres >= first[:, None]) & (centres < (first + length)[:, None])
        inside[np.arange(len(middle)), middle] = True
        return cls(torch.from_numpy(np.concatenate(ids).astype(np.int64)), torch.from_numpy(middle), torch.from_numpy(inside))

    def highest(self, scores: Tensor) -> Tensor:
        """The frame `(tokens,)` of each token's share with the highest of the scores `(tokens, frames)`."""
        return scores.masked_fill(~self.inside.to(scores.device), -torch.inf).argmax(1)


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
        self.mean = mean_embedding(model.embed, self.vocabulary)  #: (llm_hidden,) float64
        self.silence = mean_embedding(model.embed, self.vocabulary.new_tensor(silence)) if silence else self.mean

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
        columns = clip_tensors([utterance.sound for utterance in spoken], self.index)
        clips: dict[str, Any] = {name: column.to(self.mean.device) for name, column in columns.items()}
        hook = self.layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        parts = (self.model.encoder, self.model.adapter)
        training = [part.training for part in parts]
        for part in parts:
            part.eval()
        try:
            _, counts = self.model.encode_clips(**clips)
        finally:
            hook.remove()
            for part, mode in zip(parts, training, strict=True):
                part.train(mode)
        hidden = seen[0].reshape(len(spoken), -1, self.layer.in_features).double()
        hidden = functional.pad(hidden, (0, self.inputs - self.layer.in_features), value=1.0)
        return [frames[:count] for frames, count in zip(hidden, counts.tolist(), strict=True)]

    @torch.no_grad()
    def token_frames(self, shares: Shares, hidden: Tensor, solution: Tensor | None, known: bool = True) -> Tensor:
        """The adapter frame `(tokens,)` at which each token of an utterance stands.

        Without a solution it is the middle of the token's share. With one it is the frame of the share whose output is most
        like the token and least like silence. If the tokens count as not `known`, it is the one that is least like silence.
        """
        if solution is None:
            return shares.middle.to(hidden.device)
        output = hidden @ solution - self.silence
        if not known:
            return shares.highest(output.square().sum(1).expand(len(shares.ids), -1))
        wanted = self.model.embed(shares.ids.to(hidden.device)).double() - self.silence
        return shares.highest(2 * wanted @ output.T - wanted.square().sum(1, keepdim=True))

    @torch.no_grad()
    def targets(self, ids: Tensor, token_frames: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """What an utterance's adapter frames should be, `(frames, llm_hidden)`, and their weights `(frames,)`, float64.

        `token_frames` `(tokens,)` are the frames of the token `ids`. A frame with several tokens should be the mean of their
        embeddings.
        """
        tokens = torch.bincount(token_frames, minlength=frames)
        total = self.mean.new_zeros(frames, len(self.mean))
        embedded = self.model.embed(ids.to(token_frames.device)).double()
        total.index_put_((token_frames,), embedded, accumulate=True)  # unlike index_add_, always the same
        spoken = tokens > 0
        wanted = torch.where(spoken[:, None], total / tokens.clamp(min=1)[:, None], self.silence)
        return wanted, spoken.double().masked_fill(~spoken, self.weight)

    def sums(self, spoken: Sequence[Spoken], solution: Tensor | None = None) -> Tensor:
        """Xᵀ·W·[X | Y] over all frames of the utterances, `(inputs, inputs + llm_hidden)` float64.

        X are the hidden activations, W the weights and Y the targets. Sums of several calls may be added. A `solution` of
        earlier sums places the tokens.
        """
        total = self.empty()
        for utterance, hidden in zip(spoken, self.hidden(spoken), strict=True):
            shares = Shares.of(utterance, len(hidden), self.samples_per_frame)
            wanted, weight = self.targets(shares.ids, self.token_frames(shares, hidden, solution), len(hidden))
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

    def words(self, spoken: Sequence[Spoken], solution: Tensor) -> tuple[Tensor, Tensor]:
        """The regression's input `(words, inputs)` and the token id `(words,)` of all words of a single token."""
        rows, tokens = [self.mean.new_zeros(0, self.inputs)], [self.vocabulary[:0]]
        for utterance, hidden in zip(spoken, self.hidden(spoken), strict=True):
            shares = Shares.of(utterance, len(hidden), self.samples_per_frame)
            counts = torch.tensor([len(word) for word in utterance.stored.word_ids])
            single = (counts.repeat_interleave(counts) == 1).to(hidden.device)
            rows.append(hidden[self.token_frames(shares, hidden, solution, known=False)[single]])
            tokens.append(shares.ids.to(hidden.device)[single])
        return torch.cat(rows), torch.cat(tokens)

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
