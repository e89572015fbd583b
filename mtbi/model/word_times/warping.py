"""The best path of tokens through frames, for a batch."""

from __future__ import annotations

import numpy as np


def first_frames(scores: np.ndarray, tokens: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The frame at which each token begins, on the path with the highest sum of scores, `(clips, most tokens)`.

    The path gives every frame one token, and every token at least one frame, in order: dynamic time warping without steps that
    skip a frame or share one. `scores` is `(clips, most tokens, most frames)`. Clip i has `tokens[i]` tokens and `frames[i]`
    frames, and its other scores are not used. A clip needs at least as many frames as tokens. All tokens of all clips advance
    together: the loops are over frames alone.
    """
    clips, most_tokens, most_frames = scores.shape
    by_frame = np.ascontiguousarray(scores.transpose(2, 0, 1))
    best = np.full((clips, most_tokens), -np.inf, scores.dtype)
    best[:, 0] = by_frame[0, :, 0]
    stepped = np.zeros((most_frames, clips, most_tokens), bool)  # whether the best path enters the token at the frame
    entering = np.full_like(best, -np.inf)
    for frame in range(1, most_frames):
        entering[:, 1:] = best[:, :-1]
        np.greater(entering, best, out=stepped[frame])
        np.maximum(entering, best, out=best)
        best += by_frame[frame]
    return _walk_back(stepped, tokens, frames)


def _walk_back(stepped: np.ndarray, tokens: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The first frame of each token, from the last token at the last frame of each clip to the first ones."""
    most_frames, clips, most_tokens = stepped.shape
    starts = np.zeros((clips, most_tokens), np.int64)
    clip, token = np.arange(clips), tokens - 1
    for frame in range(most_frames - 1, 0, -1):
        enters = (frame < frames) & (token > 0) & stepped[frame, clip, token]
        starts[clip[enters], token[enters]] = frame
        token = token - enters
    return starts
