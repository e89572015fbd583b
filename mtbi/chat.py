"""Talking to a trained speech LLM: several turns, each with any mix of speech and text.

A message is text in which `<FILE>` stands for a recording: `<a.flac> what is the last digit`. The text after the last
recording is the prompt; text before it belongs to what was said, as if it had been heard.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import TextStreamer

from mtbi.data import audio, text_units
from mtbi.errors import UserError
from mtbi.model.generate import generate
from mtbi.trained import TrainedRun

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

    def ask(self, message: str, streamer: BaseStreamer | None = None, recordings: Sequence[Path] = ()) -> str:
        """The answer to a message, heard after `recordings`; `streamer` gets its tokens as they come.

        Raises UserError for an unusable recording. A message that fails leaves the conversation as it was.
        """
        *said, prompt = RECORDING.split(message)  # text, file, text, file, …, text
        heard: list[str | np.ndarray] = [self._listen(path) for path in recordings]
        heard += [self._listen(Path(piece)) if place % 2 else piece for place, piece in enumerate(said)]
        return self.say(heard, prompt, streamer)

    def say(self, said: Sequence[str | np.ndarray], prompt: str, streamer: BaseStreamer | None = None) -> str:
        """The answer to a prompt about what is `said`: text and waveforms `(samples,)` float32 at 16 kHz, in order."""
        chat = self.run.chat
        parts = [*self.parts, *self._turn(said, prompt)]
        [answer] = generate(self.run.model, [parts], self.max_new_tokens, chat.end_id, streamer=streamer)
        answer = [token for token in answer if token != chat.end_id]
        self.parts = [*parts, torch.tensor([*answer, chat.end_id])]
        return chat.tokenizer.decode(answer, skip_special_tokens=True).strip()

    def recall(self, said: Sequence[str | np.ndarray], prompt: str, answer: str) -> None:
        """A turn that happened before, with the answer that was given."""
        chat = self.run.chat
        self.parts = [
            *self.parts,
            *self._turn(said, prompt),
            torch.tensor([*chat.text_ids(text_units.nfc(answer)), chat.end_id]),
        ]

    def _next_opening(self) -> list[int]:
        """What stands between an answer and the user's next words: the part of `turn_ids` that does not depend on them."""
        pairs = zip(self.run.chat.turn_ids("0"), self.run.chat.turn_ids("A"), strict=False)
        return [left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def _turn(self, said: Sequence[str | np.ndarray], prompt: str) -> list[Tensor | np.ndarray]:
        """A user turn from the first token that is its own to the opening of the answer."""
        chat = self.run.chat
        parts: list[Tensor | np.ndarray] = [torch.tensor(self._next_opening() if self.parts else chat.prefix_ids)]
        for piece in said:
            if isinstance(piece, np.ndarray):
                parts.append(piece)
            elif words := text_units.units(piece):
                read = chat.word_ids(words, continues=len(parts) > 1)
                parts.append(torch.tensor([token for ids in read for token in ids]))
        if len(parts) == 1:  # no speech: the message itself is the content
            parts.append(torch.tensor(chat.text_ids(text_units.nfc(prompt.strip()))))
            prompt = ""
        return [*parts, torch.tensor(chat.suffix_ids(prompt.strip()))]

    def _listen(self, path: Path) -> np.ndarray:
        """A recording as `(samples,)` at 16 kHz."""
        if not path.is_file():
            raise UserError(f"{path}: no such recording")
        try:
            return self.fit(audio.read(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def fit(self, wave: np.ndarray) -> np.ndarray:
        """The waveform, if it is not longer than what the model was trained on; raises UserError otherwise."""
        longest = self.run.recipe.plan.max_audio_seconds
        seconds = len(wave) / audio.SAMPLE_RATE
        if seconds > longest:
            raise UserError(f"{seconds:.1f} s of speech, and the model was trained on at most {longest:g} s: cut the recording")
        return wave


def talk(conversation: Conversation, recordings: Sequence[Path], prompt: str) -> None:
    """Answer `prompt` about the recordings; without a prompt, answer the lines of standard input until an empty one."""
    streamer = TextStreamer(conversation.run.chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
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
