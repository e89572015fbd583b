"""Encoding clips of similar length together, so that little of an encoder's work is padding."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from mtbi.llm.packing import sent

MOST_CALLS = 4
#: Padding in samples that costs as much as one more call. A GPU computes padding quickly and launches kernels slowly.
GPU_CALL_SAMPLES, CPU_CALL_SAMPLES = 160_000, 16_000


def split(lengths: list[int], call_samples: int = GPU_CALL_SAMPLES) -> list[list[int]]:
    """The indices of the clips in 1 to MOST_CALLS groups, longest first: the grouping with the least padding and calls."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    if lengths[order[0]] * len(order) - sum(lengths) <= call_samples:
        return [order]  # another call costs more than all padding
    #: best[n] is the least cost of the n longest clips in so many groups, and the indices at which the groups begin
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * len(order)]
    whole = []
    for _ in range(MOST_CALLS):
        best = [(math.inf, ())] + [
            min(
                (best[first][0] + lengths[order[first]] * (stop - first) + call_samples, (*best[first][1], first))
                for first in range(stop)
            )
            for stop in range(1, len(order) + 1)
        ]
        whole.append(best[-1])
    _, begins = min(whole)
    return [order[first:stop] for first, stop in pairwise((*begins, len(order)))]


def encode(encoder: nn.Module, waveforms: Tensor, lengths: Tensor, samples: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """What `encoder(waveforms, lengths)` returns, computed in several calls where that saves padding.

    `(clips, samples)` and `(clips,)` lengths in samples to `(clips, frames, width)` and `(clips,)` lengths in frames. `samples`
    are the lengths as the host knows them. Without them the host fetches them, for which it waits.
    """
    samples = samples or lengths.tolist()
    groups = split(samples, CPU_CALL_SAMPLES if waveforms.device.type == "cpu" else GPU_CALL_SAMPLES)
    if len(groups) == 1:
        return encoder(waveforms, lengths)
    indices = [sent(torch.tensor(group), lengths.device) for group in groups]
    parts = [
        encoder(waveforms[index, : samples[group[0]]], lengths[index]) for index, group in zip(indices, groups, strict=True)
    ]
    longest = max(features.shape[1] for features, _ in parts)
    features = parts[0][0].new_zeros(len(samples), longest, parts[0][0].shape[2])
    frames = torch.zeros_like(lengths)
    for index, (part, count) in zip(indices, parts, strict=True):
        features[index, : part.shape[1]] = part
        frames[index] = count
    return features, frames
