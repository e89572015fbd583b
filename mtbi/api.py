"""A trained speech LLM in Python: open, ask, converse, transcribe a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtbi.chat import Conversation
from mtbi.data import audio as sound
from mtbi.data.audio import Recording
from mtbi.model.generate import generate
from mtbi.recipe import Recipe
from mtbi.trained import TrainedRun, open_run
from mtbi.turn import user_turn


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
        """The greedy answer to a prompt about a recording, or to it alone. Raises UserError for an unusable recording."""
        talk = self.conversation(max_new_tokens)
        return talk.say([talk.fit(self.read(audio))] if audio is not None else [], prompt)

    def ask_many(self, questions: Sequence[tuple[Recording, str]], max_new_tokens: int = 256) -> list[str]:
        """Answers to many (recording, prompt) pairs in one batch."""
        chat, fit, prompt_first = self.run.chat, self.conversation().fit, self.recipe.behaviour.prompt_first
        prompts = [
            user_turn(chat, chat.prefix_ids, [fit(self.read(audio))], prompt, prompt_first) for audio, prompt in questions
        ]
        answers = generate(self.run.model, prompts, max_new_tokens, chat.end_id)
        return [chat.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def conversation(self, max_new_tokens: int = 256) -> Conversation:
        """Several turns that know of each other."""
        return Conversation(self.run, max_new_tokens)

    @staticmethod
    def read(audio: Recording) -> np.ndarray:
        """A waveform `(samples,)` float32 at 16 kHz. Raises UserError where it cannot be decoded."""
        return sound.waveform(audio)
