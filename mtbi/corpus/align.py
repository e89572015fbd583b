"""Word times by CTC forced alignment.

`torchaudio.functional.forced_align` finds the likeliest path of an utterance's labels through the frames of a CTC model
(Pratap et al. 2023, arXiv 2305.13516). That paper also describes the wildcard for words that the model's vocabulary cannot
spell ("1928"): a label of probability one at every frame. It gets the frames that no other label fits.
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

from mtbi import plugins, text_units
from mtbi.audio import codec
from mtbi.corpus.manifest import ManifestSlice, Utterance, read_manifest, relocate, write_manifest
from mtbi.errors import UserError

log = logging.getLogger(__name__)
SMALLEST_INPUT_SAMPLES = 400  # receptive field of the convolutions of the wav2vec 2.0 family


class CtcAligner(Protocol):
    """A CTC model whose classes spell words."""

    blank: int  #: class of the CTC blank
    delimiter: int | None  #: class that stands between words, if the model has one

    def emissions(self, waveform: np.ndarray, /) -> tuple[Tensor, float]:
        """`(samples,)` at 16 kHz to log-probabilities `(frames, vocabulary)` and the seconds between frames."""
        ...

    def labels(self, word: str, /) -> list[int]:
        """The classes that spell a word. Letters outside the vocabulary are dropped, so the list may be empty."""
        ...

    def transcribe(self, waveform: np.ndarray, /) -> str:
        """The greedy transcript."""
        ...


class HuggingFaceAligner:
    """A CTC model of transformers with a character vocabulary, such as a fine-tuned wav2vec 2.0, HuBERT or WavLM."""

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
        spelling = {label: letter for letter, label in self._letters.items()}
        if self.delimiter is not None:
            spelling[self.delimiter] = " "
        return " ".join("".join(spelling.get(label, "") for label in best).lower().split())


def open_aligner(name: str) -> CtcAligner:
    """A shipped aligner (`demo`), or a CTC model of transformers by name or folder."""
    shipped = plugins.SHIPPED[plugins.ALIGNERS]
    return plugins.import_part(shipped[name])() if name in shipped else HuggingFaceAligner(name)


def word_frames(log_probs: Tensor, words: list[list[int]], blank: int, delimiter: int | None) -> list[tuple[int, int]] | None:
    """(first frame, frame after the last) of each word. None if the frames are too few or no word can be spelt.

    `log_probs` is `(frames, vocabulary)`. `words` holds each word's labels. A word without labels becomes a wildcard.
    """
    if not any(words):
        return None
    frames, wildcard = log_probs.shape
    targets: list[int] = []
    edges: list[tuple[int, int]] = []  # first and last label of each word in `targets`
    for labels in words:
        if targets and delimiter is not None:
            targets.append(delimiter)
        edges.append((len(targets), len(targets) + max(1, len(labels)) - 1))
        targets += labels or [wildcard]
    repeats = sum(a == b for a, b in pairwise(targets))  # CTC puts a blank between equal labels
    if frames < len(targets) + repeats:
        return None
    table = torch.cat([log_probs, log_probs.new_zeros(frames, 1)], dim=1).cpu()
    path, scores = forced_align(table[None], torch.tensor([targets], dtype=torch.int32), blank=blank)
    spans = merge_tokens(path[0], scores[0], blank)
    return [(spans[first].start, spans[last].end) for first, last in edges]


def tile(spans: list[tuple[int, int]], seconds_per_frame: float, duration_seconds: float) -> list[tuple[float, float]]:
    """Spans in frames to spans in seconds without gaps. Neighbours meet in the middle of the pause between them.

    The first span starts at 0. The last span ends with the utterance.
    """
    inner = [(left[1] + right[0]) / 2 * seconds_per_frame for left, right in pairwise(spans)]
    edges = [0.0, *(round(min(edge, duration_seconds), 4) for edge in inner), round(duration_seconds, 4)]
    return list(pairwise(edges))


def align(utterances: Iterable[Utterance], folder: Path | str, aligner: CtcAligner) -> Iterator[Utterance]:
    """Each utterance with its `words`, in the given order. Relative audio paths start from `folder`.

    `words` is None where alignment is impossible: the recording is too short for its labels, no letter is in the vocabulary, or
    the file can no longer be read (logged). A progress bar counts these utterances. They can train the model, but
    they cannot be interleaved.
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
    """(word, start, end) in seconds of each word. None where alignment is impossible."""
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


def align_manifest(
    manifest: Path | str, out: Path | str, aligner: CtcAligner, part: ManifestSlice | None = None
) -> tuple[int, int]:
    """Write the manifest `out` with word times, and audio paths that fit its folder.

    Returns the numbers of aligned and of unaligned utterances. A `part` is written once, into a file of its own beside `out`.
    The process that finishes the last part joins all parts in `out`.
    """
    folder, target = Path(manifest).parent, Path(out)
    utterances = read_manifest(manifest)
    path = part_file(target, part) if part else target
    if part and path.exists():
        aligned = read_manifest(path)
        check_same_utterances(path, aligned, part.take(utterances))
    else:
        new = align(part.take(utterances) if part else utterances, folder, aligner)
        aligned = [relocate(utterance, folder, Path(os.path.abspath(target.parent))) for utterance in new]
        write_manifest(path, aligned)
    if part and all(part_file(target, sibling).exists() for sibling in part.siblings()):
        joined = []
        for sibling in part.siblings():
            joined += (part_aligned := read_manifest(part_file(target, sibling)))
            check_same_utterances(part_file(target, sibling), part_aligned, sibling.take(utterances))
        write_manifest(target, joined)
    without = sum(utterance.words is None for utterance in aligned)
    return len(aligned) - without, without


def check_same_utterances(path: Path, aligned: list[Utterance], wanted: list[Utterance]) -> None:
    """Raises UserError where a finished part has other utterances or transcripts than the manifest."""
    if [(utterance.id, utterance.text) for utterance in aligned] != [(utterance.id, utterance.text) for utterance in wanted]:
        raise UserError(f"{path}: this part was aligned from another manifest; delete it, and run its `mtbi data align` again.")


def part_file(target: Path, part: ManifestSlice) -> Path:
    """The path of a part of the aligned manifest."""
    return target.with_name(f"{target.stem}.{part}{target.suffix}")
