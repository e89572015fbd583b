"""`mtbi demo`: all steps from recordings to a speech LLM, in the miniature world.

Each step writes into a folder of its own under RUN/data. It is skipped when that folder is complete, so a second run starts
where the first one stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import mtbi
from mtbi import files
from mtbi import recipe as recipes
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.corpus import align, importers
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.demo import corpus, world
from mtbi.demo.encoder import DemoAligner
from mtbi.demo.speech import speak_digits
from mtbi.errors import UserError
from mtbi.llm.chat_format import read_chat
from mtbi.metrics import SPEECH, TEXT_LLM
from mtbi.recipe import BehaviourConfig, Recipe
from mtbi.shards.index import INDEX_NAME
from mtbi.shards.write import write_shards

if TYPE_CHECKING:
    from mtbi.benchmark.run import EvaluationReport
    from mtbi.use.open_run import TrainedRun

TEST_SPLITS = ("test_known", "test_unseen")
REPOSITORY = Path(mtbi.__file__).parents[1]
DIALOGUES = 3200  # of each test split, for the evaluation
TRAINING_STRINGS = 2000  # of the demo; the generalisation benchmark has twice as many


def questions(split: str, config: BehaviourConfig) -> BehaviourConfig:
    """Which tasks and wordings the text LLM is asked about a split of the corpus.

    `train` gets the training tasks in their training wordings. `dev`, which picks the best checkpoint, gets the training tasks
    in held-out wordings. The test splits get all tasks in all wordings, also training tasks that ask for the answer in another
    format.
    """
    trained = list(world.TRAINED_TASKS)
    if split == "train":
        return dataclasses.replace(config, tasks=trained, wordings="train", per_utterance=5)
    if split == "dev":
        return dataclasses.replace(config, tasks=trained, wordings="heldout", per_utterance=4)
    everything = [*trained, *world.UNSEEN_TASKS, *(f"{task}/*" for task in trained if f"{task}/french" in world.FORMATS)]
    return dataclasses.replace(config, tasks=everything, wordings="all", per_utterance=8)


def remember_source(data: Path, speech: Path | None) -> None:
    """Write down where the recordings come from. Raises UserError for a folder that was made from other recordings."""
    path = data / "source.json"
    source = {"recordings": str(speech.resolve()) if speech else "espeak-ng"}
    if path.exists() and json.loads(path.read_text()) != source:
        made_from = json.loads(path.read_text())["recordings"]
        raise UserError(
            f"{data} was made from {made_from}, not from {source['recordings']}: name another folder (run_dir=…), or delete it."
        )
    data.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(source) + "\n")


def import_digits(data: Path, speech: Path | None) -> Path:
    """The folder with the manifest of single digits."""
    digits = data / "digits"
    if not (digits / "manifest.jsonl").exists():
        if speech is None:
            speak_digits(data / "espeak", voices=13, recordings=8, seed=1)
        print(importers.import_corpus("fsdd", speech or data / "espeak", digits))
    return digits


def prepare_split(split: corpus.Split, data: Path, digits: Path, recipe: Recipe) -> Path:
    """Strings, word times, the text LLM's answers and shards of one split. Returns the folder of shards."""
    folder = data / split.name
    if (folder / "shards" / INDEX_NAME).exists():
        return folder / "shards"
    manifest, aligned = folder / "manifest.jsonl", folder / "aligned.jsonl"
    if not manifest.exists():
        corpus.make_split(split, digits, folder)
    if not aligned.exists():
        write_manifest(aligned, align.align(read_manifest(manifest), folder, DemoAligner()))
    utterances = read_manifest(aligned)
    answer(utterances, folder, questions(split.name, recipe.behaviour), recipe, folder)
    return folder / "shards"


def answer(utterances: list[Utterance], audio: Path, config: BehaviourConfig, recipe: Recipe, folder: Path) -> None:
    """Write the text LLM's answers about utterances, and shards with them, into a folder."""
    chat = read_chat(recipe)
    ask_unanswered(utterances, config, build_teacher(recipe.model, config), chat, folder / "behaviour", seed=recipe.seed)
    write_shards(utterances, audio, AnswerStore(folder / "behaviour"), chat, str(folder / "shards"))


def prepare(recipe: Recipe, speech: Path | None, splits: Sequence[corpus.Split] = corpus.SPLITS) -> Path:
    """Prepare all data that training and evaluation read. Returns their folder."""
    data = Path(recipe.run_dir) / "data"
    remember_source(data, speech)
    digits = import_digits(data, speech)
    for split in splits:
        prepare_split(split, data, digits, recipe)
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


def show_example(run: TrainedRun, report: EvaluationReport) -> None:
    """Print one dialogue of an unseen task about held-out speech, and the commands to go on with."""
    known = [d for d in report.dialogues if d.group == "test_known"]
    example = next((d for d in known if d.task in world.UNSEEN_TASKS and len(d.transcript.split()) > 3), known[0])
    sound = run.folder / "data" / "test_known" / "audio" / f"{example.utterance}.flac"
    print(f"\nA task that speech training never showed ({example.task}), about a recording held out ({sound}):")
    print(f"  said        {example.transcript}\n  asked       {example.prompt}")
    print(f"  speech LLM  {example.answers[SPEECH]}\n  text LLM    {example.answers[TEXT_LLM]}   (reading the transcript)")
    print(f'\nAsk it yourself:  .venv/bin/mtbi chat {run.folder} --audio {sound} "say it backwards"')
    print(f"See the curves:   .venv/bin/tensorboard --logdir {run.folder}/tensorboard")


def run(speech: Path | None, overrides: list[str], prepare_only: bool = False, dialogues: int = DIALOGUES) -> None:
    """Prepare, train, evaluate, and show one dialogue. `dialogues` is about how many of each test split are evaluated."""
    recipe = recipes.load("demo", overrides)
    train_split, *others = corpus.SPLITS
    data = prepare(recipe, speech, [dataclasses.replace(train_split, strings=TRAINING_STRINGS), *others])
    if prepare_only:
        return
    train(recipe, overrides)
    from mtbi.benchmark.run import Settings, evaluate, load
    from mtbi.use.open_run import open_run

    trained = open_run(recipe.run_dir, "best")
    shard_folders = {split: str(data / split / "shards") for split in TEST_SPLITS}
    report = load(trained)
    if report is None or {cell.group for cell in report.cells} != set(shard_folders):
        report = evaluate(trained, Settings(shard_folders, dialogues=dialogues, batch_size=256, recogniser="demo"))
    print(f"\n{report}\n\nEvery task and answer: {report.folder}")
    show_example(trained, report)
