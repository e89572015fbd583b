"""`mtbi behave` and `mtbi tasks`: the text LLM's answers about transcripts, and the tasks that it is asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mtbi.cli.arguments import Group, Options, add_command, add_json, add_recipe, add_slice, chosen_slice, print_json


def add_behave(commands: Group) -> None:
    """`mtbi behave`."""
    command = add_command(
        commands,
        "behave",
        run_behave,
        "mtbi behave work/train/aligned.jsonl work/train/behaviour --recipe whisper-large-v3_qwen3-8b",
        "mtbi behave aligned.jsonl answers 'behaviour.library=[my_tasks.yaml]' behaviour.per_utterance=4",
    )
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="folder for the answers; a killed command continues from it")
    add_slice(command)
    add_recipe(command)


def run_behave(options: Options) -> None:
    """Ask the text LLM every chosen task about each transcript. Its arithmetic is that of the recipe's `precision`."""
    from mtbi import recipe as recipes
    from mtbi.answers import questions
    from mtbi.answers.ask import ask_unanswered
    from mtbi.answers.teacher import build_teacher
    from mtbi.corpus import manifest
    from mtbi.llm.chat_format import read_chat

    recipe = recipes.load(options.recipe, options.overrides)
    part, chat, out = chosen_slice(options), read_chat(recipe), options.out
    utterances = manifest.read_manifest(options.manifest, part)
    tasks = questions.chosen_tasks(recipe.behaviour)
    every = (found for found in manifest.each_line(options.manifest) if isinstance(found, manifest.Utterance))
    fields = questions.fields_in(tasks, recipe.behaviour, every)
    if part:
        out = out / str(part)
    teacher = build_teacher(recipe.model, recipe.behaviour, recipe.precision)
    ask_unanswered(utterances, recipe.behaviour, teacher, chat, out, recipe.seed, fields)
    print(f"{out}: answers about {len(utterances)} utterances")
    for (task, name), count in questions.count_lacking(utterances, tasks, recipe.behaviour, fields).items():
        print(f"  {task}: {count} utterances have no {name}, so they are not asked in wordings with {{{name}}}")
    if recipe.behaviour.filter:
        print_left_out(out)


def print_left_out(folder: Path) -> None:
    """Print how many answers of a folder, or of one of its parts, training may not use, by task and reason."""
    from mtbi.answers.store import AnswerStore

    answers = AnswerStore(folder)
    for (task, reason), count in sorted(answers.left_out.items()):
        print(f"  {task}: {count} of {count_of(answers.kept, answers.left_out, task)} answers left out: {reason}")


def count_of(kept: Counter[str], left_out: Counter[tuple[str, str]], task: str) -> int:
    """The number of a task's answers, kept or left out."""
    return kept[task] + sum(count for (name, _), count in left_out.items() if name == task)


def add_list(group: Group) -> None:
    """`mtbi tasks list`."""
    command = add_command(group, "list", run_list)
    command.add_argument("library", nargs="*", default=["digits", "content"], help="names of task libraries, or paths")
    command.add_argument("--wordings", action="store_true", help="print the wordings too (* = held out)")
    add_json(command)


def run_list(options: Options) -> None:
    """List tasks and their wordings."""
    from mtbi.answers import task_library

    tasks = [task for library in options.library for task in task_library.load([library]).values()]
    if options.json:
        print_json([asdict(task) for task in tasks])
        return
    for task in tasks:
        print(f"{task.name}: {task.description} ({len(task.train)} training wordings, {len(task.heldout)} held out)")
        if options.wordings:
            for wording in task.train:
                print(f"    {wording}")
            for wording in task.heldout:
                print(f"  * {wording}")


def add_try(group: Group) -> None:
    """`mtbi tasks try`."""
    command = add_command(
        group,
        "try",
        run_try,
        'mtbi tasks try "one two three" --task reverse --wordings',
        "mtbi tasks try \"one two three\" --task '*/french' --recipe demo 'behaviour.library=[my_tasks.yaml]'",
    )
    command.add_argument("sentence", help="what a speaker might say")
    command.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="a task or pattern; may be repeated (default: the recipe's)"
    )
    command.add_argument("--wordings", action="store_true", help="ask in every wording, also in held-out ones")
    add_recipe(command)


def run_try(options: Options) -> None:
    """Ask a recipe's text LLM tasks about one sentence, to see what would be imitated."""
    from mtbi import recipe as recipes
    from mtbi.answers import preview

    recipe = recipes.load(options.recipe, options.overrides)
    for answer in preview.ask(options.sentence, recipe, options.task, options.wordings):
        print(answer)


def add_measure(group: Group) -> None:
    """`mtbi tasks measure`."""
    command = add_command(
        group,
        "measure",
        run_measure,
        "mtbi tasks measure work/train/manifest.jsonl --recipe whisper-large-v3_qwen3-8b --utterances 32",
        "mtbi tasks measure manifest.jsonl --task 'sum*' --json 'behaviour.library=[my_tasks.yaml]' > measured.json",
    )
    command.add_argument("manifest", type=Path)
    command.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="a task or pattern; may be repeated (default: the recipe's)"
    )
    command.add_argument("--utterances", type=int, default=16, help="transcripts that are asked about (default: 16)")
    add_json(command)
    add_recipe(command)


def run_measure(options: Options) -> None:
    """Ask a recipe's text LLM tasks in all wordings about a sample of transcripts, and measure the answers."""
    from mtbi import recipe as recipes
    from mtbi.answers import measure
    from mtbi.corpus import manifest

    recipe = recipes.load(options.recipe, options.overrides)
    utterances = manifest.read_manifest(options.manifest)
    answers = measure.sample_answers(utterances, recipe, options.task, options.utterances)
    rows = measure.by_wording(answers)
    if options.json:
        print_json(measure.record(rows, answers))
    else:
        print(measure.render(rows))
