"""Some words of an utterance heard, the others read: when each is spoken, and the answer about such a mix.

A mix is cut as training cuts it (`mtbi.batches.interleave`, by `interleave.cut`): `slice` encodes the utterance once and takes
the adapter frames of the heard spans; `encode` encodes every heard span on its own. It differs from training in
two ways: the word times come from whoever asks, by default from the server's aligner and not from the one that aligned
the corpus, and all words may be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from mtbi import text_units
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches import interleave
from mtbi.batches.interleave import Segment
from mtbi.corpus import align
from mtbi.corpus.align import CtcAligner
from mtbi.errors import UserError
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.generate import GREEDY, Decoding, complete
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer


class Word(BaseModel):
    """A word of a recording; words stand in the order in which they are spoken."""

    word: str = Field(pattern=r"^\S+$")
    start: float = Field(ge=0, allow_inf_nan=False)  #: seconds
    end: float = Field(ge=0, allow_inf_nan=False)  #: seconds; a word lasts until the next one starts, so it is not read
    read: bool = False  #: given to the model as text instead of sound
    space: bool | None = None  #: whether a space stands before it in the text; None = as its script has it

    @property
    def unit(self) -> str:
        """As `mtbi.text_units` writes it."""
        return f" {self.word}" if self.space else self.word


@dataclass(frozen=True)
class Mix:
    """An utterance of which some words are read."""

    wave: np.ndarray  #: (samples,) float32 at 16 kHz
    words: list[Word]  #: at least one

    def __post_init__(self) -> None:
        """Raises UserError for words that are out of order."""
        if any(later.start < earlier.start for earlier, later in pairwise(self.words)):
            raise UserError("words: each must start at or after the one before it")


def choose_aligner(name: str, run: TrainedRun) -> CtcAligner | None:
    """`demo`, or a CTC model of transformers; an empty name is `demo` for the demo's encoder and none for others.

    Raises UserError for a model that cannot align.
    """
    chosen = name or ("demo" if run.recipe.model.encoder.path == "demo" else "")
    return align.open_aligner(chosen) if chosen else None


def align_words(aligner: CtcAligner, wave: np.ndarray, transcript: str) -> list[Word]:
    """The words of a transcript, or without one those that the recogniser hears, with their times; they tile the utterance.

    Raises UserError where there are no words, or they cannot be aligned.
    """
    spelt = text_units.units(transcript or aligner.transcribe(wave))
    if not spelt:
        raise UserError("the recogniser hears no word in it: type the transcript")
    log_probs, seconds_per_frame = aligner.emissions(wave)
    spans = align.word_frames(log_probs, [aligner.labels(word) for word in spelt], aligner.blank, aligner.delimiter)
    if spans is None:
        raise UserError(
            "the words cannot be aligned: the recording is too short for them, or the aligner can spell none of them"
        )
    times = align.tile(spans, seconds_per_frame, len(wave) / SAMPLE_RATE)
    spaces = [piece.startswith(" ") for piece in text_units.pieces(spelt)]
    return [
        Word(word=word.lstrip(), start=start, end=end, space=space)
        for word, space, (start, end) in zip(spelt, spaces, times, strict=True)
    ]


class Mixer:
    """Answers about mixes, with one model."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run
        self.samples_per_frame = FrameGeometry.from_config(run.recipe.model).samples_per_frame

    def answer(self, talk: Conversation, mix: Mix, prompt: str) -> str:
        """The answer to a prompt about a mix, in a conversation without earlier turns. Its tokens are the only `talk.parts`."""
        return self.reply(talk, self.asked(talk, mix, prompt))

    @torch.no_grad()
    def asked(self, talk: Conversation, mix: Mix, prompt: str) -> Tensor:
        """The LLM's input for the whole dialogue, `(positions, hidden)`."""
        chat = talk.run.chat
        lead, closing = chat.around_speech(prompt.strip(), self.run.recipe.behaviour.prompt_first)
        before, after = self._text([*chat.prefix_ids, *lead]), self._text(closing)
        return torch.cat([before, *(span.to(before.dtype) for span in self.embed(mix)), after])

    @torch.no_grad()
    def reply(
        self, talk: Conversation, asked: Tensor, streamer: BaseStreamer | None = None, decoding: Decoding = GREEDY
    ) -> str:
        """The answer to what `asked` gave. Its tokens are the only `talk.parts`. Raises ContextError for too long an input."""
        chat, embeddings = talk.run.chat, asked[None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        [answer] = complete(self.run.model, embeddings, mask, talk.max_new_tokens, chat.end_id, streamer, decoding)
        talk.parts = [torch.tensor([*answer, chat.end_id])]
        return chat.decode(answer).strip()

    @torch.no_grad()
    def embed(self, mix: Mix) -> list[Tensor]:
        """The LLM's input for each span of the mix, `(positions, hidden)`."""
        samples = len(mix.wave)
        stretches = self.run.chat.stretches([word.unit for word in mix.words])
        word_ids = [ids for _, ids in stretches]
        stops = list(accumulate(count for count, _ in stretches))
        # A stretch of several characters is one token: it is read where all of them are to be.
        words = [mix.words[stop - count : stop] for stop, (count, _) in zip(stops, stretches, strict=True)]
        starts = np.array([stretch[0].start * SAMPLE_RATE for stretch in words])
        read = np.array([all(word.read for word in stretch) for stretch in words])
        whole = self.run.model.encode_waveform(mix.wave) if self.run.recipe.interleave.cut == "slice" else None
        all_heard = (Segment(0, len(words), False),)
        spans = []
        for segment in interleave.segments_of(read) or all_heard:
            if segment.is_text:
                spans.append(self._text([token for ids in word_ids[segment.first : segment.stop] for token in ids]))
            elif whole is not None:
                first, stop = interleave.sliced_frames(segment, starts, samples, len(whole), self.samples_per_frame)
                spans.append(whole[first:stop])
            else:
                begin, end = interleave.sound_bounds(segment, starts, samples)
                if end > begin:
                    spans.append(self.run.model.encode_waveform(mix.wave[begin:end]))
        return spans

    def _text(self, ids: list[int]) -> Tensor:
        return self.run.model.embed(torch.tensor(ids, dtype=torch.long, device=self.run.device))
