"""Clips of like length are encoded together, so that little of an encoder's work is padding."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

MOST_CALLS = 4
#: What a call costs, in padding: where that is computed quickly, launching a hundred kernels is worth more of it.
GPU_CALL_SAMPLES, CPU_CALL_SAMPLES = 160_000, 16_000


def split(lengths: list[int], call_samples: int = GPU_CALL_SAMPLES) -> list[list[int]]:
    """The clips' numbers in 1 to MOST_CALLS groups, longest first: those that cost the least padding and calls together."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    if lengths[order[0]] * len(order) - sum(lengths) <= call_samples:
        return [order]  # no cut can spare more than all padding
    #: of the n longest clips, in so many groups: the least cost, and where the groups begin
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ()), *[(math.inf, ())] * len(order)]
    of_all = []
    for _ in range(MOST_CALLS):
        best = [(math.inf, ())] + [
            min(
                (best[first][0] + lengths[order[first]] * (stop - first) + call_samples, (*best[first][1], first))
                for first in range(stop)
            )
            for stop in range(1, len(order) + 1)
        ]
        of_all.append(best[-1])
    _, begins = min(of_all)
    return [order[first:stop] for first, stop in pairwise((*begins, len(order)))]


def encode(encoder: nn.Module, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """As `encoder(waveforms, lengths)`, in several calls where that spares padding."""
    samples = lengths.tolist()
    groups = split(samples, CPU_CALL_SAMPLES if waveforms.device.type == "cpu" else GPU_CALL_SAMPLES)
    if len(groups) == 1:
        return encoder(waveforms, lengths)
    places = [torch.tensor(group, device=lengths.device) for group in groups]
    parts = [
        encoder(waveforms[place, : samples[group[0]]], lengths[place]) for place, group in zip(places, groups, strict=True)
    ]
    longest = max(features.shape[1] for features, _ in parts)
    features = parts[0][0].new_zeros(len(samples), longest, parts[0][0].shape[2])
    frames = torch.zeros_like(lengths)
    for place, (part, count) in zip(places, parts, strict=True):
        features[place, : part.shape[1]] = part
        frames[place] = count
    return features, frames
