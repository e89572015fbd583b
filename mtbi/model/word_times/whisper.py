"""Word times by Whisper's cross-attention on a known transcript, and its own transcripts.

The decoder reads the transcript as if it had written it (teacher forcing). Some of its heads attend to the sound of the word
that comes next (`alignment_heads` of its generation configuration, by OpenAI). A path through their attention gives the times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.corpus import pauses
from mtbi.corpus.aligner import Alignment, Clip, Spans
from mtbi.errors import UserError
from mtbi.model.encoders.whisper import HOP_SAMPLES, Whisper, mel_filters
from mtbi.model.recogniser import Seq2SeqRecogniser
from mtbi.model.word_times.attention import CrossAttention, evidence
from mtbi.model.word_times.transcript import WhisperText, WhisperVocabulary
from mtbi.model.word_times.warping import first_frames

FRAME_SAMPLES = 2 * HOP_SAMPLES
SECONDS_PER_FRAME = FRAME_SAMPLES / SAMPLE_RATE
STEP_SECONDS = 2  #: clips are padded to a multiple of this, so that those of a batch are equally long
BATCH_SECONDS = {"cpu": 120, "cuda": 960}  #: sound in a batch, with its padding
#: The lowest mean log-probability of a transcript's tokens that counts as a transcript of the recording.
LOWEST_SCORE = -4.0
MULTILINGUAL_TOKENS = 51_865  #: vocabulary of the first multilingual models; English-only ones are smaller


@dataclass(frozen=True)
class ForcedClip:
    """A clip that can be aligned."""

    position: int  #: among the clips
    wave: np.ndarray  #: (samples,)
    text: WhisperText
    language: int | None  #: its token; None = unknown, or the model knows English only

    @property
    def frames(self) -> int:
        """Frames of the encoder that hold the clip's sound."""
        return -(-len(self.wave) // FRAME_SAMPLES)

    def padded(self, longest: int) -> np.ndarray:
        """The wave with silence up to the next step, but at most to `longest` samples."""
        step = STEP_SECONDS * SAMPLE_RATE
        return np.pad(self.wave, (0, min(-(-len(self.wave) // step) * step, longest) - len(self.wave)))


class WhisperAligner:
    """A Whisper model of transformers with its decoder."""

    def __init__(self, path: str, device: str | None = None) -> None:
        """Raises UserError when `path` holds no Whisper model with its tokenizer."""
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            extractor = WhisperFeatureExtractor.from_pretrained(path)
            model: Any = WhisperForConditionalGeneration.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no Whisper model with tokenizer and preprocessor could be loaded ({error})") from error
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._recogniser = Seq2SeqRecogniser(self._model, extractor, tokenizer)
        self._decoder = model.get_decoder()
        self._encoder = Whisper(model.get_encoder(), mel_filters(model.config.num_mel_bins, path)).to(self.device)
        self.longest_samples: int = self._encoder.max_frames * FRAME_SAMPLES
        multilingual = getattr(model.generation_config, "is_multilingual", model.config.vocab_size >= MULTILINGUAL_TOKENS)
        self.vocabulary = WhisperVocabulary(tokenizer, model.config.decoder_start_token_id, multilingual)
        self._attention = CrossAttention(self._decoder, alignment_heads(model))

    def align(self, clips: Sequence[Clip]) -> list[Alignment]:
        """The alignment of each clip, in the given order. A clip's alignment does not depend on the other clips.

        A clip has none if it has no words, is longer than 30 seconds, has more tokens than frames or than the decoder's
        positions, is in a language that the model does not know, or if its words are not what is said.
        """
        alignments: dict[int, Alignment] = {}
        ready: list[ForcedClip] = []
        for position, clip in enumerate(clips):
            try:
                ready.append(self._force(position, clip))
            except UserError as error:
                alignments[position] = Alignment(None, str(error))
        for batch in self._batches(ready):
            alignments |= {clip.position: alignment for clip, alignment in zip(batch, self._align(batch), strict=True)}
        return [alignments[position] for position in range(len(clips))]

    def transcribe(self, waveform: np.ndarray) -> str:
        """Whisper's greedy transcript. It finds the language itself. Recordings of any length are read in windows."""
        return self._recogniser([waveform])[0]

    def _force(self, position: int, clip: Clip) -> ForcedClip:
        """The clip with its tokens. Raises UserError, with the reason alone, if it cannot be aligned."""
        if not clip.units:
            raise UserError("the transcript has no words")
        if len(clip.wave) > self.longest_samples:
            seconds = self.longest_samples / SAMPLE_RATE
            raise UserError(f"the recording is longer than Whisper's {seconds:g} seconds: cut it, or use a CTC model")
        forced = ForcedClip(position, clip.wave, self.vocabulary.text(clip.units), self.vocabulary.language(clip.language))
        if len(forced.text.ids) >= forced.frames:
            raise UserError("the recording is too short for its words")
        if len(self.vocabulary.prompt(0)) + len(forced.text.ids) > self._model.config.max_target_positions:
            raise UserError("the transcript has more tokens than Whisper's decoder reads")
        return forced

    def _batches(self, clips: list[ForcedClip]) -> Iterator[list[ForcedClip]]:
        """Clips of the same padded length, those with similar numbers of tokens together."""
        by_length: dict[int, list[ForcedClip]] = defaultdict(list)
        for clip in clips:
            by_length[len(clip.padded(self.longest_samples))].append(clip)
        for samples, group in by_length.items():
            group.sort(key=lambda clip: len(clip.text.ids))
            count = max(1, BATCH_SECONDS[self.device.type] * SAMPLE_RATE // samples)
            yield from (group[first : first + count] for first in range(0, len(group), count))

    @torch.inference_mode()
    def _align(self, clips: list[ForcedClip]) -> Iterator[Alignment]:
        """The alignments of a batch."""
        sound = self._encode(clips)
        prompts = [self.vocabulary.prompt(language) for language in self._languages(clips, sound)]
        inputs = [torch.tensor([*prompt, *clip.text.ids]) for prompt, clip in zip(prompts, clips, strict=True)]
        # Row i of the decoder predicts token i + 1. The last row predicts the end: its frames are the silence after the words.
        rows = [slice(len(prompt) - 1, len(ids)) for prompt, ids in zip(prompts, inputs, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=self._model.config.eos_token_id)
        with self._attention.recorded():
            hidden = self._decoder(
                input_ids=padded.to(self.device), encoder_hidden_states=sound, use_cache=False
            ).last_hidden_state
            tables = [
                evidence(self._attention.weights(number, row, clip.frames)).cpu().numpy()
                for number, (row, clip) in enumerate(zip(rows, clips, strict=True))
            ]
        scores = [self._score(hidden[number, row], clip) for number, (row, clip) in enumerate(zip(rows, clips, strict=True))]
        for clip, score, edges in zip(clips, scores, token_edges(tables), strict=True):
            if score < LOWEST_SCORE:
                yield Alignment(None, "the words are not what Whisper hears", score)
            else:
                yield Alignment(spans_of(clip, edges), score=score)

    def _encode(self, clips: list[ForcedClip]) -> Tensor:
        """The encoder's output `(clips, frames, width)`. It computes the padded length, not always 30 seconds."""
        waves = torch.from_numpy(np.stack([clip.padded(self.longest_samples) for clip in clips])).to(self.device)
        hidden, _ = self._encoder(waves, torch.full((len(clips),), waves.shape[1], device=self.device))
        return hidden

    def _languages(self, clips: list[ForcedClip], sound: Tensor) -> list[int | None]:
        """The language token of each clip. Whisper decides where none is given."""
        if not self.vocabulary.multilingual:
            return [None] * len(clips)
        languages = [clip.language for clip in clips]
        if None in languages:
            start = torch.full((len(clips), 1), self.vocabulary.start, device=self.device)
            hidden = self._decoder(input_ids=start, encoder_hidden_states=sound, use_cache=False).last_hidden_state[:, 0]
            ids = torch.tensor(list(self.vocabulary.languages.values()), device=self.device)
            heard = ids[self._model.proj_out(hidden)[:, ids].argmax(1)].tolist()
            languages = [given or guess for given, guess in zip(languages, heard, strict=True)]
        return languages

    def _score(self, hidden: Tensor, clip: ForcedClip) -> float:
        """The mean log-probability of the transcript's tokens, from the hidden states `(tokens + 1, width)` before them."""
        predicted = self._model.proj_out(hidden[:-1]).float().log_softmax(-1)
        return predicted.gather(1, torch.tensor(clip.text.ids, device=self.device)[:, None]).mean().item()


def alignment_heads(model: Any) -> list[tuple[int, int]]:
    """The heads of a Whisper model that follow the words. Where none are named: all in the upper half, as in OpenAI's code."""
    named = getattr(model.generation_config, "alignment_heads", None)
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    return named or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def token_edges(tables: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The seconds at which tokens begin, and at which the last one ends, from each clip's evidence `(tokens + 1, frames)`."""
    tokens, frames = (np.array([table.shape[axis] for table in tables]) for axis in (0, 1))
    batch = np.zeros((len(tables), tokens.max(), frames.max()), np.float32)
    for row, table in zip(batch, tables, strict=True):
        row[: table.shape[0], : table.shape[1]] = table
    for count, starts in zip(tokens, first_frames(batch, tokens, frames), strict=True):
        yield starts[:count] * SECONDS_PER_FRAME


def spans_of(clip: ForcedClip, edges: np.ndarray) -> Spans:
    """The spans of a clip's units, from the edges between its tokens. Whisper leaves pauses to a word beside them."""
    units = clip.text.unit_edges(edges).tolist()
    return pauses.trim(list(pairwise(units)), clip.wave)
