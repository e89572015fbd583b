"""Word times by CTC forced alignment.

`torchaudio.functional.forced_align` finds the likeliest path of an utterance's labels through the frames of a CTC model
(Pratap et al. 2023, arXiv 2305.13516). From that paper also comes the wildcard for words that the model's vocabulary cannot
spell ("1928"): a label of probability one at every frame, which takes the sound that no other label claims.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import forced_align, merge_tokens
from tqdm import tqdm

from mtbi import text_units
from mtbi.audio import codec
from mtbi.corpus.manifest import Part, Utterance, read_manifest, relocate, write_manifest
from mtbi.errors import UserError

log = logging.getLogger(__name__)
SMALLEST_INPUT_SAMPLES = 400  # receptive field of the convolutions of the wav2vec 2.0 family


class CtcAligner(Protocol):
    """A CTC model that can spell words."""

    blank: int  #: class of the CTC blank
    delimiter: int | None  #: class that stands between words, if the model has one

    def emissions(self, waveform: np.ndarray, /) -> tuple[Tensor, float]:
        """`(samples,)` at 16 kHz to log-probabilities `(frames, vocabulary)` and the seconds between frames."""
        ...

    def labels(self, word: str, /) -> list[int]:
        """The classes that spell a word; letters outside the vocabulary are dropped, so it may be empty."""
        ...

    def transcribe(self, waveform: np.ndarray, /) -> str:
        """The greedy transcript."""
        ...


class HuggingFaceAligner:
    """Any CTC model of transformers with a character vocabulary: fine-tuned wav2vec 2.0, HuBERT, WavLM and their like."""

    def __init__(self, path: str, device: str | None = None, trust_remote_code: bool = False) -> None:
        """Raises UserError when `path` holds no fine-tuned CTC model or its vocabulary has no single letters."""
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            model, loading = AutoModelForCTC.from_pretrained(
                path, trust_remote_code=trust_remote_code, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no CTC model with tokenizer and preprocessor could be loaded ({error})") from error
        if any(name.startswith("lm_head") for name in loading["missing_keys"]):
            raise UserError(f"{path}: the CTC head is not trained; choose a model that was fine-tuned for recognition")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = model.eval().to(self.device)
        self.blank: int = tokenizer.pad_token_id  # transformers' CTC models use the padding token as blank
        self.delimiter: int | None = getattr(tokenizer, "word_delimiter_token_id", None)
        self._letters = {
            token: i for token, i in tokenizer.get_vocab().items() if len(token) == 1 and i not in (self.blank, self.delimiter)
        }
        if not any(letter.isalpha() for letter in self._letters):
            raise UserError(f"{path}: the vocabulary has no single letters; alignment needs a character-level CTC model")
        self._upper = sum(letter.isupper() for letter in self._letters) > sum(letter.islower() for letter in self._letters)
        self._seconds_per_frame = model.config.inputs_to_logits_ratio / codec.SAMPLE_RATE

    @torch.inference_mode()
    def emissions(self, waveform: np.ndarray) -> tuple[Tensor, float]:
        """`(samples,)` at 16 kHz to log-probabilities `(frames, vocabulary)` and the seconds between frames."""
        waveform = np.pad(waveform, (0, max(0, SMALLEST_INPUT_SAMPLES - len(waveform))))
        inputs = self._extractor(waveform, sampling_rate=codec.SAMPLE_RATE, return_tensors="pt").input_values
        return self._model(inputs.to(self.device)).logits[0].float().log_softmax(-1), self._seconds_per_frame

    def labels(self, word: str) -> list[int]:
        """The classes of the word's letters, in the case of the vocabulary."""
        cased = word.upper() if self._upper else word.lower()
        return [self._letters[letter] for letter in cased if letter in self._letters]

    def transcribe(self, waveform: np.ndarray) -> str:
        """Greedy CTC transcript, lower case."""
        best = self.emissions(waveform)[0].argmax(-1).unique_consecutive().tolist()
        spelling = {place: letter for letter, place in self._letters.items()}
        if self.delimiter is not None:
            spelling[self.delimiter] = " "
        return " ".join("".join(spelling.get(label, "") for label in best).lower().split())


def open_aligner(name: str) -> CtcAligner:
    """`demo`, or a CTC model of transformers by name or folder."""
    if name == "demo":
        from mtbi.demo.encoder import DemoAligner

        return DemoAligner()
    return HuggingFaceAligner(name)


def word_frames(log_probs: Tensor, words: list[list[int]], blank: int, delimiter: int | None) -> list[tuple[int, int]] | None:
    """First frame and frame after the last of each word; None if the frames are too few or no word can be spelt.

    `log_probs` is `(frames, vocabulary)`; `words` holds each word's labels, none for a word that becomes a wildcard.
    """
    if not any(words):
        return None
    frames, wildcard = log_probs.shape
    targets: list[int] = []
    places: list[tuple[int, int]] = []  # first and last label of each word in `targets`
    for labels in words:
        if targets and delimiter is not None:
            targets.append(delimiter)
        places.append((len(targets), len(targets) + max(1, len(labels)) - 1))
        targets += labels or [wildcard]
    repeats = sum(a == b for a, b in pairwise(targets))  # CTC puts a blank between equal labels
    if frames < len(targets) + repeats:
        return None
    table = torch.cat([log_probs, log_probs.new_zeros(frames, 1)], dim=1).cpu()
    path, scores = forced_align(table[None], torch.tensor([targets], dtype=torch.int32), blank=blank)
    spans = merge_tokens(path[0], scores[0], blank)
    return [(spans[first].start, spans[last].end) for first, last in places]


def tile(spans: list[tuple[int, int]], seconds_per_frame: float, duration_seconds: float) -> list[tuple[float, float]]:
    """Spans in frames to spans in seconds without gaps: neighbours meet in the middle of the pause between them.

    The first starts at 0 and the last ends with the utterance.
    """
    inner = [(left[1] + right[0]) / 2 * seconds_per_frame for left, right in pairwise(spans)]
    edges = [0.0, *(round(min(edge, duration_seconds), 4) for edge in inner), round(duration_seconds, 4)]
    return list(pairwise(edges))


def align(utterances: Iterable[Utterance], folder: Path | str, aligner: CtcAligner) -> Iterator[Utterance]:
    """Each utterance with its `words`, in the order given; `folder` is what relative audio paths start from.

    `words` is None where alignment is impossible: too short for its labels, no letter in the vocabulary, or a file that can no
    longer be read (logged). A progress bar counts them. They can train the model, but cannot be interleaved.
    """
    unaligned = single = 0
    bar = tqdm(utterances, desc="align", unit="utterance", disable=None)
    for utterance in bar:
        aligned = replace(utterance, words=_word_times(utterance, Path(folder), aligner))
        unaligned += aligned.words is None
        single += aligned.words is not None and len(aligned.words) == 1
        bar.set_postfix(unaligned=unaligned, refresh=False)
        yield aligned
    if single:
        log.warning("%d aligned utterances have one word only: they train the model, but are not interleaved", single)


def _word_times(utterance: Utterance, folder: Path, aligner: CtcAligner) -> list[tuple[str, float, float]] | None:
    if not utterance.audio:
        return None
    words = text_units.units(utterance.text)
    try:
        wave = codec.read(folder / utterance.audio)
    except UserError as error:
        log.warning("%s: %s (%s)", utterance.id, error, utterance.audio)
        return None
    log_probs, seconds_per_frame = aligner.emissions(wave)
    spans = word_frames(log_probs, [aligner.labels(word) for word in words], aligner.blank, aligner.delimiter)
    if spans is None:
        return None
    times = tile(spans, seconds_per_frame, len(wave) / codec.SAMPLE_RATE)
    return [(word, start, end) for word, (start, end) in zip(words, times, strict=True)]


def align_manifest(manifest: Path | str, out: Path | str, aligner: CtcAligner, part: Part | None = None) -> tuple[int, int]:
    """Align a manifest into another, whose audio paths fit its own folder. Returns how many were aligned, and how many not.

    A `part` goes into a file of its own beside `out`, once; whoever finishes the last part joins them in `out`.
    """
    folder, target = Path(manifest).parent, Path(out)
    utterances = read_manifest(manifest)
    place = part_file(target, part) if part else target
    if part and place.exists():
        aligned = read_manifest(place)
        check_same_utterances(place, aligned, part.take(utterances))
    else:
        found = align(part.take(utterances) if part else utterances, folder, aligner)
        aligned = [relocate(utterance, folder, Path(os.path.abspath(target.parent))) for utterance in found]
        write_manifest(place, aligned)
    if part and all(part_file(target, sibling).exists() for sibling in part.siblings()):
        joined = []
        for sibling in part.siblings():
            joined += (part_aligned := read_manifest(part_file(target, sibling)))
            check_same_utterances(part_file(target, sibling), part_aligned, sibling.take(utterances))
        write_manifest(target, joined)
    without = sum(utterance.words is None for utterance in aligned)
    return len(aligned) - without, without


def check_same_utterances(path: Path, aligned: list[Utterance], wanted: list[Utterance]) -> None:
    """Raises UserError where a finished part holds other utterances than those of the manifest, or other transcripts."""
    if [(one.id, one.text) for one in aligned] != [(one.id, one.text) for one in wanted]:
        raise UserError(f"{path}: this part was aligned from another manifest; delete it, and run its `mtbi data align` again.")


def part_file(target: Path, part: Part) -> Path:
    """Where a part of the aligned manifest lies."""
    return target.with_name(f"{target.stem}.{part}{target.suffix}")
