"""A trained speech LLM in Python: open a run, ask about recordings, hold a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtbi.audio.waveforms import Recording, waveform
from mtbi.errors import UserError
from mtbi.model.generate import Piece, generate
from mtbi.recipe import Recipe
from mtbi.use.conversation import Conversation
from mtbi.use.open_run import TrainedRun, open_run


class SpeechLLM:
    """A speech LLM that a run has trained."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run

    @classmethod
    def from_run(cls, folder: str | Path, checkpoint: str = "best", device: str = "") -> SpeechLLM:
        """Open a run's folder.

        `checkpoint` is `best`, `latest` or a checkpoint's folder. `device` is `cpu` or `cuda`; without one, a GPU is used if
        there is one. Raises UserError if the folder holds no run, or no complete checkpoint.
        """
        return cls(open_run(folder, checkpoint, device))

    @property
    def recipe(self) -> Recipe:
        """The recipe that it was trained with."""
        return self.run.recipe

    def ask(self, prompt: str, audio: Recording | None = None, max_new_tokens: int = 256) -> str:
        """The greedy answer to a prompt about a recording (see `read`), or to the prompt alone.

        Raises UserError for an unusable recording.
        """
        return self.conversation(max_new_tokens).say(self._said(audio), prompt)

    def ask_many(
        self, questions: Sequence[tuple[Recording | None, str]], max_new_tokens: int = 256, batch_size: int = 16
    ) -> list[str]:
        """Answers to many (recording, prompt) pairs, in their order. A pair without a recording has None instead.

        `batch_size` questions are answered at once. Memory grows with it; answers do not depend on it. All recordings are read
        first. Raises UserError for an unusable recording, with the number of its question.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: it must be 1 or more")
        chat = self.run.chat
        prompts = [self._prompt(number, audio, prompt) for number, (audio, prompt) in enumerate(questions, start=1)]
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            ids = generate(self.run.model, prompts[start : start + batch_size], max_new_tokens, chat.end_id)
            answers += [chat.decode(answer).strip() for answer in ids]
        return answers

    def _prompt(self, number: int, audio: Recording | None, prompt: str) -> list[Piece]:
        """The model's input for one question. Raises UserError, with the question's number, for an unusable recording."""
        try:
            return self.conversation().asked(self._said(audio), prompt)
        except UserError as error:
            raise UserError(f"question {number}: {error}") from error

    def _said(self, audio: Recording | None) -> list[np.ndarray]:
        """The waveform of a recording if there is one, as `Conversation.say` takes it: there a `str` is text, here a path."""
        return [] if audio is None else [self.read(audio)]

    def conversation(self, max_new_tokens: int = 256) -> Conversation:
        """A new conversation: in later turns the model also reads the earlier ones."""
        return Conversation(self.run, max_new_tokens)

    @staticmethod
    def read(audio: Recording, sampling_rate: float | None = None) -> np.ndarray:
        """A recording in any of the forms of `mtbi.audio.waveforms.waveform` as `(samples,)` float32 at 16 kHz.

        `sampling_rate` is in hertz, for samples that come without a rate. Raises UserError for an unusable recording.
        """
        return waveform(audio, sampling_rate)
