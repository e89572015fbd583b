"""`mtbi demo`: the whole way from recordings to a speech LLM, in the miniature world.

Each step leaves its result in a folder of its own under RUN/data and is skipped when that folder is complete, so a
second run starts where the first one stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import mtbi
from mtbi import recipe as recipes
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM
from mtbi.corpus import align, importers
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.demo import corpus, world
from mtbi.demo.encoder import DemoAligner
from mtbi.demo.speech import speak_digits
from mtbi.errors import UserError
from mtbi.llm.chat_format import read_chat
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards import shards

if TYPE_CHECKING:
    from mtbi.benchmark.run import Report
    from mtbi.use.open_run import TrainedRun

TEST_PARTS = ("test_known", "test_unseen")
REPOSITORY = Path(mtbi.__file__).parents[1]
DIALOGUES = 3200  # of each test part, for the evaluation


def questions(part: str, config: BehaviourConfig) -> BehaviourConfig:
    """Which tasks and wordings the text LLM is asked about a part of the corpus.

    Training hears only the training tasks in their training wordings; `dev`, which picks the best checkpoint, only the
    training tasks in held-out wordings; the test parts hear everything, also training tasks that ask for the
    answer in another format.
    """
    trained = list(world.TRAINED_TASKS)
    if part == "train":
        return dataclasses.replace(config, tasks=trained, wordings="train", per_utterance=5)
    if part == "dev":
        return dataclasses.replace(config, tasks=trained, wordings="heldout", per_utterance=4)
    everything = [*trained, *world.UNSEEN_TASKS, *(f"{task}/*" for task in trained if f"{task}/french" in world.FORMATS)]
    return dataclasses.replace(config, tasks=everything, wordings="all", per_utterance=8)


def remember_source(data: Path, speech: Path | None) -> None:
    """Refuse to mix recordings of two sources in one run folder."""
    note = data / "source.json"
    source = {"recordings": str(speech.resolve()) if speech else "espeak-ng"}
    if note.exists() and json.loads(note.read_text()) != source:
        made_from = json.loads(note.read_text())["recordings"]
        raise UserError(
            f"{data} was made from {made_from}, not from {source['recordings']}: name another folder (run_dir=…), or delete it."
        )
    data.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(source) + "\n")


def import_digits(data: Path, speech: Path | None) -> Path:
    """The folder with the manifest of single digits."""
    digits = data / "digits"
    if not (digits / "manifest.jsonl").exists():
        if speech is None:
            speak_digits(data / "espeak", voices=13, recordings=8, seed=1)
        print(importers.import_corpus("fsdd", speech or data / "espeak", digits))
    return digits


def prepare_part(part: corpus.Part, data: Path, digits: Path, recipe: Recipe) -> Path:
    """Strings, word times, the text LLM's answers and shards of one part; returns the folder of shards."""
    folder = data / part.name
    if (folder / "shards" / shards.INDEX_NAME).exists():
        return folder / "shards"
    manifest, aligned = folder / "manifest.jsonl", folder / "aligned.jsonl"
    if not manifest.exists():
        corpus.make_part(part, digits, folder)
    if not aligned.exists():
        write_manifest(aligned, align.align(read_manifest(manifest), folder, DemoAligner()))
    utterances = read_manifest(aligned)
    answer(utterances, folder, questions(part.name, recipe.behaviour), recipe, folder)
    return folder / "shards"


def answer(utterances: list[Utterance], audio: Path, config: BehaviourConfig, recipe: Recipe, folder: Path) -> None:
    """The text LLM's answers about utterances, and shards with them, in a folder."""
    chat = read_chat(recipe)
    ask_unanswered(utterances, config, build_teacher(recipe.model, config), chat, folder / "behaviour", seed=recipe.seed)
    shards.write(utterances, audio, AnswerStore(folder / "behaviour"), chat, str(folder / "shards"))


def prepare(recipe: Recipe, speech: Path | None) -> Path:
    """Everything that training and evaluation read; returns its folder."""
    data = Path(recipe.run_dir) / "data"
    remember_source(data, speech)
    digits = import_digits(data, speech)
    for part in corpus.PARTS:
        prepare_part(part, data, digits, recipe)
    return data


def train(recipe: Recipe, overrides: list[str], processes: int = 2) -> None:
    """Run `deepspeed mtbi/train.py` on all GPUs, or on `processes` processes of the CPU."""
    count = torch.cuda.device_count() or processes
    command = [
        str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(count), "--no_local_rank",
        "mtbi/train.py", "--deepspeed", "ds_configs/zero3.json", "--recipe", "demo",
        f"run_dir={recipe.run_dir}", *(override for override in overrides if not override.startswith("run_dir=")),
    ]  # fmt: skip
    print("$", " ".join(["deepspeed", *command[1:]]), flush=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    status = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
    if status:
        raise UserError(
            f"Training ended with status {status}; see the messages above. `make demo` goes on from the newest checkpoint."
        )


def show_example(run: TrainedRun, report: Report) -> None:
    """One dialogue of an unseen task about held-out speech, and how to go on."""
    known = [d for d in report.dialogues if d.group == "test_known"]
    example = next((d for d in known if d.task in world.UNSEEN_TASKS and len(d.transcript.split()) > 3), known[0])
    sound = run.folder / "data" / "test_known" / "audio" / f"{example.utterance}.flac"
    print(f"\nA task that speech training never showed ({example.task}), about a recording held out ({sound}):")
    print(f"  said        {example.transcript}\n  asked       {example.prompt}")
    print(f"  speech LLM  {example.answers[SPEECH]}\n  text LLM    {example.answers[TEXT_LLM]}   (reading the transcript)")
    print(f'\nAsk it yourself:  .venv/bin/mtbi chat {run.folder} --audio {sound} "say it backwards"')
    print(f"See the curves:   .venv/bin/tensorboard --logdir {run.folder}/tensorboard")


def run(speech: Path | None, overrides: list[str], prepare_only: bool = False, dialogues: int = DIALOGUES) -> None:
    """Prepare, train, evaluate with about so many dialogues of each test part, and show one."""
    recipe = recipes.load("demo", overrides)
    data = prepare(recipe, speech)
    if prepare_only:
        return
    train(recipe, overrides)
    from mtbi.benchmark.run import Settings, evaluate, load
    from mtbi.use.open_run import open_run

    trained = open_run(recipe.run_dir, "best")
    places = {part: str(data / part / "shards") for part in TEST_PARTS}
    report = load(trained)
    if report is None or {cell.group for cell in report.cells} != set(places):
        report = evaluate(trained, Settings(places, dialogues=dialogues, batch_size=256, transcribe=DemoAligner().transcribe))
    print(f"\n{report}\n\nEvery task and answer: {report.folder}")
    show_example(trained, report)
