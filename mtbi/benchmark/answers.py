"""Answers to dialogues under conditions: with the speech, or with something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import nn

from mtbi.benchmark.dialogues import Dialogue, Turn
from mtbi.metrics import CASCADE, NO_AUDIO, SHUFFLED, SILENCE, SPEECH, TEXT_LLM
from mtbi.model.generate import Piece, answer_logits, generate
from mtbi.model.losses.imitation import teacher_divergence
from mtbi.use.open_run import TrainedRun

SPARE_TOKENS = 16  #: an answer is cut off at twice the length of the text LLM's answer and so many tokens more
UNKNOWN_ANSWER_TOKENS = 256  #: the longest answer if the text LLM has not answered yet
CONTROLS = (SILENCE, NO_AUDIO, SHUFFLED)  #: their answers show what can be guessed without the utterance
CONTROL_EVERY = 8  #: one dialogue of so many is also asked under the controls

Transcriber = Callable[[np.ndarray], str]  #: from a waveform `(samples,)` at 16 kHz


class ConditionAsker:
    """Asks a speech LLM under every condition, and the text LLM inside it."""

    def __init__(self, run: TrainedRun, transcribe: Transcriber | None = None, controls: Iterable[str] = CONTROLS) -> None:
        """With `transcribe`, a recogniser, the text LLM also answers from the recogniser's transcripts (the cascade)."""
        self.run, self.transcribe, self.controls = run, transcribe, tuple(controls)
        self.transcripts: dict[tuple[str, str], str] = {}  #: the recogniser's, by group and utterance

    def ask(self, turns: list[Turn], first: int = 0) -> None:
        """Fill in the answers of dialogues. `first` is the index of the first of them in the whole benchmark."""
        unanswered = [turn for turn in turns if TEXT_LLM not in turn.dialogue.answers]
        with text_only(self.run.model.llm):
            self.add_answers(unanswered, TEXT_LLM, lambda turn: self.text_ids(turn.dialogue.transcript))
            if self.transcribe:
                self.add_answers(turns, CASCADE, lambda turn: self.text_ids(self.recognise(turn)))
        self.add_answers(turns, SPEECH, lambda turn: turn.waveform)
        controlled = [turn for index, turn in enumerate(turns, start=first) if index % CONTROL_EVERY == 0]
        inputs: dict[str, Callable[[Turn], Piece]] = {
            SILENCE: lambda turn: np.zeros_like(turn.waveform),
            NO_AUDIO: lambda turn: self.text_ids(""),
            SHUFFLED: lambda turn: turn.other,
        }
        for control in self.controls:
            self.add_answers(controlled, control, inputs[control])
        self.compare_tokens([turn for turn in turns if turn.stored is not None and turn.stored.topk_ids.shape[1]])

    def text_ids(self, transcript: str) -> torch.Tensor:
        """Token ids `(tokens,)` of a transcript."""
        return torch.tensor(self.run.chat.transcript_ids(transcript), dtype=torch.long)

    def recognise(self, turn: Turn) -> str:
        """The recogniser's transcript of an utterance. Each utterance is recognised once."""
        assert self.transcribe
        key = (turn.dialogue.group, turn.dialogue.utterance)
        if key not in self.transcripts:
            self.transcripts[key] = self.transcribe(turn.waveform)
        return self.transcripts[key]

    def prompt(self, turn: Turn, speech: Piece) -> list[Piece]:
        """The dialogue up to the answer, with `speech` (a waveform or token ids) in the place of the speech."""
        lead, suffix = self.run.chat.around_speech(turn.dialogue.prompt, turn.dialogue.prompt_first)
        return [torch.tensor([*self.run.chat.prefix_ids, *lead]), speech, torch.tensor(suffix)]

    def limit(self, dialogue: Dialogue) -> int:
        """The longest answer to a dialogue, in tokens."""
        if TEXT_LLM not in dialogue.answers:
            return UNKNOWN_ANSWER_TOKENS
        return 2 * len(self.run.chat.plain_ids(dialogue.answers[TEXT_LLM])) + SPARE_TOKENS

    def add_answers(self, turns: list[Turn], source: str, speech: Callable[[Turn], Piece]) -> None:
        """Generate one more answer to each dialogue and store it under `source`."""
        if not turns:
            return
        chat = self.run.chat
        limits = [self.limit(turn.dialogue) for turn in turns]
        ids = generate(self.run.model, [self.prompt(turn, speech(turn)) for turn in turns], max(limits), chat.end_id)
        ids = [
            answer[:limit] for answer, limit in zip(ids, limits, strict=True)
        ]  # independent of the other dialogues in the batch
        for turn, text in zip(turns, map(chat.decode, ids), strict=True):
            turn.dialogue.answers[source] = text

    def compare_tokens(self, turns: list[Turn]) -> None:
        """Compare the speech LLM's next-token probabilities with the stored ones, along the text LLM's answers."""
        if not turns:
            return
        prompts = [self.prompt(turn, turn.waveform) for turn in turns]
        behaviours = [turn.stored for turn in turns if turn.stored]
        logits = answer_logits(self.run.model, prompts, [stored.answer_ids for stored in behaviours])
        for turn, stored, scores in zip(turns, behaviours, logits, strict=True):
            ids = torch.from_numpy(stored.topk_ids).long().to(scores.device)
            shares = torch.from_numpy(stored.topk_logprobs).float().to(scores.device)
            targets = torch.tensor(stored.answer_ids, device=scores.device)
            dialogue = turn.dialogue
            dialogue.tokens = len(stored.answer_ids)
            dialogue.token_hits = float((scores.argmax(-1) == targets).sum())
            dialogue.token_divergence = float(teacher_divergence(scores, ids, shares).sum())


@contextmanager
def text_only(llm: nn.Module) -> Iterator[None]:
    """Switch off the LLM's low-rank updates, so that it is the LLM from before speech training."""
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
