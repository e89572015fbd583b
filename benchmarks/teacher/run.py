"""Is the stored teacher the teacher? `python benchmarks/teacher/run.py RUN [--out FOLDER]` prints JSON.

Takes a trained run and its training shards. For some utterances the text LLM reads the transcript again, as an online teacher
would in every step, and the gradient of the divergence from its whole distribution is held against that from the k likeliest
tokens that are stored, for several k. Also: what the stored numbers differ by, the probability outside the k, and bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import header, save

from mtbi.batches.batch import build
from mtbi.batches.plan import Plan
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.losses.imitation import teacher_divergence
from mtbi.shards.read import Shards
from mtbi.shards.record import StoredUtterance
from mtbi.use.open_run import TrainedRun, open_run


@torch.no_grad()
def online(run: TrainedRun, sample: StoredUtterance, branches: tuple[int, ...]) -> Tensor:
    """`(answer tokens, vocabulary)` logits of the text LLM that reads the transcript."""
    logits = []
    for number in branches:
        asked = sample.behaviours[number]
        words = [int(i) for i in np.concatenate(sample.word_ids)]
        before = [*run.chat.prefix_ids, *words, *asked.after_speech_ids]
        ids = torch.tensor([[*before, *asked.answer_ids]])
        logits.append(run.model.llm(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1].float())
    return torch.cat(logits)


def compare(run: TrainedRun, utterances: int, tops: list[int]) -> dict:
    """Everything measured."""
    recipe = replace(run.recipe, interleave=replace(run.recipe.interleave, share=0.0))
    recipe.plan = replace(recipe.plan, utterances_per_row=1)
    shards = Shards(recipe.data.shards)
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    rows = list(islice((row for step in plan.steps() for row in step.rows if row.groups), utterances))
    run.model.head.tasks = len(shards.index.tasks)
    parameters = list(run.model.trainable_parameters().values())
    gradients: dict[int | str, Tensor] = {}
    outside, hidden = dict.fromkeys(tops, 0.0), []
    likeliest = tokens = 0
    largest = 0.0
    run.model.head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    for row in rows:
        batch, [group] = build([row], shards.__getitem__, plan), row.groups
        teacher = online(run, shards[group.utterance], group.branches)
        run.model(batch)
        logits = run.model.head.logits(hidden.pop())
        shares = teacher.log_softmax(-1)
        losses: dict[int | str, Tensor] = {
            "online": functional.kl_div(logits.log_softmax(-1), shares, reduction="sum", log_target=True)
        }
        for k in tops:
            ids, logprobs = batch.teacher_ids[:, :k], batch.teacher_logprobs[:, :k]
            losses[k] = teacher_divergence(logits.clone(), ids, logprobs).sum()
            outside[k] += float((1 - logprobs.exp().sum(-1)).clamp(min=0).sum())
        for name, loss in losses.items():
            found = torch.autograd.grad(loss, parameters, retain_graph=True)
            flat = torch.cat([one.flatten() for one in found])
            gradients[name] = gradients.get(name, 0) + flat
        used = batch.teacher_logprobs > np.log(1e-4)
        largest = max(largest, float((batch.teacher_logprobs - shares.gather(1, batch.teacher_ids))[used].abs().max()))
        likeliest += int((teacher.argmax(-1) == batch.teacher_ids[:, 0]).sum())
        tokens += len(batch.target_ids)
    whole = gradients["online"]
    return {
        "utterances": len(rows),
        "answer_tokens": tokens,
        "same_likeliest_token": likeliest / tokens,
        "largest_difference_of_log_probabilities_above_1e-4": round(largest, 5),
        "by_k": {
            k: {
                "gradient_relative_difference": float(f"{(gradients[k] - whole).norm() / whole.norm():.2g}"),
                "mean_probability_outside": float(f"{outside[k] / tokens:.2g}"),
                "bytes_an_answer_token": 6 * k,
            }
            for k in tops
        },
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a trained run")
    parser.add_argument("--which", default="latest", help="checkpoint (default: latest)")
    parser.add_argument("--utterances", type=int, default=64)
    parser.add_argument("--out", type=Path, help="folder for DATE.json")
    options = parser.parse_args()
    run = open_run(options.run, options.which, "cpu")
    stored = Shards(run.recipe.data.shards).index.top_k
    tops = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= stored]
    record = {
        **header("torch", "transformers"),
        "llm": run.recipe.model.llm,
        "vocabulary": run.model.llm.config.vocab_size,
        **compare(run, options.utterances, tops),
    }
    print(json.dumps(record, indent=1))
    if options.out:
        save(record, options.out)


if __name__ == "__main__":
    main()
