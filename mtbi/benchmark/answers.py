"""Answers to dialogues under conditions: heard, or with something else in the place of the speech."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import nn

from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM, Dialogue, Turn
from mtbi.model.generate import Piece, answer_logits, generate
from mtbi.model.losses.imitation import teacher_divergence
from mtbi.use.open_run import TrainedRun

SPARE_TOKENS = 16  #: an answer may be this much longer than twice the text LLM's before it is cut off
UNKNOWN_ANSWER_TOKENS = 256  #: the longest answer where the text LLM has not answered yet
CASCADE, SILENCE, NO_AUDIO, SHUFFLED = "cascade", "silence", "no audio", "shuffled"
CONTROLS = (SILENCE, NO_AUDIO, SHUFFLED)  #: what the prompt alone, or other speech, gives away
CONTROL_EVERY = 8  #: controls are asked about every so many dialogues

Transcriber = Callable[[np.ndarray], str]


class Answerer:
    """Asks a speech LLM, and the text LLM inside it."""

    def __init__(self, run: TrainedRun, transcribe: Transcriber | None = None, controls: Iterable[str] = CONTROLS) -> None:
        """With `transcribe`, the cascade of recogniser and text LLM answers too."""
        self.run, self.transcribe, self.controls = run, transcribe, tuple(controls)
        self.heard: dict[tuple[str, str], str] = {}

    def ask(self, turns: list[Turn], first: int = 0) -> None:
        """Fill in the answers of dialogues; `first` is the number of the first of them in the whole benchmark."""
        unanswered = [turn for turn in turns if TEXT_LLM not in turn.dialogue.answers]
        with text_only(self.run.model.llm):
            self.fill(unanswered, TEXT_LLM, lambda turn: self.words(turn.dialogue.transcript))
            if self.transcribe:
                self.fill(turns, CASCADE, lambda turn: self.words(self.recognised(turn)))
        self.fill(turns, SPEECH, lambda turn: turn.waveform)
        some = [turn for number, turn in enumerate(turns, start=first) if number % CONTROL_EVERY == 0]
        sounds: dict[str, Callable[[Turn], Piece]] = {
            SILENCE: lambda turn: np.zeros_like(turn.waveform),
            NO_AUDIO: lambda turn: self.words(""),
            SHUFFLED: lambda turn: turn.other,
        }
        for control in self.controls:
            self.fill(some, control, sounds[control])
        self.compare_tokens([turn for turn in turns if turn.stored is not None and turn.stored.topk_ids.shape[1]])

    def words(self, text: str) -> torch.Tensor:
        """Token ids of a transcript."""
        return torch.tensor(self.run.chat.transcript_ids(text), dtype=torch.long)

    def recognised(self, turn: Turn) -> str:
        """The recogniser's transcript of an utterance; each is recognised once."""
        assert self.transcribe
        key = (turn.dialogue.group, turn.dialogue.utterance)
        if key not in self.heard:
            self.heard[key] = self.transcribe(turn.waveform)
        return self.heard[key]

    def prompt(self, turn: Turn, said: Piece) -> list[Piece]:
        """The dialogue up to the answer, with `said` in the place of the speech."""
        lead, suffix = self.run.chat.around_speech(turn.dialogue.prompt, turn.dialogue.prompt_first)
        return [torch.tensor([*self.run.chat.prefix_ids, *lead]), said, torch.tensor(suffix)]

    def limit(self, dialogue: Dialogue) -> int:
        """The longest answer to a dialogue, in tokens."""
        if TEXT_LLM not in dialogue.answers:
            return UNKNOWN_ANSWER_TOKENS
        return 2 * len(self.run.chat.plain_ids(dialogue.answers[TEXT_LLM])) + SPARE_TOKENS

    def fill(self, turns: list[Turn], who: str, said: Callable[[Turn], Piece]) -> None:
        """One more answer to each dialogue."""
        if not turns:
            return
        chat = self.run.chat
        limits = [self.limit(turn.dialogue) for turn in turns]
        ids = generate(self.run.model, [self.prompt(turn, said(turn)) for turn in turns], max(limits), chat.end_id)
        ids = [answer[:limit] for answer, limit in zip(ids, limits, strict=True)]  # the same in every batch
        for turn, text in zip(turns, map(chat.decode, ids), strict=True):
            turn.dialogue.answers[who] = text

    def compare_tokens(self, turns: list[Turn]) -> None:
        """How near the speech LLM's probabilities are to the stored ones, token by token of the text LLM's answer."""
        if not turns:
            return
        prompts = [self.prompt(turn, turn.waveform) for turn in turns]
        stored = [turn.stored for turn in turns if turn.stored]
        logits = answer_logits(self.run.model, prompts, [one.answer_ids for one in stored])
        for turn, one, scores in zip(turns, stored, logits, strict=True):
            ids = torch.from_numpy(one.topk_ids).long().to(scores.device)
            shares = torch.from_numpy(one.topk_logprobs).float().to(scores.device)
            targets = torch.tensor(one.answer_ids, device=scores.device)
            dialogue = turn.dialogue
            dialogue.tokens = len(one.answer_ids)
            dialogue.token_hits = float((scores.argmax(-1) == targets).sum())
            dialogue.token_divergence = float(teacher_divergence(scores, ids, shares).sum())


@contextmanager
def text_only(llm: nn.Module) -> Iterator[None]:
    """The LLM as it was before speech training: without its low-rank updates."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in llm.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def in_batches(turns: Iterable[Turn], size: int) -> Iterator[list[Turn]]:
    """Lists of `size` turns, the last one shorter."""
    turns = iter(turns)
    while batch := list(islice(turns, size)):
        yield batch
