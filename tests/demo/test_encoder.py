from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.data import audio
from mtbi.data.corpus import read_manifest
from mtbi.demo.encoder import DemoAligner, DemoEncoder
from mtbi.demo.speech import join
from mtbi.demo.world import DIGITS


@pytest.fixture(scope="module")
def encoder() -> DemoEncoder:
    return DemoEncoder.from_pretrained()


def held_out(speech: Path, speaker: str, numbers: range) -> dict[str, list[np.ndarray]]:
    recordings: dict[str, list[np.ndarray]] = {word: [] for word in DIGITS}
    for utterance in read_manifest(speech / "fsdd" / "manifest.jsonl"):
        name, number = utterance.id.split("_")[-2:]
        if name == speaker and int(number) in numbers:
            recordings[utterance.text].append(audio.read(speech / "fsdd" / utterance.audio))
    return recordings


def random_string(recordings: dict[str, list[np.ndarray]], rng: np.random.Generator) -> tuple[np.ndarray, list[str], list]:
    words = [DIGITS[d] for d in rng.integers(0, 10, rng.integers(2, 7))]
    wave, times = join([recordings[word][rng.integers(len(recordings[word]))] for word in words], rng)
    return wave, words, times


def test_a_clip_does_not_depend_on_its_neighbours(encoder: DemoEncoder) -> None:
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, generator=generator) * 0.1 for n in (4000, 16_000, 9_601)]
    together, lengths = encoder(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), torch.tensor([len(c) for c in clips]))
    for row, clip in enumerate(clips):
        alone, length = encoder(clip[None], torch.tensor([len(clip)]))
        assert length.item() == lengths[row].item() == -(-len(clip) // 640)
        torch.testing.assert_close(together[row, : length.item()], alone[0], rtol=1e-4, atol=1e-4)
    assert together[0, lengths[0] :].abs().max() == 0


def test_silence_gives_no_digits_and_no_nan(encoder: DemoEncoder) -> None:
    aligner = DemoAligner(encoder)
    assert aligner.transcribe(np.zeros(16_000, np.float32)) == ""
    assert torch.isfinite(aligner.emissions(np.zeros(100, np.float32))[0]).all()


@pytest.mark.parametrize(("speaker", "numbers", "least"), [("george", range(40, 50), 0.9), ("theo", range(50), 0.5)])
def test_held_out_recordings_are_understood(
    speech: Path, encoder: DemoEncoder, speaker: str, numbers: range, least: float
) -> None:
    recordings, rng, aligner = held_out(speech, speaker, numbers), np.random.default_rng(0), DemoAligner(encoder)
    right = 0
    for _ in range(40):
        wave, words, _ = random_string(recordings, rng)
        right += aligner.transcribe(wave) == " ".join(words)
    assert right / 40 >= least
