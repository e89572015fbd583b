"""Mixes of speech and text: some words of an utterance are given as audio, the others as text.

`align_words` finds when each word is spoken. `Mixer` answers a prompt about a mix. The audio is cut as in training
(`mtbi.batches.interleave`, recipe key `interleave.cut`): with `slice` the utterance is encoded once and the adapter frames of
the spoken spans are taken; with `encode` every spoken span is encoded by itself. Two things differ from training. The word
times come from the client, by default from the server's aligner, which need not be the one that aligned the corpus. And all
words of an utterance may be text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from mtbi import plugins, text_units
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches import interleave
from mtbi.batches.interleave import Segment
from mtbi.corpus import align
from mtbi.corpus.aligner import Aligner, Clip
from mtbi.errors import UserError
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.generate import GREEDY, Decoding, complete
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun
from mtbi.use.turn import user_turn

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer


class Word(BaseModel):
    """A word of a recording. Words come in the order in which they are spoken."""

    word: str = Field(pattern=r"^\S+$")
    start: float = Field(ge=0, allow_inf_nan=False)  #: seconds
    end: float = Field(ge=0, allow_inf_nan=False)  #: seconds; not used, since a word lasts until the next one starts
    read: bool = False  #: whether the model gets the word as text instead of audio
    space: bool | None = None  #: before the word in the text; None = as usual in its script

    @property
    def unit(self) -> str:
        """The word as a unit of `mtbi.text_units`."""
        return f" {self.word}" if self.space else self.word


@dataclass(frozen=True)
class Mix:
    """An utterance of which some words are given as text."""

    wave: np.ndarray  #: (samples,) float32 at 16 kHz
    words: list[Word]  #: at least one

    def __post_init__(self) -> None:
        """Raises UserError if the words are out of order."""
        if any(later.start < earlier.start for earlier, later in pairwise(self.words)):
            raise UserError("words: each must start at or after the one before it")


def choose_aligner(name: str, run: TrainedRun) -> Aligner | None:
    """The aligner of that name: `demo`, or a Whisper or CTC model of transformers.

    Without a name it is the shipped aligner of the run's encoder, or None where there is none. Raises UserError for a model
    that cannot align.
    """
    encoder = run.recipe.model.encoder.path
    chosen = name or (encoder if encoder in plugins.SHIPPED[plugins.ALIGNERS] else "")
    return align.open_aligner(chosen) if chosen else None


def align_words(aligner: Aligner, wave: np.ndarray, transcript: str) -> list[Word]:
    """The words of a transcript with their times, which tile the utterance. Without a transcript the aligner recognises it.

    Raises UserError if there are no words, or if they cannot be aligned.
    """
    clip = Clip(wave, text_units.units(transcript or aligner.transcribe(wave)))
    if not clip.units:
        raise UserError("no word was recognised in the recording: type the transcript")
    [alignment] = aligner.align([clip])
    times = align.times_of(clip, alignment)
    if times is None:
        raise UserError(f"the words cannot be aligned: {alignment.reason}")
    spaces = [piece.startswith(" ") for piece in text_units.pieces(clip.units)]
    return [
        Word(word=word.lstrip(), start=start, end=end, space=space)
        for (word, start, end), space in zip(times, spaces, strict=True)
    ]


class Mixer:
    """Answers prompts about mixes, with one model."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run
        geometry = FrameGeometry.from_config(run.recipe.model)
        self.samples_per_frame = geometry.samples_per_frame
        self.slices = run.recipe.interleave.cut == "slice" and geometry.follows_time

    def answer(self, talk: Conversation, mix: Mix, prompt: str) -> str:
        """The answer to a prompt about a mix. `talk` is a conversation without turns; its parts become the answer's tokens."""
        return self.generate(talk, self.embed_dialogue(talk, mix, prompt))

    @torch.no_grad()
    def embed_dialogue(self, talk: Conversation, mix: Mix, prompt: str) -> Tensor:
        """The LLM's input for the dialogue up to the answer, `(positions, hidden)`."""
        chat, prompt_first = talk.run.chat, self.run.recipe.behaviour.prompt_first
        before, _, after = user_turn(chat, chat.prefix_ids, [mix.wave], prompt, prompt_first)
        opening = self._embed_text(before)
        return torch.cat([opening, *(span.to(opening.dtype) for span in self.embed(mix)), self._embed_text(after)])

    @torch.no_grad()
    def generate(
        self, talk: Conversation, embeddings: Tensor, streamer: BaseStreamer | None = None, decoding: Decoding = GREEDY
    ) -> str:
        """The answer to a dialogue `(positions, hidden)` of `embed_dialogue`. The parts of `talk` become its tokens.

        Raises ContextError if the dialogue is longer than the LLM's context.
        """
        chat, batch = talk.run.chat, embeddings[None]
        mask = torch.ones(batch.shape[:2], dtype=torch.long, device=batch.device)
        [answer] = complete(self.run.model, batch, mask, talk.max_new_tokens, chat.end_id, streamer, decoding)
        talk.parts = [torch.tensor([*answer, chat.end_id])]
        return chat.decode(answer).strip()

    @torch.no_grad()
    def embed(self, mix: Mix) -> list[Tensor]:
        """The LLM's input for each span of the mix, `(positions, hidden)`."""
        samples = len(mix.wave)
        stretches = self.run.chat.stretches([word.unit for word in mix.words])
        word_ids = [ids for _, ids in stretches]
        stops = list(accumulate(count for count, _ in stretches))
        # Several characters may share a token. They become text only if all of them are to be text.
        words = [mix.words[stop - count : stop] for stop, (count, _) in zip(stops, stretches, strict=True)]
        starts = np.array([stretch[0].start * SAMPLE_RATE for stretch in words])
        is_text = np.array([all(word.read for word in stretch) for stretch in words])
        whole = self.run.model.encode_waveform(mix.wave) if self.slices else None
        all_audio = (Segment(0, len(words), False),)
        spans = []
        for segment in interleave.segments_of(is_text) or all_audio:
            if segment.is_text:
                ids = [token for ids in word_ids[segment.first : segment.stop] for token in ids]
                spans.append(self._embed_text(torch.tensor(ids, dtype=torch.long)))
            elif whole is not None:
                first, stop = interleave.sliced_frames(segment, starts, samples, len(whole), self.samples_per_frame)
                spans.append(self.run.model.heard(whole[first:stop]))
            else:
                begin, end = interleave.sound_bounds(segment, starts, samples)
                if end > begin:
                    spans.append(self.run.model.heard(self.run.model.encode_waveform(mix.wave[begin:end])))
        return spans

    def _embed_text(self, ids: Tensor | np.ndarray) -> Tensor:
        """The embeddings `(tokens, hidden)` of token ids `(tokens,)`."""
        return self.run.model.embed(torch.as_tensor(ids, dtype=torch.long, device=self.run.device))
