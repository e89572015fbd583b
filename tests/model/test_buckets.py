from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mtbi.demo.encoder import DemoEncoder
from mtbi.model import buckets

SECOND = 16_000


def cost(lengths: list[int], groups: list[list[int]]) -> int:
    return sum(max(lengths[number] for number in group) * len(group) + buckets.GPU_CALL_SAMPLES for group in groups)


def test_a_call_must_be_worth_it() -> None:
    assert len(buckets.split([10 * SECOND, 7 * SECOND])) == 1
    assert len(buckets.split([10 * SECOND, 7 * SECOND], buckets.CPU_CALL_SAMPLES)) == 2


def test_like_clips_stay_together() -> None:
    assert len(buckets.split([2 * SECOND] * 30)) == 1
    assert len(buckets.split([30 * SECOND])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = (rng.lognormal(1.2, 0.9, 14).clip(0.4, 30) * SECOND).astype(int).tolist()
    groups = buckets.split(lengths)
    assert sorted(number for group in groups for number in group) == list(range(14))
    order = sorted(range(14), key=lambda number: -lengths[number])
    for count in range(buckets.MOST_CALLS):
        for cuts in itertools.combinations(range(1, 14), count):
            other = [order[first:stop] for first, stop in itertools.pairwise([0, *cuts, 14])]
            assert cost(lengths, groups) <= cost(lengths, other)


def test_results_are_those_of_one_call() -> None:
    encoder = DemoEncoder.from_pretrained()
    lengths = torch.tensor([3, 20, 1, 2, 19, 1, 1, 2, 1, 1, 2]) * SECOND
    waveforms = torch.randn(len(lengths), int(lengths.max())) * (torch.arange(int(lengths.max())) < lengths[:, None]) * 0.1
    assert len(buckets.split(lengths.tolist())) > 1
    with torch.no_grad():
        features, frames = buckets.encode(encoder, waveforms, lengths)
        expected, expected_frames = encoder(waveforms, lengths)
    assert torch.equal(frames, expected_frames)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
