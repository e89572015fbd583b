"""Talking to a trained speech LLM: several turns, each with any mix of speech and text.

A message is text in which `<FILE>` stands for a recording: `<a.flac> what is the last digit`. Which text is the prompt
says `mtbi.use.turn.split_prompt`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import TextStreamer

from mtbi.audio import codec
from mtbi.audio.waveforms import Recording, listed, waveform
from mtbi.errors import UserError
from mtbi.llm.vocabulary import DECODING
from mtbi.model.generate import GREEDY, Decoding, generate
from mtbi.use.open_run import TrainedRun
from mtbi.use.turn import split_prompt, user_turn

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

RECORDING = re.compile(r"<([^<>\n]+\.\w+)>")
HELP = "Speech is written <FILE>, as in: <hello.wav> what is said?  /new starts again, /help says this, an empty line ends."


class Conversation:
    """What was said so far, and the next answer to it."""

    def __init__(self, run: TrainedRun, max_new_tokens: int = 256) -> None:
        self.run = run
        self.max_new_tokens = max_new_tokens
        self.parts: list[Tensor | np.ndarray] = []  #: token ids and waveforms (samples,) in order

    def restart(self) -> None:
        """Forget everything."""
        self.parts.clear()

    def ask(self, message: str, streamer: BaseStreamer | None = None, recordings: Sequence[Recording] = ()) -> str:
        """The answer to a message, heard after `recordings` (see `mtbi.audio.waveforms.waveform`).

        `streamer` gets its tokens as they come.

        Raises UserError for an unusable recording. A message that fails leaves the conversation as it was.
        """
        pieces: list[str | np.ndarray] = [self._listen(recording) for recording in listed(recordings)]
        for place, piece in enumerate(RECORDING.split(message)):  # text, file, text, file, …, text
            pieces.append(self._listen(Path(piece)) if place % 2 else piece)
        said, prompt = split_prompt(pieces)
        return self.say(said, prompt, streamer)

    def say(
        self,
        said: Sequence[str | Recording],
        prompt: str,
        streamer: BaseStreamer | None = None,
        decoding: Decoding = GREEDY,
    ) -> str:
        """The answer to a prompt about what is `said`, in order: a `str` is text, all else a recording, as `waveform` takes it.

        Without anything said the prompt is the whole message.
        Raises UserError for an unusable recording, ContextError where the conversation is longer than the LLM's context.
        """
        chat = self.run.chat
        parts = self.asked(said, prompt)
        [answer] = generate(self.run.model, [parts], self.max_new_tokens, chat.end_id, streamer, decoding)
        answer = [token for token in answer if token != chat.end_id]
        self.parts = [*parts, torch.tensor([*answer, chat.end_id])]
        return chat.decode(answer).strip()

    def asked(self, said: Sequence[str | Recording], prompt: str) -> list[Tensor | np.ndarray]:
        """All that the model gets for an answer to a prompt about what is `said`: token ids and waveforms in order."""
        return [*self.parts, *self._turn(self._heard(said), prompt)]

    def recall(self, said: Sequence[str | Recording], prompt: str, answer: str) -> None:
        """A turn that happened before, with the answer that was given."""
        chat = self.run.chat
        self.parts = [
            *self.parts,
            *self._turn(self._heard(said), prompt),
            torch.tensor([*chat.answer_ids(answer), chat.end_id]),
        ]

    def _turn(self, said: Sequence[str | np.ndarray], prompt: str) -> list[Tensor | np.ndarray]:
        """A user turn from the first token that is its own to the opening of the answer."""
        chat = self.run.chat
        opening = chat.opening_ids if self.parts else chat.prefix_ids
        return user_turn(chat, opening, said, prompt, self.run.recipe.behaviour.prompt_first)

    def _heard(self, said: Sequence[str | Recording]) -> list[str | np.ndarray]:
        """Text as it is, recordings as `(samples,)` at 16 kHz."""
        return [piece if isinstance(piece, str) else self.fit(waveform(piece)) for piece in listed(said)]

    def _listen(self, recording: Recording) -> np.ndarray:
        """A recording as `(samples,)` at 16 kHz."""
        if not isinstance(recording, (str, Path)):
            return self.fit(waveform(recording))
        if isinstance(recording, Path) and not recording.is_file():
            raise UserError(f"{recording}: no such recording")
        wave = waveform(recording)
        try:
            return self.fit(wave)
        except UserError as error:
            raise UserError(f"{recording}: {error}") from error

    def fit(self, wave: np.ndarray) -> np.ndarray:
        """The waveform, if it is not longer than what the model was trained on; raises UserError otherwise."""
        longest = self.run.recipe.plan.max_audio_seconds
        seconds = len(wave) / codec.SAMPLE_RATE
        if seconds > longest:
            raise UserError(f"{seconds:.1f} s of speech, and the model was trained on at most {longest:g} s: cut the recording")
        return wave


def talk(conversation: Conversation, recordings: Sequence[Path], prompt: str) -> None:
    """Answer `prompt` about the recordings; without a prompt, answer the lines of standard input until an empty one."""
    streamer = TextStreamer(conversation.run.chat.tokenizer, skip_prompt=True, **DECODING)
    if prompt:
        conversation.ask(prompt, streamer, recordings)
        return
    terminal = sys.stdin.isatty()
    if terminal:
        print(HELP)
    while (line := read_line(terminal)) not in ("", None):
        if line == "/help":
            print(HELP)
        elif line == "/new":
            conversation.restart()
        else:
            try:
                conversation.ask(line, streamer, recordings)
                recordings = ()
            except UserError as error:
                print(f"mtbi: {error}", file=sys.stderr)


def read_line(terminal: bool) -> str | None:
    """The next line without spaces around it; None at the end of the input."""
    if terminal:
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
