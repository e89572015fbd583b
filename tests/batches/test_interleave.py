from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from mtbi.batches import interleave
from mtbi.batches.interleave import Segment
from mtbi.errors import UserError
from mtbi.recipe import InterleaveConfig

ALWAYS = InterleaveConfig(share=1.0, text_share_min=0.2, text_share_max=0.8, span_words_min=1, span_words_max=3)


def test_segments_tile_the_words_and_alternate() -> None:
    rng = np.random.default_rng(0)
    text = total = 0
    for _ in range(500):
        words = int(rng.integers(1, 30))
        segments = interleave.draw(words, rng, ALWAYS)
        if segments is None:
            continue
        assert segments[0].first == 0
        assert segments[-1].stop == words
        assert all(a.stop == b.first and a.is_text != b.is_text for a, b in itertools.pairwise(segments))
        assert any(not segment.is_text for segment in segments)
        text += sum(s.stop - s.first for s in segments if s.is_text)
        total += words
    assert 0.4 < text / total < 0.6


def test_the_share_of_utterances_is_kept() -> None:
    rng = np.random.default_rng(0)
    config = dataclasses.replace(ALWAYS, share=0.3, text_share_min=0.5, text_share_max=0.5)
    mixed = sum(interleave.draw(20, rng, config) is not None for _ in range(2000))
    assert mixed / 2000 == pytest.approx(0.3, abs=0.04)
    assert interleave.draw(0, rng, ALWAYS) is None


def test_slices_tile_the_frames() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        words = int(rng.integers(2, 12))
        samples = int(rng.integers(8000, 80_000))
        starts = np.sort(rng.integers(0, samples, words))
        frames = -(-samples // 2560)
        segments = interleave.draw(words, rng, ALWAYS) or (Segment(0, words, False),)
        spans = [interleave.sliced_frames(segment, starts, samples, frames, 2560.0) for segment in segments]
        assert spans[0][0] == 0
        assert spans[-1][1] == frames
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_contradictory_settings_are_explained() -> None:
    with pytest.raises(UserError, match=r"text_share_min .* is above text_share_max"):
        interleave.check(dataclasses.replace(ALWAYS, text_share_min=0.9), follows_time=True)
    with pytest.raises(UserError, match=r"Set interleave\.cut=encode"):
        interleave.check(dataclasses.replace(ALWAYS, cut="slice"), follows_time=False)
    interleave.check(dataclasses.replace(ALWAYS, cut="encode"), follows_time=False)
    interleave.check(dataclasses.replace(ALWAYS, cut="slice", share=0.0), follows_time=False)


def test_coverage_says_which_utterances_can_be_interleaved() -> None:
    coverage = interleave.Coverage.of(np.array([0, 1, 1, 2, 9], np.uint16))
    assert (coverage.utterances, coverage.unaligned, coverage.single, coverage.possible) == (5, 1, 2, 2)
    assert str(coverage) == "40.0% of the utterances can be interleaved, 20.0% have no word times, 40.0% one word only"
    mixed = interleave.draw_many(np.array([0, 1, 1, 2, 9] * 200), np.random.default_rng(0), ALWAYS)
    owner = np.repeat(np.arange(1000) % 5, [0, 1, 1, 2, 9] * 200)
    assert set(owner[mixed].tolist()) == {3, 4}
