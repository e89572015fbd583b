"""The evaluation inside a run: loss and agreement on held-out prompts without generation, and a few dialogues with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import numpy as np
import torch

from mtbi.data.loader import Loader
from mtbi.data.plan import Geometry, Plan
from mtbi.data.shards import Shards
from mtbi.engine.engine import Engine
from mtbi.engine.metrics import Metrics
from mtbi.model.generate import generate
from mtbi.recipe import Recipe
from mtbi.tasks.chat import ChatFormat


class Evaluation:
    """One epoch of the evaluation shards, as sound, with every stored dialogue."""

    def __init__(self, recipe: Recipe, geometry: Geometry, chat: ChatFormat, shards: Shards, rank: int, world: int) -> None:
        plain = replace(recipe.interleave, share=0.0)
        packing = replace(recipe.plan, tasks=[], hours=0.0, tasks_per_utterance=0, passes_per_epoch=1)
        self.recipe = replace(recipe, interleave=plain, plan=packing, loss=replace(recipe.loss, task_weights={}))
        self.shards, self.chat, self.rank, self.world = shards, chat, rank, world
        self.plan = Plan(shards.index, self.recipe, geometry)

    def run(self, engine: Engine, metrics: Metrics, step: int, doing: Callable[[], None] = lambda: None) -> float:
        """Returns the share of answer tokens on which the speech LLM, given the answer so far, agrees with the text LLM.

        `doing` is called now and then, for a watchdog.
        """
        loss = weight = hits = count = 0.0
        utterances = 0
        rows, data = self.recipe.plan.rows_per_micro_batch, self.recipe.data
        with Loader(self.shards, self.plan, self.rank, self.world, rows, data.workers, data.prefetch) as loader:
            for loaded in takewhile(lambda one: one.position.epoch == 0, loader):
                doing()
                sums = engine.evaluate_step(loaded)
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
        self.show_dialogues(engine, metrics, step)
        return agreement

    def show_dialogues(self, engine: Engine, metrics: Metrics, step: int) -> None:
        """A few dialogues, the same at every evaluation; all processes generate them together, as ZeRO-3 needs."""
        for place in range(min(self.recipe.train.sample_dialogues, len(self.shards))):
            sample = self.shards[place]
            stored = sample.behaviours[place % len(sample.behaviours)]
            prompt: list[torch.Tensor | np.ndarray] = [
                torch.tensor(self.chat.prefix_ids),
                sample.waveform,
                torch.tensor(stored.prompt_ids),
            ]
            (ids,) = generate(engine.model, [prompt], len(stored.answer_ids) + 8, self.chat.end_id)
            answer = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
            said = {"heard": sample.text, "asked": stored.prompt, "speech LLM": answer, "text LLM": stored.answer}
            text = "  \n".join(f"**{who}** {what}" for who, what in said.items())
            metrics.dialogue(place, text, sample.waveform, step)
