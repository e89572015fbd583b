"""The time saved by encoding clips of similar length together. `python benchmarks/encoder/run.py [--out FOLDER]`

A Whisper encoder of random weights encodes the utterances of a micro-batch of 8,192 LLM positions, with LibriSpeech-like and
with long-tailed lengths. One padded call and the calls that training makes take turns. The results are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from measuring import header, save, timed  # noqa: E402
from planning.run import LENGTHS  # noqa: E402
from training import world  # noqa: E402

from mtbi.audio.codec import SAMPLE_RATE  # noqa: E402
from mtbi.model import by_length  # noqa: E402
from mtbi.model.encoders.whisper import Whisper  # noqa: E402

AUDIO_SECONDS = 300  # beside prompts and answers in 8,192 positions
REPEATS = 7


def draw(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms `(clips, samples)` and their lengths in samples."""
    seconds = LENGTHS[kind](np.random.default_rng(3), 400)
    seconds = seconds[: int(np.searchsorted(np.cumsum(seconds), AUDIO_SECONDS))]
    lengths = torch.from_numpy((seconds * SAMPLE_RATE).astype(np.int64))
    waveforms = 0.01 * torch.randn(len(lengths), int(lengths.max()))
    return waveforms * (torch.arange(waveforms.shape[1]) < lengths[:, None]), lengths


@torch.no_grad()
def measure(encoder: Whisper, kind: str) -> dict[str, float]:
    """The seconds of one padded call and of training's calls, and their ratio."""
    waveforms, lengths = draw(kind)
    pairs = []
    for turn in range(REPEATS + 1):
        pair = timed(lambda: encoder(waveforms, lengths)), timed(lambda: by_length.encode(encoder, waveforms, lengths))
        pairs += [pair] if turn else []
    real = int(lengths.sum())
    areas = [max(lengths[group]) * len(group) for group in by_length.split(lengths.tolist(), by_length.CPU_CALL_SAMPLES)]
    return {
        "clips": len(lengths),
        "calls": len(areas),
        "padding_in_one_call": round(1 - real / float(lengths.max() * len(lengths)), 3),
        "padding_left": round(1 - real / float(sum(areas)), 3),
        "seconds_one_call": round(statistics.median(padded for padded, _ in pairs), 3),
        "seconds": round(statistics.median(grouped for _, grouped in pairs), 3),
        "faster": round(statistics.median(padded / grouped for padded, grouped in pairs), 2),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for results.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**world.ENCODER))
    filters = torch.as_tensor(WhisperFeatureExtractor(feature_size=world.ENCODER["num_mel_bins"]).mel_filters)
    encoder = Whisper(model.encoder, filters).eval()
    record = {
        **header("torch", "transformers"),
        "measured": {kind: measure(encoder, kind) for kind in LENGTHS},
    }
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
