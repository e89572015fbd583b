"""From single spoken digits to a corpus of digit strings with gold answers."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtbi.answers import task_library
from mtbi.audio import codec
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.demo import world
from mtbi.demo.speech import join
from mtbi.errors import UserError


@dataclass(frozen=True)
class Part:
    """One part of the corpus."""

    name: str
    digits: str  #: split of the single digits that it is made of
    strings: int
    seed: int


PARTS = (
    Part("train", "train", 4000, seed=1),
    Part("dev", "train", 200, seed=2),
    Part("test_known", "test_known", 400, seed=3),
    Part("test_unseen", "test_unseen", 200, seed=4),
)


def make_part(part: Part, digits_folder: Path, out: Path) -> Path:
    """Join single digits of one speaker (manifest made by `mtbi data import fsdd`) into strings; returns the new manifest.

    The true time of each word and the right answer to every task go into the manifest as well. Raises UserError where a
    speaker lacks a digit.
    """
    pool: dict[str, dict[str, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
    for utterance in read_manifest(digits_folder / "manifest.jsonl"):
        if utterance.split == part.digits:
            pool[utterance.speaker][utterance.text].append(utterance)
    speakers = sorted(speaker for speaker, digits in pool.items() if len(digits) == len(world.DIGITS))
    if not speakers:
        raise UserError(
            f"{digits_folder / 'manifest.jsonl'}: no speaker of split {part.digits!r} says all ten digits. "
            "The demo needs files named {digit}_{speaker}_{n}.wav as in the Free Spoken Digit Dataset; "
            "numbers 40 to 49 and speaker theo are its test splits."
        )
    tasks = list(task_library.load(["digits"]))
    draw, pauses = random.Random(part.seed), np.random.default_rng(part.seed)
    waves: dict[str, np.ndarray] = {}
    strings = []
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(part.strings), desc=f"{part.name}: strings", unit="string"):
        speaker = draw.choice(speakers)
        digits = world.random_digits(draw)
        chosen = [draw.choice(pool[speaker][world.DIGITS[digit]]) for digit in digits]
        for clip in chosen:
            if clip.id not in waves:
                waves[clip.id] = codec.read(digits_folder / clip.audio)
        wave, times = join((waves[clip.id] for clip in chosen), pauses)
        name = f"{part.name}-{number:05d}"
        (out / "audio" / f"{name}.flac").write_bytes(codec.encode(wave))
        text = " ".join(world.DIGITS[digit] for digit in digits)
        strings.append(
            Utterance(
                id=name,
                audio=f"audio/{name}.flac",
                text=text,
                speaker=speaker,
                duration_s=round(len(wave) / codec.SAMPLE_RATE, 4),
                language="en",
                sample_rate=codec.SAMPLE_RATE,
                split=part.name,
                words=[(word, round(start, 4), round(end, 4)) for word, (start, end) in zip(text.split(), times, strict=True)],
                answers={task: world.answer_about(task, digits) for task in tasks},
            )
        )
    write_manifest(out / "manifest.jsonl", strings)
    return out / "manifest.jsonl"
