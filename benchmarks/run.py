"""How fast does this stack train, against what people would otherwise write? `python benchmarks/run.py [--out FOLDER]`

Every arm trains the same frozen LLM and encoder and the same adapter on the same shards, in a process of its own. They take
turns of a few steps, so that all of them see the same machine; the first turn is not counted. Reported: answer tokens learnt a
second, medians over turns, and ratios within a turn. No GPU needed; the arms of a suite run at the same time and take about
2 GB of memory each: name fewer where that is too much.

The first suite compares with others, the second this package with itself.

- `stack`: this package: loader, DeepSpeed engine, K = 4 tasks that share an utterance, packed rows, loss at answer positions
- `bare`: a plain PyTorch loop over the same packed tensors in the same order, made beforehand: what the framework itself costs
- `padded`: one task a sequence, padded, by the Hugging Face Trainer with DeepSpeed (SLAM-LLM, BLSP)
- `online_kl`: the same with a text LLM that reads the transcript in every step (Ultravox), against `stack_kl`, which learns
  from the stored teacher
- `stack_encoded`, `stack_kl_encoded`: this package with the encoder's output stored beforehand (`mtbi data encode`)
- `k1`, `k2`, `k4`, `k8`: this package with so many tasks an utterance (`k4` is `stack`)
- `k4_compiled`: with `model.compile=true`
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import measuring
import torch
from training import baselines, world

from launcher.distributed import build_collectives, start_distributed
from launcher.ranks import find_ranks
from mtbi.batches.batch import Batch
from mtbi.batches.loader import Loader
from mtbi.batches.plan import Plan
from mtbi.engine.engine import Engine
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.recipe import DataConfig, Recipe
from mtbi.shards.read import Shards

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS_A_TURN, SLOW = 2, ("padded", "online_kl")  #: these take half as many
BATCH, ACCUMULATE = 8, 6  # of the padded arms: about as many dialogues a step as the stack's


class Turns:
    """Lets an arm compute so many steps at a time, and tells how long they took."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.wait()

    def wait(self) -> None:
        """Until it is this arm's turn; ends the process where there is none any more."""
        if not (steps := self.pipe.recv()):
            os._exit(0)
        self.left, self.tokens, self.began = steps, 0, time.perf_counter()

    def done(self, answer_tokens: int) -> None:
        """One more step is done."""
        self.left, self.tokens = self.left - 1, self.tokens + answer_tokens
        if not self.left:
            self.pipe.send(self.tokens / (time.perf_counter() - self.began))
            self.wait()


Arm = Callable[[Callable[[], Turns]], None]  #: trains without end, in turns


def open_data(recipe: Recipe) -> tuple[Shards, Plan]:
    """The shards and their plan."""
    shards = Shards(recipe.data.shards)
    return shards, Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))


def stack(recipe: Recipe, zero: str, turns: Callable[[], Turns]) -> None:
    """This package."""
    ranks = find_ranks()
    device = start_distributed(ranks)
    shards, plan = open_data(recipe)
    engine = Engine(recipe, REPOSITORY / "ds_configs" / f"{zero}.json", len(shards.index.tasks), device, ranks.world, None)
    turn = turns()
    for number, step in enumerate(Loader(shards, plan)):
        engine.train_step(step, number, stop=False)
        turn.done(step.step.target_tokens)


def bare(recipe: Recipe, steps: int, turns: Callable[[], Turns]) -> None:
    """A plain loop over the tensors of so many steps."""
    shards, plan = open_data(recipe)
    prepared: list[tuple[int, float, list[Batch]]] = []
    for step in Loader(shards, plan):
        prepared.append((step.step.target_tokens, step.weight_total, list(step.micro_batches)))
        if len(prepared) == steps:
            break
    torch.manual_seed(recipe.seed)
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"), len(shards.index.tasks))
    parameters = list(model.trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    turn = turns()
    while True:
        for tokens, weight, batches in prepared:
            for batch in batches:
                (model(batch).loss / weight).backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.train.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            turn.done(tokens)


def padded(recipe: Recipe, kind: type[baselines.Padded], turns: Callable[[], Turns]) -> None:
    """The Hugging Face Trainer."""
    shards = Shards(recipe.data.shards)
    torch.manual_seed(recipe.seed)
    model = build_speech_llm(recipe.model, recipe.loss, torch.float32, torch.device("cpu"))
    model.llm.set_attn_implementation("sdpa")
    geometry = FrameGeometry.from_config(recipe.model)
    collate = baselines.Collator(geometry, shards.index.prefix_ids, kind is baselines.OnlineTeacher)
    find_ranks()
    build_collectives()
    dialogues = baselines.Dialogues(recipe.data.shards, len(shards), recipe.plan.tasks_per_utterance)
    turn = turns()
    baselines.train(kind(model), dialogues, collate, BATCH, ACCUMULATE, Path(recipe.run_dir), turn.done)


def suites(recipe: Recipe, encoded: Recipe, repeats: int) -> list[dict[str, Arm]]:
    """What is compared, in so many turns after the first; `encoded` has the encoder's output stored."""

    def having(tasks: int, data: DataConfig = recipe.data, compiled: bool = False, **loss: float) -> Recipe:
        return dataclasses.replace(
            recipe,
            data=data,
            model=dataclasses.replace(recipe.model, compile=compiled),
            plan=dataclasses.replace(recipe.plan, tasks_per_utterance=tasks),
            loss=dataclasses.replace(recipe.loss, **loss),
        )

    four, divergence = having(4, ce=1.0, kl=0.0), having(4, ce=0.0, kl=1.0)
    with_others = {
        "stack_zero3": partial(stack, four, "zero3"),
        "bare": partial(bare, four, STEPS_A_TURN * (repeats + 1)),
        "stack": partial(stack, four, "zero1"),
        "padded": partial(padded, four, baselines.Padded),
        "stack_encoded": partial(stack, having(4, encoded.data, ce=1.0, kl=0.0), "zero1"),
        "stack_kl": partial(stack, divergence, "zero1"),
        "online_kl": partial(padded, divergence, baselines.OnlineTeacher),
        "stack_kl_encoded": partial(stack, having(4, encoded.data, ce=0.0, kl=1.0), "zero1"),
    }
    with_itself = {f"k{tasks}": partial(stack, having(tasks, ce=1.0, kl=0.0), "zero1") for tasks in (1, 2, 4, 8)}
    with_itself["k4_compiled"] = partial(stack, having(4, compiled=True, ce=1.0, kl=0.0), "zero1")
    return [with_others, with_itself]


def work(arm: Arm, pipe: Connection) -> None:
    """The process of an arm."""
    logging.disable(logging.WARNING)
    arm(lambda: Turns(pipe))


def take_turns(chosen: dict[str, Arm], repeats: int) -> dict[str, list[float]]:
    """Answer tokens a second of each arm in each turn."""
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name, arm in chosen.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(arm, theirs)))
        processes[-1].start()
        theirs.close()
    found: dict[str, list[float]] = {name: [] for name in pipes}
    for turn in range(repeats + 1):
        for name, pipe in pipes.items():
            pipe.send(STEPS_A_TURN // 2 if name in SLOW else STEPS_A_TURN)
            speed = pipe.recv()
            if turn:
                found[name].append(round(speed, 1))
            print(f"turn {turn} {name}: {speed:.1f} answer tokens/s", file=sys.stderr, flush=True)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(0)
        process.join()
    return found


def ratio(found: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float] | None:
    """Median, least and most of a ratio within a turn; None where one of them did not run."""
    pairs = list(zip(found.get(ours, []), found.get(theirs, []), strict=False))
    ratios = [one / other for one, other in pairs]
    if not ratios:
        return None
    return {"median": round(statistics.median(ratios), 3), "least": round(min(ratios), 3), "most": round(max(ratios), 3)}


RATIOS = {
    "this stack / padded one-task sequences": ("stack", "padded"),
    "this stack / online teacher": ("stack_kl", "online_kl"),
    "this stack, stored encoder output / padded one-task sequences": ("stack_encoded", "padded"),
    "this stack, stored encoder output / online teacher": ("stack_kl_encoded", "online_kl"),
    "bare loop / this stack, ZeRO-1": ("bare", "stack"),
    "bare loop / this stack, ZeRO-3": ("bare", "stack_zero3"),
    "2 tasks an utterance / 1": ("k2", "k1"),
    "4 tasks an utterance / 1": ("k4", "k1"),
    "8 tasks an utterance / 1": ("k8", "k1"),
    "this stack, compiled / not compiled": ("k4_compiled", "k4"),
}


def render(record: dict) -> str:
    """The record as Markdown."""
    lines = [
        f"# Training speed, {record['date']}",
        "",
        f"`{record['command']}` on {record['hardware']}; "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f"; commit {record['commit']}. {record['setting']}",
        "",
        "| compared | median ratio | least | most |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | **{one['median']:.2f}** | {one['least']:.2f} | {one['most']:.2f} |"
        for name, one in record["ratios"].items()
    ]
    lines += ["", "| arm | answer tokens/s, median | turns |", "|---|---|---|"]
    lines += [
        f"| {name} | {statistics.median(speeds):.0f} | {', '.join(f'{speed:.0f}' for speed in speeds)} |"
        for name, speeds in record["answer_tokens_per_second"].items()
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for DATE.json and DATE.md")
    parser.add_argument("--arms", nargs="*", default=[], help="some of them (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="turns counted")
    parser.add_argument("--utterances", type=int, default=400, help="in the corpus")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = world.make(Path(folder), options.utterances)
        found: dict[str, list[float]] = {}
        for suite in suites(recipe, world.encode(recipe, Path(folder)), options.repeats):
            chosen = {name: arm for name, arm in suite.items() if name in (options.arms or suite)}
            found |= take_turns(chosen, options.repeats)
    compared = {name: ratio(found, *pair) for name, pair in RATIOS.items()}
    record = {
        **measuring.header("torch", "deepspeed", "transformers", "accelerate"),
        "setting": f"LLM {world.LLM}, encoder {world.ENCODER['encoder_layers']} layers of {world.ENCODER['d_model']}, float32, "
        f"{options.utterances} utterances of LibriSpeech-like lengths; padded batches of {BATCH}.",
        "ratios": {name: one for name, one in compared.items() if one},
        "answer_tokens_per_second": found,
    }
    print(render(record))
    if options.out:
        measuring.save(record, options.out)
        (options.out / f"{record['date']}.md").write_text(render(record))


if __name__ == "__main__":
    main()
