from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mtbi.audio import codec
from mtbi.corpus.align import align
from mtbi.corpus.manifest import Utterance, read_manifest
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
            recordings[utterance.text].append(codec.read(speech / "fsdd" / utterance.audio))
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


def test_alignment_finds_the_words(speech: Path, encoder: DemoEncoder, tmp_path: Path) -> None:
    recordings, rng = held_out(speech, "jackson", range(40, 50)), np.random.default_rng(1)
    utterances, truth = [], {}
    for number in range(20):
        wave, words, times = random_string(recordings, rng)
        (tmp_path / f"{number}.flac").write_bytes(codec.encode(wave))
        utterances.append(Utterance(str(number), f"{number}.flac", " ".join(words)))
        truth[str(number)] = times
    inside = total = 0
    for utterance in align(utterances, tmp_path, DemoAligner(encoder)):
        assert utterance.words is not None
        assert [word for word, _, _ in utterance.words] == utterance.text.split()
        assert utterance.words[0][1] == 0
        assert all(a[2] == b[1] for a, b in itertools.pairwise(utterance.words))
        for (_, start, end), (spoken_from, spoken_to) in zip(utterance.words, truth[utterance.id], strict=True):
            inside += start <= (spoken_from + spoken_to) / 2 < end  # the middle of the spoken digit lies in its span
            total += 1
    assert inside / total > 0.97
