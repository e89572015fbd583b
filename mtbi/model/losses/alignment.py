"""The alignment loss: adapter frames become the embeddings of the spoken tokens, without the LLM (`loss.alignment`).

Each token of the transcript stands at one adapter frame, in order, and all other frames are silence. Which frames these are is
not known: all placements count, as in the Recurrent Neural Aligner (Sak et al., Interspeech 2017). It is CTC without repeats. A
token at two frames would be read twice. The classes are the LLM's tokens, and the logits are those of a Gaussian around each
token's embedding. So the LLM's frozen embeddings are the output layer, and no word times are needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtbi.batches.batch import Batch
from mtbi.model.frame_classes import SHARPNESS, Embed, FrameClasses
from mtbi.model.losses.head import LossOutput
from mtbi.recipe import LossConfig

#: Weight of the expected squared distance from the embeddings, in units of the mean e². The likelihood alone moves the outputs
#: away from other tokens, and also away from what the LLM can read (docs/method.md).
DISTANCE = 2.0
SILENCE_WEIGHT = 0.3  #: of a frame of silence in that distance; that of a frame with a token is 1


class AlignmentSums(NamedTuple):
    """Sums over the clips of a batch."""

    loss: Tensor  #: (), float32, with a gradient
    nll: Tensor  #: (), the negative log-likelihood of the tokens
    tokens: Tensor  #: (), of the clips that counted
    weight: float  #: of the loss beside another one

    def added_to(self, out: LossOutput, alone: bool) -> LossOutput:
        """`out` with this loss beside it, or `alone` in its place."""
        own = torch.stack([self.nll, self.tokens])
        if alone:
            return LossOutput(out.loss + self.loss, out.means | {"loss": own, "alignment": own})
        return LossOutput(out.loss + self.weight * self.loss, out.means | {"alignment": own})


class Classes(NamedTuple):
    """The classes of some clips' frames: those that all clips have, and the clip's own tokens."""

    common: FrameClasses
    own: Tensor  #: (clips, longest, hidden) float32: the embeddings of the clip's own tokens
    own_half: Tensor  #: (clips, longest): half of their squared lengths
    extra: Tensor  #: (clips, longest) bool: the first of equal tokens, and not among the common ones

    def of(self, clips: Tensor) -> Classes:
        """Those of some of the clips, by number."""
        return Classes(self.common, self.own[clips], self.own_half[clips], self.extra[clips])


class AlignmentLoss:
    """The loss for one LLM. It has no parameters."""

    def __init__(self, config: LossConfig, common: FrameClasses) -> None:
        """A clip's tokens are told apart from each other and from the classes `common`. About `chunk` frames are computed at
        once.
        """
        self.weight, self.chunk, self.common = config.alignment, config.chunk, common

    def __call__(self, frames: Tensor, counts: Tensor, batch: Batch, embed: Embed) -> AlignmentSums:
        """`frames` (clips, frames, hidden) are the adapter's output, `counts` (clips,) their numbers.

        A clip with more tokens than frames does not count, nor does one whose tokens are not known.
        """
        ids = batch.spoken_ids
        with torch.no_grad():
            own = embed(ids).float()
        said = torch.arange(ids.shape[1], device=ids.device) < batch.spoken_lengths[:, None]
        repeated = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(2)
        extra = said & ~repeated & (ids >= self.common.first_rare)
        lengths = batch.spoken_lengths * (counts >= batch.spoken_lengths)
        classes = Classes(self.common, own, own.square().sum(2) / 2, extra)
        nll, losses = LossesInChunks.apply(frames, counts, lengths, classes, self.chunk)
        return AlignmentSums(losses.sum(), nll.sum(), lengths.sum().float(), self.weight)


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
        for numbers in counts.argsort(descending=True, stable=True).split(max(1, chunk // frames.shape[1])):
            piece = frames[numbers, : int(counts[numbers[0]])].detach().float()
            parts.append((numbers, piece, classes.of(numbers)))
        silence = frames.new_zeros(frames.shape[:2], dtype=torch.float32)
        tokens = silence.new_zeros(*silence.shape, classes.own.shape[1])
        for numbers, piece, own in parts:
            silence[numbers, : piece.shape[1]], tokens[numbers, : piece.shape[1]] = scores(piece, own)
        nll, occupied, silent = placements(silence, tokens, counts, lengths)
        losses, gradient = torch.zeros_like(nll), frames.new_zeros(frames.shape if trains else 0, dtype=torch.float32)
        for numbers, piece, own in parts:
            inside = slice(piece.shape[1])
            with torch.set_grad_enabled(trains):
                loss = clip_losses(piece.requires_grad_(trains), own, occupied[numbers, inside], silent[numbers, inside])
            if trains:
                [gradient[numbers, inside]] = torch.autograd.grad(loss, piece, torch.ones_like(loss))
            losses[numbers] = loss.detach()
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
    common, scale = classes.common.logits(frames), SHARPNESS / classes.common.size
    own = scale * (frames @ classes.own.transpose(1, 2) - classes.own_half[:, None])
    total = torch.cat([common, own.masked_fill(~classes.extra[:, None], -torch.inf)], 2).logsumexp(2)
    return common[..., 0] - total, own - total[..., None]


def clip_losses(frames: Tensor, classes: Classes, occupied: Tensor, silent: Tensor) -> Tensor:
    """The losses (clips,) under fixed placements: `occupied` (clips, frames, longest) and `silent` (clips, frames).

    The gradient of the negative log-likelihood is that of the expected log-probability under fixed placements.
    """
    silence, tokens = scores(frames, classes)
    likelihood = -(occupied * tokens).sum((1, 2)) - (silent * silence).sum(1)
    half = frames.square().sum(2)[..., None] / 2
    from_own = 2 * (half - frames @ classes.own.transpose(1, 2) + classes.own_half[:, None])
    from_silence = (frames - classes.common.embeddings[0]).square().sum(2)
    distance = (occupied * from_own).sum((1, 2)) + SILENCE_WEIGHT * (silent * from_silence).sum(1)
    return likelihood + DISTANCE / classes.common.size * distance


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
