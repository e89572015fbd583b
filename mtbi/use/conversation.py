"""A conversation with a trained speech LLM: several turns, each with any mix of speech and text.

In a message, `<FILE>` stands for a recording: `<a.flac> what is the last digit`. `mtbi.use.turn.split_prompt` decides which
text of a message is the prompt.
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
from mtbi.use.turn import MessagePart, split_prompt, user_turn

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

RECORDING = re.compile(r"<([^<>\n]+\.\w+)>")
HELP = "Write speech as <FILE>, for example: <hello.wav> what is said?  /new restarts, /help shows this, an empty line ends."


class Conversation:
    """The turns so far, and the next answer."""

    def __init__(self, run: TrainedRun, max_new_tokens: int = 256) -> None:
        self.run = run
        self.max_new_tokens = max_new_tokens
        self.parts: list[Tensor | np.ndarray] = []  #: token ids and waveforms (samples,) in order

    def restart(self) -> None:
        """Forget all turns."""
        self.parts.clear()

    def ask(self, message: str, streamer: BaseStreamer | None = None, recordings: Sequence[Recording] = ()) -> str:
        """The answer to a message that follows `recordings` (see `mtbi.audio.waveforms.waveform`).

        `streamer` receives the tokens of the answer one by one.

        Raises UserError for an unusable recording. A message that fails leaves the conversation unchanged.
        """
        parts: list[MessagePart] = [self._waveform(recording) for recording in listed(recordings)]
        for index, text in enumerate(RECORDING.split(message)):  # text, file, text, file, …, text
            parts.append(self._waveform(Path(text)) if index % 2 else text)
        said, prompt = split_prompt(parts)
        return self.say(said, prompt, streamer)

    def say(
        self,
        said: Sequence[str | Recording],
        prompt: str,
        streamer: BaseStreamer | None = None,
        decoding: Decoding = GREEDY,
    ) -> str:
        """The answer to a prompt about `said`: in order, a `str` is text, anything else a recording (see `waveform`).

        If `said` is empty, the prompt is the whole message.
        Raises UserError for an unusable recording, ContextError if the conversation is longer than the LLM's context.
        """
        chat = self.run.chat
        parts = self.asked(said, prompt)
        [answer] = generate(self.run.model, [parts], self.max_new_tokens, chat.end_id, streamer, decoding)
        answer = [token for token in answer if token != chat.end_id]
        self.parts = [*parts, torch.tensor([*answer, chat.end_id])]
        return chat.decode(answer).strip()

    def asked(self, said: Sequence[str | Recording], prompt: str) -> list[Tensor | np.ndarray]:
        """The model's whole input for an answer to a prompt about `said`: token ids and waveforms, in order."""
        return [*self.parts, *self._turn(said, prompt)]

    def recall(self, said: Sequence[str | Recording], prompt: str, answer: str) -> None:
        """Add an earlier turn and the answer that was given in it."""
        chat = self.run.chat
        self.parts = [*self.asked(said, prompt), torch.tensor([*chat.answer_ids(answer), chat.end_id])]

    def _turn(self, said: Sequence[str | Recording], prompt: str) -> list[Tensor | np.ndarray]:
        """A user's turn, from its first token up to the first token of the answer."""
        chat = self.run.chat
        opening = chat.opening_ids if self.parts else chat.prefix_ids
        parts = [part if isinstance(part, str) else self._waveform(part) for part in listed(said)]
        return user_turn(chat, opening, parts, prompt, self.run.recipe.behaviour.prompt_first)

    def _waveform(self, recording: Recording) -> np.ndarray:
        """A recording as `(samples,)` at 16 kHz. Raises UserError, with the path of a file, for an unusable one."""
        if isinstance(recording, Path) and not recording.is_file():
            raise UserError(f"{recording}: no such recording")
        wave = waveform(recording)
        try:
            return self.fit(wave)
        except UserError as error:
            if isinstance(recording, (str, Path)):
                raise UserError(f"{recording}: {error}") from error
            raise

    def fit(self, wave: np.ndarray) -> np.ndarray:
        """The same waveform. Raises UserError if it is longer than what the model was trained on."""
        longest = self.run.recipe.plan.max_audio_seconds
        seconds = len(wave) / codec.SAMPLE_RATE
        if seconds > longest:
            raise UserError(f"{seconds:.1f} s of speech, and the model was trained on at most {longest:g} s: cut the recording")
        return wave


def talk(conversation: Conversation, recordings: Sequence[Path], prompt: str) -> None:
    """Print the answer to `prompt` about the recordings, or without a prompt to each line of standard input until an empty one.

    The first of these lines is about the recordings.
    """
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
    """The next line of standard input without spaces around it. None at the end of the input."""
    if terminal:
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
