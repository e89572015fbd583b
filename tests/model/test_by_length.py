from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mtbi.demo.encoder import DemoEncoder
from mtbi.model import by_length

SECOND = 16_000


def cost(lengths: list[int], groups: list[list[int]]) -> int:
    return sum(max(lengths[number] for number in group) * len(group) + by_length.GPU_CALL_SAMPLES for group in groups)


def test_a_call_must_be_worth_it() -> None:
    assert len(by_length.split([10 * SECOND, 7 * SECOND])) == 1
    assert len(by_length.split([10 * SECOND, 7 * SECOND], by_length.CPU_CALL_SAMPLES)) == 2


def test_like_clips_stay_together() -> None:
    assert len(by_length.split([2 * SECOND] * 30)) == 1
    assert len(by_length.split([30 * SECOND])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = (rng.lognormal(1.2, 0.9, 14).clip(0.4, 30) * SECOND).astype(int).tolist()
    groups = by_length.split(lengths)
    assert sorted(number for group in groups for number in group) == list(range(14))
    order = sorted(range(14), key=lambda number: -lengths[number])
    for count in range(by_length.MOST_CALLS):
        for cuts in itertools.combinations(range(1, 14), count):
            other = [order[first:stop] for first, stop in itertools.pairwise([0, *cuts, 14])]
            assert cost(lengths, groups) <= cost(lengths, other)


def test_results_are_those_of_one_call() -> None:
    encoder = DemoEncoder.from_pretrained()
    lengths = torch.tensor([3, 20, 1, 2, 19, 1, 1, 2, 1, 1, 2]) * SECOND
    waveforms = torch.randn(len(lengths), int(lengths.max())) * (torch.arange(int(lengths.max())) < lengths[:, None]) * 0.1
    assert len(by_length.split(lengths.tolist())) > 1
    with torch.no_grad():
        features, frames = by_length.encode(encoder, waveforms, lengths)
        expected, expected_frames = encoder(waveforms, lengths)
    assert torch.equal(frames, expected_frames)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
