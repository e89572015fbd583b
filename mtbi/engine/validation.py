"""The evaluation inside a run: loss and agreement on held-out prompts without generation, and a few dialogues with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import takewhile

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cosine_similarity

from mtbi import text_units
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Geometry, Group, Plan
from mtbi.engine.engine import Engine
from mtbi.engine.log import Metrics
from mtbi.errors import ElsewhereError
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.generate import generate
from mtbi.model.speech_llm import SpeechLLM
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance

SHOWN_WORDS = 40  #: of an utterance's alignment: a picture that fits a screen


class Evaluation:
    """One epoch of the evaluation shards, as sound, with every stored dialogue."""

    def __init__(self, recipe: Recipe, geometry: Geometry, chat: ChatFormat, shards: Shards, rank: int, world: int) -> None:
        plain = replace(recipe.interleave, share=0.0)
        packing = replace(recipe.plan, tasks=[], hours=0.0, tasks_per_utterance=0, passes_per_epoch=1)
        loss, data = replace(recipe.loss, task_weights={}), replace(recipe.data, weights={})
        self.recipe = replace(recipe, interleave=plain, plan=packing, loss=loss, data=data)
        self.shards, self.chat, self.rank, self.world = shards, chat, rank, world
        self.failure: Exception | None = None  #: why the last evaluation had to be given up, the same time on all processes
        self.plan = Plan(shards.index, self.recipe, geometry)

    def run(self, engine: Engine, metrics: Metrics, step: int, doing: Callable[[], None] = lambda: None) -> float:
        """Returns the share of answer tokens on which the speech LLM, given the answer so far, agrees with the text LLM.

        Where a process cannot read its data, `failure` is set on all of them. `doing` is called now and then, for a watchdog.
        """
        loss = weight = hits = count = 0.0
        utterances = 0
        rows, data = self.recipe.plan.rows_per_micro_batch, self.recipe.data
        with Loader(self.shards, self.plan, self.rank, self.world, rows, data.workers, data.prefetch) as loader:
            for loaded in takewhile(lambda one: one.position.epoch == 0, loader):
                doing()
                sums = engine.evaluate_step(loaded)
                if sums.failed:
                    self.failure = loader.failure or ElsewhereError()
                    return 0.0
                loss, weight = loss + sums.loss, weight + sums.weight
                hits, count = hits + float(sums.tasks[2].sum()), count + float(sums.tasks[3].sum())
                utterances += sum(len(row.groups) for row in loaded.step.rows)
                if utterances >= self.recipe.train.eval_utterances:
                    break
        agreement = hits / max(count, 1)
        metrics.scalars({"eval/loss": loss / max(weight, 1e-9), "eval/agreement": agreement}, step)
        metrics.say(
            f"eval at step {step}: loss {loss / max(weight, 1e-9):.4f}, agreement {agreement:.2%} of {count:.0f} answer tokens"
        )
        doing()
        self.show_dialogues(engine.model, metrics, step)
        return agreement

    @cached_property
    def shown(self) -> list[Group]:
        """The utterances of the dialogues that are shown: the first ones of the shards in the plan's first window.

        What the plan leaves out, as too long for the encoder say, is not among them. Encoded shards hold no sound to show.
        """
        if self.shards.index.encoded or not self.recipe.train.sample_dialogues:
            return []
        groups = {group.utterance: group for row in self.plan.window_rows(0, 0) for group in row.groups if group.samples}
        return [groups[utterance] for utterance in sorted(groups)][: self.recipe.train.sample_dialogues]

    def show_dialogues(self, model: SpeechLLM, metrics: Metrics, step: int) -> None:
        """A few dialogues and alignments, the same at every evaluation; all processes make them together, as ZeRO-3 needs.

        Where a process cannot read them, `failure` is set on all.
        """
        samples: list[StoredUtterance] = []
        try:
            samples = [self.shards[group.utterance] for group in self.shown]
        except Exception as error:
            self.failure = error
        if happened_anywhere(self.failure is not None, next(model.adapter.parameters()).device):
            self.failure = self.failure or ElsewhereError()
            return
        for place, (group, sample) in enumerate(zip(self.shown, samples, strict=True)):
            stored = sample.behaviours[sorted(group.branches)[place % len(group.branches)]]
            prompt: list[torch.Tensor | np.ndarray] = [
                torch.tensor([*self.chat.prefix_ids, *stored.before_speech_ids]),
                sample.waveform,
                torch.tensor(stored.after_speech_ids),
            ]
            (ids,) = generate(model, [prompt], len(stored.answer_ids) + 8, self.chat.end_id)
            answer = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
            said = {"heard": sample.text, "asked": stored.prompt, "speech LLM": answer, "text LLM": stored.answer}
            text = "  \n".join(f"**{who}** {what}" for who, what in said.items())
            metrics.dialogue(place, text, sample.waveform, step)
            if word_ids := self.chat.word_ids(text_units.units(sample.text)[:SHOWN_WORDS]):
                similar = similarity(model, sample.waveform, word_ids)
                words = [self.chat.tokenizer.decode(ids).strip() for ids in word_ids]
                metrics.alignment(place, similar, words, len(sample.waveform) / SAMPLE_RATE / len(similar), step)


def happened_anywhere(here: bool, device: torch.device) -> bool:
    """Whether something is so on any process; all must ask together."""
    if not dist.is_initialized():
        return here
    flag = torch.tensor([float(here)], device=device)
    dist.all_reduce(flag)
    return bool(flag > 0)


@torch.no_grad()
def similarity(model: SpeechLLM, wave: np.ndarray, word_ids: list[list[int]]) -> np.ndarray:
    """Cosine similarities `(frames, words)` of adapter frames and words, each the mean of its tokens' embeddings."""
    training = model.training
    model.eval()
    try:
        frames = model.hear_one(wave)
    finally:
        model.train(training)
    embedded = model.embed(torch.tensor([token for ids in word_ids for token in ids], device=frames.device)).float()
    words = torch.stack([one.mean(0) for one in embedded.split([len(ids) for ids in word_ids])])
    return cosine_similarity(frames[:, None].float(), words[None], dim=-1).cpu().numpy()
