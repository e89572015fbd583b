"""Trains and measures a speech LLM on real speech, from corpora to a report: `make real SPEECH='FOLDER …'`.

Every stage is an `mtbi` command that is printed before it runs. A stage whose result exists is skipped, so a second start goes
on where the first one stopped. Evaluation uses speakers that training never heard: those of the folders after `--held-out`, or
a share of all speakers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mtbi import recipe as recipes
from mtbi.answers import task_library
from mtbi.corpus.manifest import Utterance, read_manifest, relocate, write_manifest
from mtbi.engine import checkpoint
from mtbi.errors import UserError
from mtbi.metrics import SCORERS
from mtbi.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[1]
HELD_OUT_SHARE = 0.1  #: of the speakers, where no folder is held out
EVALUATION_UTTERANCES = 100  #: of held-out speakers: enough for intervals, and hours less on a CPU than all


@dataclass(frozen=True)
class Stage:
    """One step of the run."""

    title: str
    run: list[str] | Callable[[], None]  #: a command, or a function of this file
    is_done: Callable[[], bool]


def evaluation(recipe: Recipe) -> dict[str, list[str]]:
    """What the text LLM is asked about the evaluation's utterances, by the name of the shards.

    `transcription` asks the tasks that repeat the speech. `tasks` also asks the tasks, wordings and formats that training
    leaves out.
    """
    tasks = task_library.load(recipe.behaviour.library).values()
    repeating = [task.name for task in tasks if SCORERS[task.scorer].repeats and "/" not in task.name]
    asked = {"tasks": ["behaviour.tasks=['*']", "behaviour.wordings=all", "behaviour.per_utterance=6"]}
    if repeating:
        asked["transcription"] = [f"behaviour.tasks=[{','.join(repeating)}]", "behaviour.wordings=all"]
    return asked


@dataclass(frozen=True)
class Plan:
    """What is run, and where."""

    speech: list[Path]  #: folders of recordings with transcripts
    held_out: list[Path]  #: folders whose speakers are for the evaluation
    out: Path
    recipe_name: str
    overrides: list[str]  #: of the recipe
    recipe: Recipe
    aligner: str
    processes: int

    @property
    def names(self) -> dict[str, Path]:
        """The corpora by the names of their folders in `out`."""
        folders = [folder.resolve() for folder in [*self.speech, *self.held_out]]
        return {f"{number:02d}-{folder.name}": folder for number, folder in enumerate(folders)}

    @property
    def settings(self) -> list[str]:
        """The recipe and its overrides, for a command."""
        return ["--recipe", self.recipe_name, *self.overrides]

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.out / "run"


def mtbi(*words: object) -> list[str]:
    """An `mtbi` command."""
    return ["mtbi", *map(str, words)]


def stages(plan: Plan) -> Iterator[Stage]:
    """Every stage, in order."""
    for name, source in plan.names.items():
        manifest = plan.out / name / "manifest.jsonl"
        kind, path = layout(source)
        words = mtbi("data", "import", kind, path, manifest.parent, "--text-style", "sentence")
        yield Stage(f"import {name}", words, manifest.exists)
    train, test = plan.out / "train", plan.out / "eval"
    yield Stage("split by speaker", lambda: split(plan), (test / "manifest.jsonl").exists)
    aligned = train / "aligned.jsonl"
    words = mtbi("data", "align", train / "manifest.jsonl", aligned, "--model", plan.aligner)
    yield Stage("word times", words, aligned.exists)
    yield from shards(plan, train, aligned)
    items = test / "instructions.jsonl"
    yield Stage("instructions", mtbi("tasks", "items", test / "manifest.jsonl", items), items.exists)
    for name, questions in evaluation(plan.recipe).items():
        yield from shards(plan, test / name, test / "manifest.jsonl", *questions)
    yield from after_data(plan, train, test, items)


def shards(plan: Plan, folder: Path, manifest: Path, *questions: str) -> Iterator[Stage]:
    """The text LLM's answers about a manifest, and shards with them."""
    words = mtbi("behave", manifest, folder / "behaviour", *plan.settings, *questions)
    yield Stage(f"the text LLM's answers ({folder.name})", words, (folder / "behaviour" / "done").exists)
    words = mtbi("data", "shard", manifest, folder / "behaviour", folder / "shards", *plan.settings)
    yield Stage(f"shards ({folder.name})", words, (folder / "shards" / "mtbi_index.json").exists)


def after_data(plan: Plan, train: Path, test: Path, items: Path) -> Iterator[Stage]:
    """Training, evaluation and export. The last checkpoint is measured: the best one was chosen on the same speakers."""
    groups = {name: test / name / "shards" for name in evaluation(plan.recipe)}
    measured = [*(f"{name}={path}" for name, path in groups.items()), items]
    words = [
        "deepspeed", "--num_accelerators", str(plan.processes), "--no_local_rank", "mtbi/train.py",
        "--deepspeed", "ds_configs/zero1.json", *plan.settings, f"run_dir={plan.run_dir}",
        f"data.shards=[{train / 'shards'}]", f"data.eval_shards=[{','.join(map(str, groups.values()))}]",
    ]  # fmt: skip
    last = checkpoint.folder_of(plan.run_dir, plan.recipe.train.steps)
    yield Stage("train", words, last.exists)
    words = mtbi(
        "evaluate", plan.run_dir, "--checkpoint", "latest", "--shards", *measured,
        "--dialogues", 0, "--no-prompt-first", "--recogniser", plan.aligner,
    )  # fmt: skip
    yield Stage("evaluate", words, (plan.run_dir / "evaluation" / last.name / "report.json").exists)
    words = mtbi("export", plan.run_dir, plan.out / "exported", "--checkpoint", "latest")
    yield Stage("export", words, (plan.out / "exported" / "README.md").exists)


def layout(folder: Path) -> tuple[str, Path]:
    """The importer of a folder, and what it reads (`mtbi data import --help`)."""
    if (folder / "manifest.jsonl").is_file():
        return "jsonl", folder / "manifest.jsonl"
    if (folder / "wav.scp").is_file():
        return "kaldi", folder
    if (folder / "validated.tsv").is_file() or (folder / "train.tsv").is_file():
        return "commonvoice", folder
    return ("librispeech" if next(folder.rglob("*.trans.txt"), None) else "folder"), folder


def split(plan: Plan) -> None:
    """Write one manifest for training and one for evaluation, without a common speaker."""
    held_out = {folder.resolve() for folder in plan.held_out}
    corpora = {name: read_manifest(plan.out / name / "manifest.jsonl") for name in plan.names}
    everybody = sorted({speaker(utterance) for listed in corpora.values() for utterance in listed}, key=digest)
    tested = {speaker(utterance) for name, folder in plan.names.items() if folder in held_out for utterance in corpora[name]}
    tested = tested or set(everybody[: max(1, round(HELD_OUT_SHARE * len(everybody)))])
    rows = [(name, utterance, plan.names[name] in held_out) for name, listed in corpora.items() for utterance in listed]
    train = [(name, utterance) for name, utterance, is_held_out in rows if speaker(utterance) not in tested and not is_held_out]
    test = [
        (name, utterance)
        for name, utterance, is_held_out in rows
        if speaker(utterance) in tested and is_held_out == bool(held_out)
    ]
    if not train or not test:
        raise UserError(f"{len(train)} utterances are left for training and {len(test)} for evaluation: name more speech")
    test = sorted(test, key=lambda row: digest(row[1].id))[:EVALUATION_UTTERANCES]
    print(f"training: {len(train)} utterances; evaluation: {len(test)} utterances of {len(tested)} other speakers")
    for part, chosen in (("train", train), ("eval", test)):  # the one that marks the stage as done is written last
        folder = plan.out / part
        folder.mkdir(exist_ok=True)
        write_manifest(folder / "manifest.jsonl", [relocate(utterance, plan.out / name, folder) for name, utterance in chosen])


def speaker(utterance: Utterance) -> str:
    """The speaker of an utterance. One without a speaker is a speaker of its own."""
    return utterance.speaker or f"utterance {utterance.id}"


def digest(text: str) -> str:
    """A key for an order that looks random, and is always the same."""
    return hashlib.sha256(text.encode()).hexdigest()


def run_stage(stage: Stage) -> None:
    """Run a stage unless it is done. Raises UserError where its command fails."""
    if stage.is_done():
        print(f"# {stage.title}: done already", flush=True)
        return
    if callable(stage.run):
        print(f"# {stage.title}", flush=True)
        stage.run()
        return
    print(f"# {stage.title}\n$ {shlex.join(stage.run)}", flush=True)
    command = [sys.executable, "-m", "mtbi.cli", *stage.run[1:]]
    if stage.run[0] == "deepspeed":
        command = [str(Path(sys.executable).with_name("deepspeed")), *stage.run[1:]]
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    programs = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": ":".join(paths)}
    status = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
    if status:
        raise UserError(f"{stage.title}: ended with status {status}. The same command goes on from here.")


def parse(arguments: list[str] | None) -> tuple[Plan, bool]:
    """The plan of a command line, and whether its commands are only listed. Raises UserError for a wrong folder or recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", nargs="+", type=Path, help="folders of recordings with transcripts, in any layout of import")
    parser.add_argument("--held-out", nargs="*", default=[], type=Path, help="folders of other speakers, for the evaluation")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder for data, run and report")
    parser.add_argument("--recipe", default="whisper-tiny.en_smollm2-135m")
    parser.add_argument("--llm", default="", help="another text LLM: a name or a folder")
    parser.add_argument("--encoder", default="", help="another Whisper: a name or a folder")
    parser.add_argument("--aligner", default="", help="model that finds word times and transcribes (default: the encoder)")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="change fields of the recipe")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    options = parser.parse_args(arguments)
    for folder in [*options.speech, *options.held_out]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    chosen = {"model.llm": options.llm, "model.encoder.path": options.encoder}
    overrides = [*(f"{key}={value}" for key, value in chosen.items() if value), *options.set]
    recipe = recipes.load(options.recipe, overrides)
    aligner = options.aligner or recipe.model.encoder.path
    out = options.out.resolve()
    plan = Plan(options.speech, options.held_out, out, options.recipe, overrides, recipe, aligner, processes())
    return plan, options.list


def processes() -> int:
    """One process a GPU, or two on a CPU with more cores than one."""
    import torch

    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)


def main(arguments: list[str] | None = None) -> int:
    """Run all stages, or list them. Returns the exit status."""
    try:
        plan, list_only = parse(arguments)
        for stage in stages(plan):
            if list_only:
                print(f"# {stage.title}" if callable(stage.run) else shlex.join(stage.run))
            else:
                run_stage(stage)
    except UserError as error:
        print(f"real: {error}", file=sys.stderr)
        return 2
    if not list_only:
        print(f"\nThe report: {plan.run_dir}/evaluation   Talk to it: mtbi chat {plan.run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
