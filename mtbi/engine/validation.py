"""The evaluation during training: loss and agreement on held-out dialogues, and a few generated answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import takewhile

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from launcher.ranks import Ranks
from mtbi import text_units
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Geometry, Group, Plan
from mtbi.engine.agreement import attempt, settle
from mtbi.engine.engine import Engine
from mtbi.engine.log import Metrics, by_name
from mtbi.engine.sums import Means, add
from mtbi.errors import ElsewhereError
from mtbi.llm.chat_format import ChatFormat
from mtbi.model.generate import generate
from mtbi.model.speech_llm import SpeechLLMModule
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards

SHOWN_WORDS = 40  #: of an utterance in the picture of its alignment, so that it fits a screen


class Evaluation:
    """Evaluates on one epoch of the evaluation shards, without interleaving, with every stored dialogue."""

    def __init__(self, recipe: Recipe, geometry: Geometry, chat: ChatFormat, shards: Shards, ranks: Ranks) -> None:
        plain = replace(recipe.interleave, share=0.0)
        packing = replace(recipe.plan, tasks=[], hours=0.0, tasks_per_utterance=0, passes_per_epoch=1)
        loss, data = replace(recipe.loss, task_weights={}), replace(recipe.data, weights={})
        self.recipe = replace(recipe, interleave=plain, plan=packing, loss=loss, data=data)
        self.shards, self.chat, self.ranks = shards, chat, ranks
        self.failure: Exception | None = None  #: why the last evaluation was given up; set on all processes at the same time
        self.plan = Plan(shards.index, self.recipe, geometry)

    def run(self, engine: Engine, metrics: Metrics, step: int, report_activity: Callable[[], None] = lambda: None) -> float:
        """Returns the agreement: the share of answer tokens that are the speech LLM's top-1, given the answer's earlier tokens.

        If a process cannot read its data, `failure` is set on all processes. `report_activity` is called now and then, for the
        watchdog.
        """
        means: Means = {"loss": torch.zeros(2), "task_agreement": torch.zeros(2, 1)}
        utterances = 0
        rows, data = self.recipe.plan.rows_per_micro_batch, self.recipe.data
        with Loader(
            self.shards, self.plan, self.ranks.rank, self.ranks.world, rows, data.workers, data.prefetch, device=engine.device
        ) as loader:
            for loaded in takewhile(lambda step: step.position.epoch == 0, loader):
                report_activity()
                sums = engine.evaluate_step(loaded)
                if sums.failed:
                    self.failure = loader.failure or ElsewhereError()
                    return 0.0
                means = add(means, sums.means)
                utterances += sum(len(row.groups) for row in loaded.step.rows)
                if utterances >= self.recipe.train.eval_utterances:
                    break
        names = self.shards.index.source_names if len(self.shards.index.origins) > 1 else []
        of_source = {
            **by_name("eval_source_loss", means.get("source_loss", torch.zeros(2, 0)), names),
            **by_name("eval_source_agreement", means.get("source_agreement", torch.zeros(2, 0)), names),
        }
        hits, count = means["task_agreement"].sum(1).tolist()
        agreement = hits / max(count, 1)
        losses = {f"eval/{name}": float(mean[0] / mean[1].clamp(min=1e-9)) for name, mean in means.items() if mean.dim() == 1}
        metrics.scalars({**losses, "eval/agreement": agreement, **of_source}, step)
        metrics.write_line(
            f"eval at step {step}: loss {losses['eval/loss']:.4f}, agreement {agreement:.2%} of {count:.0f} answer tokens"
        )
        for name in names:
            if (loss := of_source.get(f"eval_source_loss/{name}")) is not None:
                metrics.write_line(f"  {name}: loss {loss:.4f}, agreement {of_source[f'eval_source_agreement/{name}']:.2%}")
        report_activity()
        self.show_dialogues(engine.model, metrics, step)
        return agreement

    @cached_property
    def shown(self) -> list[Group]:
        """The utterances whose dialogues are shown: the first of the plan's first window, in the order of the shards.

        The plan leaves out utterances that are too long for the encoder. Encoded shards have no audio to show.
        """
        if self.shards.index.encoded or not self.recipe.train.sample_dialogues:
            return []
        groups = {group.utterance: group for row in self.plan.window_rows(0, 0) for group in row.groups if group.samples}
        return [groups[utterance] for utterance in sorted(groups)][: self.recipe.train.sample_dialogues]

    def show_dialogues(self, model: SpeechLLMModule, metrics: Metrics, step: int) -> None:
        """Write a few dialogues and alignments to TensorBoard, the same ones at every evaluation.

        All processes generate them together, as ZeRO-3 requires. If a process cannot read them, `failure` is set on all.
        """
        read = attempt(lambda: [self.shards[group.utterance] for group in self.shown])
        try:
            samples = settle(self.ranks, read)
        except Exception as error:
            self.failure = error
            return
        for index, (group, sample) in enumerate(zip(self.shown, samples, strict=True)):
            stored = sample.behaviours[sorted(group.branches)[index % len(group.branches)]]
            prompt: list[torch.Tensor | np.ndarray] = [
                torch.tensor([*self.chat.prefix_ids, *stored.before_speech_ids, *sample.heard.before]),
                sample.waveform,
                torch.tensor([*sample.heard.after, *stored.prompt_ids]),
            ]
            (ids,) = generate(model, [prompt], len(stored.answer_ids) + 8, self.chat.end_id)
            answer = self.chat.decode(ids)
            parts = {"transcript": sample.text, "prompt": stored.prompt, "speech LLM": answer, "text LLM": stored.answer}
            text = "  \n".join(f"**{title}** {part}" for title, part in parts.items())
            metrics.dialogue(index, text, sample.waveform, step)
            if self.plan.geometry.follows_time and (
                word_ids := self.chat.word_ids(text_units.units(sample.text)[:SHOWN_WORDS])
            ):
                similar = similarity(model, sample.waveform, word_ids)
                words = [self.chat.tokenizer.decode(ids).strip() for ids in word_ids]
                metrics.alignment(index, similar, words, len(sample.waveform) / SAMPLE_RATE / len(similar), step)


@torch.no_grad()
def similarity(model: SpeechLLMModule, wave: np.ndarray, word_ids: list[list[int]]) -> np.ndarray:
    """Cosine similarities `(frames, words)` between adapter frames and words. A word is the mean of its tokens' embeddings."""
    training = model.training
    model.eval()
    try:
        frames = model.encode_waveform(wave)
    finally:
        model.train(training)
    embedded = model.embed(torch.tensor([token for ids in word_ids for token in ids], device=frames.device)).float()
    words = torch.stack([word.mean(0) for word in embedded.split([len(ids) for ids in word_ids])])
    return cosine_similarity(frames[:, None].float(), words[None], dim=-1).cpu().numpy()
