"""A trained speech LLM in Python: open, ask, converse, transcribe a batch."""

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
    """A text LLM that listens, as trained by a run."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run

    @classmethod
    def from_run(cls, folder: str | Path, checkpoint: str = "best", device: str = "") -> SpeechLLM:
        """Open a run's folder. `checkpoint` is `best`, `latest` or a folder; `device` is `cpu`, `cuda` or empty: a GPU if any.

        Raises UserError where the folder holds no run, or no whole checkpoint.
        """
        return cls(open_run(folder, checkpoint, device))

    @property
    def recipe(self) -> Recipe:
        """How it was trained."""
        return self.run.recipe

    def ask(self, prompt: str, audio: Recording | None = None, max_new_tokens: int = 256) -> str:
        """The greedy answer to a prompt about a recording (see `read`), or to it alone.

        Raises UserError for an unusable recording.
        """
        talk = self.conversation(max_new_tokens)
        return talk.say([talk.fit(self.read(audio))] if audio is not None else [], prompt)

    def ask_many(
        self, questions: Sequence[tuple[Recording | None, str]], max_new_tokens: int = 256, batch_size: int = 16
    ) -> list[str]:
        """Answers to many (recording, prompt) pairs, in their order; a pair without a recording has None.

        `batch_size` questions are answered at once: memory grows with it, answers do not depend on it. All recordings are read
        first. Raises UserError for an unusable one, with the number of its question.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: it must be 1 or more")
        chat = self.run.chat
        prompts = [self._prompt(number, audio, prompt) for number, (audio, prompt) in enumerate(questions, start=1)]
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            found = generate(self.run.model, prompts[start : start + batch_size], max_new_tokens, chat.end_id)
            answers += [chat.decode(answer).strip() for answer in found]
        return answers

    def _prompt(self, number: int, audio: Recording | None, prompt: str) -> list[Piece]:
        """A question as the model reads it. Raises UserError that names its number."""
        talk = self.conversation()
        try:
            return talk._turn([talk.fit(self.read(audio))] if audio is not None else [], prompt)
        except UserError as error:
            raise UserError(f"question {number}: {error}") from error

    def conversation(self, max_new_tokens: int = 256) -> Conversation:
        """Several turns that know of each other."""
        return Conversation(self.run, max_new_tokens)

    @staticmethod
    def read(audio: Recording, sampling_rate: float | None = None) -> np.ndarray:
        """A waveform `(samples,)` float32 at 16 kHz, of whatever holds a recording (`mtbi.audio.waveforms.waveform`).

        `sampling_rate` in hertz is that of samples that come without one. Raises UserError for an unusable recording.
        """
        return waveform(audio, sampling_rate)
