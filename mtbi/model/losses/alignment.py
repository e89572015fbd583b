"""The alignment loss: adapter frames become the embeddings of the spoken tokens, without the LLM (`loss.alignment`).

Each token of the transcript stands at one adapter frame, in order, and all other frames are silence. Which frames these are is
not known: all placements count, as in the Recurrent Neural Aligner (Sak et al., Interspeech 2017). It is CTC without repeats. A
token at two frames would be read twice. The classes are the LLM's tokens, and the logits are those of a Gaussian around each
token's embedding. So the LLM's frozen embeddings are the output layer, and no word times are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtbi.batches.batch import Batch
from mtbi.model.losses.head import LossOutput

#: The logit of a class is `SHARPNESS` × (e·o − e²/2) ÷ the mean e² of all classes, for the embedding e and the output o.
SHARPNESS = 20.0
#: Weight of the expected squared distance from the embeddings, in units of the mean e². The likelihood alone moves the outputs
#: away from other tokens, and also away from what the LLM can read (docs/method.md).
DISTANCE = 2.0
SILENCE_WEIGHT = 0.3  #: of a frame of silence in that distance; that of a frame with a token is 1
Embed = Callable[[Tensor], Tensor]


class AlignmentSums(NamedTuple):
    """Sums over the clips of a batch."""

    loss: Tensor  #: (), float32, with a gradient
    nll: Tensor  #: (), the negative log-likelihood of the tokens
    tokens: Tensor  #: (), of the clips that counted

    def added_to(self, out: LossOutput, alone: bool, weight: float) -> LossOutput:
        """`out` with this loss, `weight` times, beside it; or `alone` in its place."""
        own = torch.stack([self.nll, self.tokens])
        if alone:
            return LossOutput(out.loss + self.loss, out.means | {"loss": own, "alignment": own})
        return LossOutput(out.loss + weight * self.loss, out.means | {"alignment": own})


class Classes(NamedTuple):
    """The embeddings of all classes of some clips."""

    common: Tensor  #: (1 + tokens, hidden) float32: of silence and of the tokens that all clips are compared with
    own: Tensor  #: (clips, longest, hidden) float32: of the clip's own tokens
    extra: Tensor  #: (clips, longest) bool: the first of equal tokens, and not among the common ones


class AlignmentLoss:
    """The loss for one LLM. It has no parameters."""

    def __init__(self, silence: Sequence[int], vocabulary: int, tokens: int, chunk: int) -> None:
        """Silence is the mean embedding of the token ids `silence`, or of the whole `vocabulary` where there are none.

        A clip's tokens are told apart from each other and from the first `tokens` ids of the vocabulary, 0 = all. About `chunk`
        adapter frames are computed at once.
        """
        self.silence = list(silence) or list(range(vocabulary))
        self.count, self.chunk = min(tokens or vocabulary, vocabulary), chunk
        self.common = [token for token in range(self.count) if self.silence != [token]]

    def __call__(self, frames: Tensor, counts: Tensor, batch: Batch, embed: Embed) -> AlignmentSums:
        """`frames` (clips, frames, hidden) are the adapter's output, `counts` (clips,) their numbers, `embed` gives the LLM's
        embeddings of token ids.

        A clip with more tokens than frames does not count, nor does one whose tokens are not known.
        """
        ids = batch.spoken_ids
        with torch.no_grad():
            silence, *common = (embed(ids.new_tensor(some)).float() for some in (self.silence, self.common))
            table, own = torch.cat([silence.mean(0, keepdim=True), *common]), embed(ids).float()
        said = torch.arange(ids.shape[1], device=ids.device) < batch.spoken_lengths[:, None]
        repeated = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(2)
        lengths = batch.spoken_lengths * (counts >= batch.spoken_lengths)
        nll, losses = LossesInChunks.apply(
            frames, counts, lengths, Classes(table, own, said & ~repeated & (ids >= self.count)), self.chunk
        )
        return AlignmentSums(losses.sum(), nll.sum(), lengths.sum().float())


class LossesInChunks(torch.autograd.Function):
    """The losses of clips, with the scores of a few clips of similar length at a time.

    The scores are computed twice: for the placements, which take a loop over frames and so are those of all clips at once, then
    for the losses and their gradient. The backward pass only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, frames: Tensor, counts: Tensor, lengths: Tensor, classes: Classes, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihoods and losses (clips,). `lengths` (clips,) are the tokens, 0 for a clip without a loss."""
        trains = ctx.needs_input_grad[0]
        parts = []
        for some in counts.argsort(descending=True, stable=True).split(max(1, chunk // frames.shape[1])):
            piece = frames[some, : int(counts[some[0]])].detach().float()
            parts.append((some, piece, Classes(classes.common, classes.own[some], classes.extra[some])))
        silence = frames.new_zeros(frames.shape[:2], dtype=torch.float32)
        tokens = silence.new_zeros(*silence.shape, classes.own.shape[1])
        for some, piece, own in parts:
            silence[some, : piece.shape[1]], tokens[some, : piece.shape[1]] = scores(piece, own)
        nll, occupied, silent = placements(silence, tokens, counts, lengths)
        losses, gradient = torch.zeros_like(nll), frames.new_zeros(frames.shape if trains else 0, dtype=torch.float32)
        for some, piece, own in parts:
            inside = slice(piece.shape[1])
            with torch.set_grad_enabled(trains):
                loss = clip_losses(piece.requires_grad_(trains), own, occupied[some, inside], silent[some, inside])
            if trains:
                [gradient[some, inside]] = torch.autograd.grad(loss, piece, torch.ones_like(loss))
            losses[some] = loss.detach()
        ctx.save_for_backward(gradient)
        ctx.dtype = frames.dtype
        ctx.mark_non_differentiable(nll)
        return nll, losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the frames."""
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[1][:, None, None]).to(ctx.dtype), None, None, None, None


def scores(frames: Tensor, classes: Classes) -> tuple[Tensor, Tensor]:
    """Log-probabilities of silence (clips, frames), and of each of the clip's own tokens (clips, frames, longest)."""
    common_square, own_square = classes.common.square().sum(1), classes.own.square().sum(2)
    scale = SHARPNESS / common_square.mean()
    common = scale * (frames @ classes.common.T - common_square / 2)
    own = scale * (frames @ classes.own.transpose(1, 2) - own_square[:, None] / 2)
    total = torch.cat([common, own.masked_fill(~classes.extra[:, None], -torch.inf)], 2).logsumexp(2)
    return common[..., 0] - total, own - total[..., None]


def clip_losses(frames: Tensor, classes: Classes, occupied: Tensor, silent: Tensor) -> Tensor:
    """The losses (clips,) under fixed placements: `occupied` (clips, frames, longest) and `silent` (clips, frames).

    The gradient of the negative log-likelihood is that of the expected log-probability under fixed placements.
    """
    silence, tokens = scores(frames, classes)
    likelihood = -(occupied * tokens).sum((1, 2)) - (silent * silence).sum(1)
    square = frames.square().sum(2)
    from_own = square[..., None] - 2 * frames @ classes.own.transpose(1, 2) + classes.own.square().sum(2)[:, None]
    from_silence = (frames - classes.common[0]).square().sum(2)
    distance = (occupied * from_own).sum((1, 2)) + SILENCE_WEIGHT * (silent * from_silence).sum(1)
    return likelihood + DISTANCE / classes.common.square().sum(1).mean() * distance


def placements(silence: Tensor, tokens: Tensor, counts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All placements of a clip's tokens at its frames, in order, one frame each, by the forward-backward algorithm.

    `silence` (clips, frames) and `tokens` (clips, frames, longest) are log-probabilities. `counts` (clips,) are the
    frames of each clip, and `lengths` (clips,) its tokens, at most as many. Returns float32, 0 for a clip of length 0: the
    negative log-likelihood (clips,), and the probabilities that a token (clips, frames, longest) or silence (clips, frames)
    stands at a frame.
    """
    silence, tokens = silence.double(), tokens.double()
    clips, frames, longest = tokens.shape
    never = tokens.new_full((clips, 1), -torch.inf)
    state = torch.cat([torch.zeros_like(never), never.expand(-1, longest)], 1)  # by the number of tokens already said
    forward = []
    for frame in range(frames):
        forward.append(state)
        moved = torch.cat([never, state[:, :-1] + tokens[:, frame]], 1)
        later = torch.logaddexp(state + silence[:, frame, None], moved)
        state = torch.where((frame < counts)[:, None], later, state)
    total = state.gather(1, lengths[:, None])
    state = torch.full_like(state, -torch.inf).scatter(1, lengths[:, None], 0.0)
    occupied = torch.zeros_like(tokens)
    for frame in reversed(range(frames)):
        moved = tokens[:, frame] + state[:, 1:]
        occupied[:, frame] = forward[frame][:, :-1] + moved - total
        earlier = torch.logaddexp(state + silence[:, frame, None], torch.cat([moved, never], 1))
        state = torch.where((frame < counts)[:, None], earlier, state)
    inside = (torch.arange(frames, device=tokens.device) < counts[:, None]) & (lengths > 0)[:, None]
    occupied = torch.where(inside[..., None], occupied.exp(), 0.0).float()
    return torch.where(lengths > 0, -total[:, 0], 0.0).float(), occupied, inside * (1 - occupied.sum(2))
