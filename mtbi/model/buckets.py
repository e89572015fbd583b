"""Clips of like length are encoded together, so that little of an encoder's work is padding."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

MOST_CALLS = 4
CALL_SAMPLES = 160_000  #: a call of its own must spare so much padding: ten seconds


def split(lengths: list[int]) -> list[list[int]]:
    """The clips' numbers in 1 to MOST_CALLS groups, longest first: those that cost the least padding and calls together."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    # best[n]: the least cost of the n longest clips with so many calls, and where the last of these begins.
    best = [(0.0, 0)] + [(float("inf"), 0)] * len(order)
    found: list[tuple[float, list[int]]] = []
    history = []
    for calls in range(1, MOST_CALLS + 1):
        best = [
            min(
                (best[first][0] + lengths[order[first]] * (stop - first) + CALL_SAMPLES, first)
                for first in range(calls - 1, stop)
            )
            if stop >= calls
            else (float("inf"), 0)
            for stop in range(len(order) + 1)
        ]
        history.append(best)
        cuts = [len(order)]
        for level in reversed(history):
            cuts.append(level[cuts[-1]][1])
        found.append((best[-1][0], cuts[::-1]))
    _, cuts = min(found)
    return [order[first:stop] for first, stop in pairwise(cuts)]


def encode(encoder: nn.Module, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """As `encoder(waveforms, lengths)`, in several calls where that spares padding."""
    samples = lengths.tolist()
    groups = split(samples)
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
