"""Word times by CTC forced alignment.

`torchaudio.functional.forced_align` finds the likeliest path of an utterance's labels through the frames of a CTC model
(Pratap et al. 2023, arXiv 2305.13516). That paper also describes the wildcard for words that the model's vocabulary cannot
spell ("1928"): a label of probability one at every frame. It gets the frames that no other label fits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import forced_align, merge_tokens

from mtbi.audio import codec
from mtbi.corpus.aligner import Alignment, Clip
from mtbi.errors import UserError

SMALLEST_INPUT_SAMPLES = 400  # receptive field of the convolutions of the wav2vec 2.0 family
BATCH_SECONDS = 960  #: sound in a batch on a GPU, with its padding


class CtcAligner(ABC):
    """An aligner by a CTC model whose classes spell words."""

    blank: int  #: class of the CTC blank
    delimiter: int | None  #: class that stands between words, if the model has one

    @abstractmethod
    def emissions(self, waveform: np.ndarray, /) -> tuple[Tensor, float]:
        """`(samples,)` at 16 kHz to log-probabilities `(frames, vocabulary)` and the seconds between frames."""

    @abstractmethod
    def labels(self, word: str, /) -> list[int]:
        """The classes that spell a word. Letters outside the vocabulary are dropped, so the list may be empty."""

    @abstractmethod
    def transcribe(self, waveform: np.ndarray, /) -> str:
        """The greedy transcript."""

    def all_emissions(self, waveforms: Sequence[np.ndarray], /) -> Iterable[tuple[Tensor, float]]:
        """`emissions` of each waveform, in the given order."""
        return map(self.emissions, waveforms)

    def align(self, clips: Sequence[Clip], /) -> list[Alignment]:
        """The alignment of each clip. A CTC model needs no language."""
        labels = [[self.labels(word) for word in clip.units] for clip in clips]
        tables = iter(self.all_emissions([clip.wave for clip, own in zip(clips, labels, strict=True) if any(own)]))
        unspelt = Alignment(None, "the aligner can spell none of the words")
        return [self._align(own, *next(tables)) if any(own) else unspelt for own in labels]

    def _align(self, labels: list[list[int]], log_probs: Tensor, seconds_per_frame: float) -> Alignment:
        """The alignment of one clip, or why it has none."""
        if not torch.isfinite(log_probs).all():
            return Alignment(None, "the aligner's output is not finite")
        spans = word_frames(log_probs, labels, self.blank, self.delimiter)
        if spans is None:
            return Alignment(None, "the recording is too short for its words")
        return Alignment([(first * seconds_per_frame, stop * seconds_per_frame) for first, stop in spans])


class HuggingFaceAligner(CtcAligner):
    """A CTC model of transformers with a character vocabulary, such as a fine-tuned wav2vec 2.0, HuBERT or WavLM."""

    def __init__(self, path: str, device: str | None = None, trust_remote_code: bool = False) -> None:
        """On a GPU the model computes in half precision, in batches where it masks padding.

        Raises UserError when `path` holds no fine-tuned CTC model or its vocabulary has no single letters.
        """
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        precision: dict[str, Any] = {"dtype": torch.float16} if self.device.type == "cuda" else {}
        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            model, loading = AutoModelForCTC.from_pretrained(
                path, trust_remote_code=trust_remote_code, output_loading_info=True, **precision
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no CTC model with tokenizer and preprocessor could be loaded ({error})") from error
        if any(name.startswith("lm_head") for name in loading["missing_keys"]):
            raise UserError(f"{path}: the CTC head is not trained; choose a model that was fine-tuned for recognition")
        self._model = model.eval().to(self.device)
        masks = getattr(self._extractor, "return_attention_mask", False) and hasattr(model, "_get_feat_extract_output_lengths")
        self.batch_seconds = BATCH_SECONDS if masks and self.device.type == "cuda" else 0  #: 0 = one clip at a time
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
        inputs = inputs.to(self.device, self._model.dtype)
        return self._model(inputs).logits[0].float().log_softmax(-1), self._seconds_per_frame

    @torch.inference_mode()
    def all_emissions(self, waveforms: Sequence[np.ndarray]) -> Iterable[tuple[Tensor, float]]:
        """`emissions` of each waveform, in the given order. Those of similar length are computed together."""
        if not self.batch_seconds:
            return super().all_emissions(waveforms)
        waves = [np.pad(wave, (0, max(0, SMALLEST_INPUT_SAMPLES - len(wave)))) for wave in waveforms]
        order = sorted(range(len(waves)), key=lambda number: -len(waves[number]))
        tables: dict[int, Tensor] = {}
        while order:
            count = max(1, self.batch_seconds * codec.SAMPLE_RATE // len(waves[order[0]]))
            batch, order = order[:count], order[count:]
            inputs = self._extractor(
                [waves[number] for number in batch], sampling_rate=codec.SAMPLE_RATE, return_tensors="pt", padding=True
            )
            values = inputs.input_values.to(self.device, self._model.dtype)
            logits = self._model(values, attention_mask=inputs.attention_mask.to(self.device)).logits
            log_probs = logits.float().log_softmax(-1).cpu()
            frames = self._model._get_feat_extract_output_lengths(torch.tensor([len(waves[number]) for number in batch]))
            tables |= {number: table[:own] for number, table, own in zip(batch, log_probs, frames.tolist(), strict=True)}
        return [(tables[number], self._seconds_per_frame) for number in range(len(waves))]

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
