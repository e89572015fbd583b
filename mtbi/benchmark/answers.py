"""Answers to dialogues under conditions: with the speech, or with something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch

from mtbi.benchmark.dialogues import Dialogue, Turn
from mtbi.metrics import ADAPTED, CASCADE, NO_AUDIO, SHUFFLED, SILENCE, SPEECH, TEXT_LLM
from mtbi.model.generate import Piece, answer_logits, generate
from mtbi.model.losses.imitation import teacher_divergence
from mtbi.model.recogniser import Transcriber
from mtbi.use.open_run import TrainedRun
from mtbi.use.text_llm import TextLLM

SPARE_TOKENS = 16  #: an answer is cut off at twice the length of the text LLM's answer and so many tokens more
READ = (TEXT_LLM, CASCADE, ADAPTED)  #: conditions in which an LLM reads a transcript
CONTROLS = (SILENCE, NO_AUDIO, SHUFFLED)  #: their answers show what can be guessed without the utterance
CONTROL_EVERY = 8  #: one dialogue of so many is also asked under the controls


class ConditionAsker:
    """Asks a speech LLM under every condition, and the text LLM inside it."""

    def __init__(
        self,
        run: TrainedRun,
        transcribe: Transcriber | None = None,
        controls: Iterable[str] = CONTROLS,
        answered: Callable[[str, int, int], None] = lambda source, answers, cut_off: None,
    ) -> None:
        """With `transcribe`, a recogniser, the text LLM also answers from the recogniser's transcripts (the cascade).

        `answered` is called with a source, the number of its new answers, and how many of them were cut off.
        """
        self.run, self.transcribe, self.controls, self.answered = run, transcribe, tuple(controls), answered
        self.text_llm = TextLLM(run)
        self.transcripts: dict[tuple[str, str], str] = {}  #: the recogniser's, by group and recording

    def ask(self, turns: list[Turn]) -> None:
        """Fill in the answers of dialogues. Answers that a dialogue has already stay."""
        if self.transcribe:
            self.recognise(turns, self.transcribe)
        of_text_llm = (TEXT_LLM, CASCADE) if self.transcribe else (TEXT_LLM,)
        if any(source not in turn.dialogue.answers for turn in turns for source in of_text_llm):
            with self.text_llm.restored():
                self.add_answers(turns, TEXT_LLM, lambda turn: self.text_ids(turn, turn.dialogue.transcript))
                if self.transcribe:
                    self.add_answers(turns, CASCADE, lambda turn: self.text_ids(turn, turn.dialogue.heard or ""))
        self.add_answers(turns, SPEECH, lambda turn: turn.waveform)
        controlled = [turn for turn in turns if turn.controlled]
        if self.text_llm.changed:
            self.add_answers(controlled, ADAPTED, lambda turn: self.text_ids(turn, turn.dialogue.transcript))
        silence = {id(turn.waveform): np.zeros_like(turn.waveform) for turn in controlled}  # each is encoded once
        inputs: dict[str, Callable[[Turn], Piece]] = {
            SILENCE: lambda turn: silence[id(turn.waveform)],
            NO_AUDIO: lambda turn: self.text_ids(turn, ""),
            SHUFFLED: lambda turn: turn.other,
        }
        for control in self.controls:
            self.add_answers(controlled, control, inputs[control])
        self.compare_tokens([turn for turn in turns if turn.stored is not None and turn.stored.topk_ids.shape[1]])

    def text_ids(self, turn: Turn, transcript: str) -> torch.Tensor:
        """Token ids `(tokens,)` of a transcript in the place of the speech."""
        return torch.tensor(turn.read.transcript_ids(self.run.chat, transcript), dtype=torch.long)

    def recognise(self, turns: list[Turn], transcribe: Transcriber) -> None:
        """Set `heard`. Each recording is recognised once."""
        for turn in turns:
            if turn.dialogue.heard is not None:
                self.transcripts.setdefault(_recording(turn), turn.dialogue.heard)
        new = {_recording(turn): turn.waveform for turn in turns if _recording(turn) not in self.transcripts}
        if new:
            self.transcripts.update(zip(new, transcribe(list(new.values())), strict=True))
        for turn in turns:
            turn.dialogue.heard = self.transcripts[_recording(turn)]

    def prompt(self, turn: Turn, source: str, speech: Piece) -> list[Piece]:
        """The dialogue up to the answer, with `speech` (a waveform or token ids) in the place of the speech."""
        dialogue = turn.dialogue
        first = dialogue.history[0][0] if dialogue.history else dialogue.prompt
        lead, suffix = self.run.chat.around_speech(first, dialogue.prompt_first)
        around = turn.read if source in READ else turn.heard
        before = [*self.run.chat.prefix_ids, *lead, *around.before]
        return [torch.tensor(before), speech, torch.tensor([*around.after, *suffix, *turn.history_ids])]

    def limit(self, dialogue: Dialogue) -> int:
        """The longest answer to a dialogue, in tokens.

        An answer has the task's limit, as the text LLM's answer had. It is cut off earlier where it is more than twice as long
        as the text LLM's.
        """
        if TEXT_LLM not in dialogue.answers:
            return dialogue.max_new_tokens
        known = len(self.run.chat.plain_ids(dialogue.answers[TEXT_LLM]))
        return max(known, min(dialogue.max_new_tokens, 2 * known + SPARE_TOKENS))

    def add_answers(self, turns: list[Turn], source: str, speech: Callable[[Turn], Piece]) -> None:
        """Generate an answer to each dialogue that has none of `source` yet."""
        turns = [turn for turn in turns if source not in turn.dialogue.answers]
        if not turns:
            return
        chat = self.run.chat
        limits = [self.limit(turn.dialogue) for turn in turns]
        answers = generate(self.run.model, [self.prompt(turn, source, speech(turn)) for turn in turns], limits, chat.end_id)
        cut_off = 0
        for turn, ids, limit in zip(turns, answers, limits, strict=True):
            turn.dialogue.answers[source] = chat.decode(ids)
            if len(ids) >= limit:
                turn.dialogue.cut_off.append(source)
                cut_off += 1
        self.answered(source, len(turns), cut_off)

    def compare_tokens(self, turns: list[Turn]) -> None:
        """Compare the speech LLM's next-token probabilities with the stored ones, along the text LLM's answers."""
        turns = [turn for turn in turns if not turn.dialogue.tokens]
        if not turns:
            return
        prompts = [self.prompt(turn, SPEECH, turn.waveform) for turn in turns]
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


def _recording(turn: Turn) -> tuple[str, str]:
    return turn.dialogue.group, turn.dialogue.cluster


def in_batches(turns: Iterable[Turn], size: int) -> Iterator[list[Turn]]:
    """Lists of `size` turns, the last one shorter."""
    turns = iter(turns)
    while batch := list(islice(turns, size)):
        yield batch
