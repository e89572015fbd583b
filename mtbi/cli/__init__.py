"""The `mtbi` command. Each subcommand is a function that imports what it uses, so that `mtbi --help` is quick.

A user's mistake is one message on standard error and status 2, without a traceback. With `--json`, standard output holds one
JSON document and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtbi.cli import completion
from mtbi.cli.arguments import Parser, above_zero, at_least, explain, parse
from mtbi.errors import UserError
from mtbi.versions import installed

Options = argparse.Namespace
EPILOG = """\
examples:
  mtbi demo
  mtbi data import librispeech /corpora/LibriSpeech/dev-clean work/dev
  mtbi plan whisper-large-v3_llama-3.1-8b --gpus 8 64
  mtbi chat runs/demo --audio question.wav "What does the speaker want?"

exit status:
  0    fine
  1    a check failed (doctor)
  2    a mistake in what was asked or given; the message says what to do
  130  interrupted

completion of commands, recipes and their fields by the Tab key: pip install 'mtbi[completion]', then
  eval "$(register-python-argcomplete mtbi)"                            # bash and zsh, in ~/.bashrc or ~/.zshrc
  register-python-argcomplete --shell fish mtbi | source                # fish, in ~/.config/fish/config.fish
"""


def as_json(record: Any) -> str:
    """The one document of a command with `--json`."""
    return json.dumps(record, indent=1, ensure_ascii=False)


def data_import(options: Options) -> None:
    """Make a checked manifest of a speech corpus."""
    from mtbi.corpus.importers import import_corpus

    summary = import_corpus(
        options.kind,
        options.source,
        options.out,
        options.text_style,
        allow_outside=options.allow_outside,
        splits=options.split,
        strip_tags=options.strip_tags,
    )
    print(summary)


def data_check(options: Options) -> None:
    """Decode every recording of a manifest and list what cannot be used."""
    from mtbi.corpus import manifest

    utterances, rejected = manifest.scan_manifest(options.manifest)
    good, unfit = manifest.check(utterances, options.manifest.parent)
    for record in [*rejected, *unfit]:
        print(f"{record['id']}: {record['reason']}")
    print(f"{len(good)} good, {len(rejected) + len(unfit)} rejected")
    if rejected or unfit:
        raise UserError(
            f"{options.manifest}: {len(rejected) + len(unfit)} records cannot be used; `mtbi data import jsonl` leaves them out"
        )


def data_align(options: Options) -> None:
    """Add the time of every word, by CTC forced alignment."""
    from mtbi.corpus import align, manifest

    part = manifest.Part.parse(options.part) if options.part else None
    aligned, without = align.align_manifest(options.manifest, options.out, align.open_aligner(options.model), part)
    print(f"{options.out}: {aligned} utterances aligned, {without} kept without word times")


def data_shard(options: Options) -> None:
    """Pack audio, word times and answers into MDS shards with an index."""
    from mtbi import recipe as recipes
    from mtbi.answers.behaviour import BehaviourStore
    from mtbi.corpus import manifest
    from mtbi.llm.chat_format import read_chat
    from mtbi.shards.write import write_shards

    recipe = recipes.load(options.recipe, options.overrides)
    utterances = manifest.read_manifest(options.manifest)
    store = BehaviourStore(options.behaviour)
    other = recipe.behaviour.allow_other_teacher
    chat, folder = read_chat(recipe), options.manifest.parent
    written = write_shards(utterances, folder, store, chat, options.out, options.audio, allow_other_teacher=other)
    print(f"{options.out}: {written} of {len(utterances)} utterances")


def data_encode(options: Options) -> None:
    """Store a frozen encoder's output in place of the sound."""
    import torch

    from mtbi import recipe as recipes
    from mtbi.model.encoders.build import build_encoder
    from mtbi.shards import features
    from mtbi.shards.read import Shards

    recipe = recipes.load(options.recipe, options.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = build_encoder(recipe.model.encoder, torch.float32, device, recipe.model.trust_remote_code).eval()
    shards = Shards(options.shards, recipe.data.cache_dir or f"{recipe.run_dir}/cache")
    written = features.write(
        shards, lambda waves, lengths: encoder(waves.to(device), lengths.to(device)), features.encoder_name(recipe), options.out
    )
    print(f"{options.out}: the encoder's output for {written} utterances")


def data_stats(options: Options) -> None:
    """Hours, speakers, words and tasks of a manifest or of shards, with histograms."""
    from mtbi.shards import stats

    found = stats.read(options.place, options.cache_dir)
    pictures = stats.plot(found, options.plots) if options.plots else []
    if options.json:
        print(as_json(asdict(found)))
        return
    print(stats.render(found, shutil.get_terminal_size().columns))
    if pictures:
        print(f"\n{options.plots}: {', '.join(picture.name for picture in pictures)}")


def behave(options: Options) -> None:
    """Ask the text LLM every chosen task about each transcript."""
    from mtbi import recipe as recipes
    from mtbi.answers import behaviour
    from mtbi.answers.teacher import build_teacher
    from mtbi.corpus import manifest
    from mtbi.llm.chat_format import read_chat

    recipe = recipes.load(options.recipe, options.overrides)
    utterances, chat, out = manifest.read_manifest(options.manifest), read_chat(recipe), options.out
    if options.part:
        part = manifest.Part.parse(options.part)
        utterances, out = part.take(utterances), out / str(part)
    teacher = build_teacher(recipe.model, recipe.behaviour, recipe.precision)
    behaviour.generate(utterances, recipe.behaviour, teacher, chat, out, seed=recipe.seed)
    print(f"{out}: answers about {len(utterances)} utterances")


def plan(options: Options) -> None:
    """Print what one epoch of a recipe looks like, or with --gpus how much memory and time it needs, without training."""
    from mtbi import recipe as recipes
    from mtbi.batches.interleave import Coverage
    from mtbi.batches.plan import Plan, Position
    from mtbi.engine.inputs import open_shards
    from mtbi.llm.chat_format import read_chat
    from mtbi.model.frame_counts import FrameGeometry

    recipe = recipes.load(options.recipe, options.overrides)
    if options.gpus:
        from mtbi.engine import step_time

        speeds = None
        if options.tokens_per_second:
            speeds = step_time.Speeds(options.tokens_per_second, options.network, options.node_network)
        table = step_time.tabulate(recipe, options.gpus, options.gpu_memory, options.gpus_per_node, speeds)
        print(as_json(asdict(table)) if options.json else step_time.render(table))
        return
    if not recipe.data.shards:
        raise UserError(
            "data.shards is empty: name the folders made by `mtbi data shard`, for example data.shards=[shards/train]"
        )
    shards = open_shards(recipe.data.shards, recipe, read_chat(recipe))
    geometry = FrameGeometry.from_config(recipe.model)
    epoch = Plan(shards.index, recipe, geometry)
    steps, used, utterances = 0, 0.0, 0
    for step in epoch.steps(Position(0, 0)):
        if step.position.epoch > 0:
            break
        out = epoch.left_out
        steps += 1
        used += step.used_share
        utterances += sum(len(row.groups) for row in step.rows)
    share, epochs, there = used / steps, recipe.train.steps / steps, len(shards.index.utterances)
    coverage = Coverage.of(shards.index.spoken_words)
    if options.json:
        numbers = {"steps_per_epoch": steps, "utterances": utterances, "utterances_in_shards": there}
        print(
            as_json(
                {**numbers, "left_out": asdict(out), "interleaving": asdict(coverage), "used_share": share, "epochs": epochs}
            )
        )
        return
    print(f"steps an epoch  {steps}")
    print(f"utterances      {utterances} of {there}")
    if out.too_long or out.too_big or out.unanswered:
        print(f"left out        {out.too_long} too long, {out.too_big} too big for a row, {out.unanswered} without an answer")
    if recipe.interleave.share:
        print(f"interleaving    {coverage}")
    print(f"slots used      {share:.1%} of {recipe.plan.rows_per_step} rows of {recipe.plan.row_tokens} tokens")
    print(f"epochs          {epochs:.2f} in {recipe.train.steps} steps")


def evaluate(options: Options) -> None:
    """Measure a trained run on held-out speech."""
    from mtbi.benchmark import run as benchmark
    from mtbi.benchmark import scores
    from mtbi.benchmark.judge import Judge
    from mtbi.corpus.align import open_aligner
    from mtbi.use.open_run import open_run

    settings = benchmark.Settings(
        places=dict(named_place(text) for text in options.shards),
        dialogues=options.dialogues,
        batch_size=options.batch_size,
        controls=() if options.no_controls else benchmark.CONTROLS,
        prompt_first=not options.no_prompt_first,
        judge=Judge(options.judge, options.judge_model) if options.judge else None,
        transcribe=open_aligner(options.cascade).transcribe if options.cascade else None,
    )
    report = benchmark.evaluate(open_run(options.run, options.checkpoint, options.device), settings)
    if options.json:
        shown = report.cells if options.tasks else report.summary
        print(as_json({"folder": str(report.folder), "cells": [scores.to_json(cell) for cell in shown]}))
        return
    print(f"{scores.render(report.cells)}\n\n{scores.notes(report.cells)}" if options.tasks else report)
    print(f"\n{report.folder}: report.json, table.md, notes.md, answers.jsonl")


def reproduce(options: Options) -> None:
    """Train and measure every arm of a benchmark with several seeds, and write one report."""
    import torch

    from mtbi.benchmark.grid import grid as grids
    from mtbi.benchmark.grid import report

    grid, out = grids.load(options.grid), options.out
    chosen = [job for job in grids.jobs(grid) if not options.arms or job.arm in options.arms]
    if not chosen:
        raise UserError(f"--arms: choose of {', '.join(grid.arms)}")
    if options.list:
        for job in chosen:
            print("\n".join(shlex.join(command) for command in grids.commands(grid, job, out, options.processes)))
        return
    if options.report_only and not any(grids.report_folder(grid, job, out) for job in grids.jobs(grid)):
        raise UserError(f"{out}: no run is finished, so there is nothing to report; leave --report-only out")
    if grid.world and not options.report_only:
        from mtbi.demo.grid_data import prepare_grid

        prepare_grid(grid.recipe, out, options.speech)
    parallel = options.parallel or (1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // options.processes))
    failures = [] if options.report_only else grids.run(grid, out, parallel, options.processes, chosen)
    print(report.write(grid, out))
    if failures:
        raise UserError(f"{len(failures)} runs failed; the same command tries them again:\n" + "\n".join(failures))


def named_place(text: str) -> tuple[str, str]:
    """`NAME=FOLDER` or `FOLDER` (named after itself)."""
    from mtbi.benchmark.run import group_name

    name, equals, place = text.partition("=")
    return (name, place) if equals else (group_name(text), text)


def chat(options: Options) -> None:
    """Talk to a trained speech LLM about recordings."""
    from mtbi.use.conversation import Conversation, talk
    from mtbi.use.open_run import open_run

    conversation = Conversation(open_run(options.run, options.checkpoint, options.device), options.max_new_tokens)
    talk(conversation, options.audio, " ".join(options.prompt))


def serve(options: Options) -> None:
    """Serve a trained run: the OpenAI chat API with speech, and a page to talk to it."""
    try:
        import uvicorn

        from mtbi.use.serve.limits import Limits, read_api_key
        from mtbi.use.serve.mix import choose_aligner
        from mtbi.use.serve.server import make_app
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'mtbi[serve]'") from error
    from mtbi.use.open_run import open_run

    check_address(options.host, options.port)
    api_key = read_api_key(options.api_key_file)
    run = open_run(options.run, options.checkpoint, options.device)
    aligner = choose_aligner(options.aligner, run)
    limits = Limits(megabytes=options.max_megabytes, waiting=options.max_waiting, new_tokens=options.max_new_tokens)
    app = make_app(run, limits, aligner, api_key, options.allow_origin)
    print(
        f"{run.recipe.name} ({run.checkpoint.name}) at http://{options.host}:{options.port}/  API: …/v1/chat/completions",
        flush=True,
    )
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")


def check_address(host: str, port: int) -> None:
    """Raises UserError where nobody can listen there, before a large model is read."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"--host {host} --port {port}: {reason}; choose another port, or an address of this machine") from error


def export(options: Options) -> None:
    """Write a trained run as a folder that Hugging Face transformers loads."""
    from mtbi.use.export import export as write
    from mtbi.use.open_run import open_run

    write(open_run(options.run, options.checkpoint, "cpu", as_trained=True), options.out, options.layout)
    print(f"{options.out}: {options.out}/README.md says how to use it")


def recipe_show(options: Options) -> None:
    """Print a recipe with everything filled in, and where each value comes from."""
    from mtbi import recipe as recipes

    if options.json:
        print(as_json(recipes.to_dict(recipes.load(options.recipe, options.overrides))))
        return
    print(recipes.annotated(options.recipe, options.overrides), end="")


def recipe_fields(options: Options) -> None:
    """Print every field of a recipe as Markdown (docs/recipe.md is this text)."""
    from mtbi import recipe as recipes

    print("# Fields of a recipe\n\nPrinted by `mtbi recipe fields` from the comments in `mtbi/recipe.py`.\n")
    print("| field | type | default | meaning |\n|---|---|---|---|")
    for field in recipes.reference():
        default = f"`{field.default}`" if field.default not in ("", [], {}) else ""
        print(f"| `{field.path}` | {field.kind} | {default} | {field.note} |")


def tasks_list(options: Options) -> None:
    """List tasks and their wordings."""
    from mtbi.answers import task_library

    tasks = [task for library in options.library for task in task_library.load([library]).values()]
    if options.json:
        print(as_json([asdict(task) for task in tasks]))
        return
    for task in tasks:
        print(f"{task.name}: {task.description} ({len(task.train)} training wordings, {len(task.heldout)} held out)")
        if options.wordings:
            print(
                "".join(f"    {wording}\n" for wording in task.train) + "".join(f"  * {wording}\n" for wording in task.heldout),
                end="",
            )


def tasks_try(options: Options) -> None:
    """Ask a recipe's text LLM tasks about one sentence, to see what would be imitated."""
    from mtbi import recipe as recipes
    from mtbi.answers import preview

    recipe = recipes.load(options.recipe, options.overrides)
    for one in preview.ask(options.sentence, recipe, options.task, options.wordings):
        print(one)


def demo(options: Options) -> None:
    """Run the miniature world: prepare, train, evaluate, one dialogue."""
    from mtbi.demo.run import DIALOGUES, run

    if options.speech and not options.speech.is_dir():
        raise UserError(
            f"{options.speech}: no such folder; --speech wants the folder of the Free Spoken Digit Dataset's recordings"
        )
    run(options.speech, options.overrides, options.prepare_only, options.dialogues or DIALOGUES)


def doctor(options: Options) -> int:
    """Check this machine, and a recipe's models, memory, folders and shards. Ends with status 1 where something fails."""
    import torch

    from mtbi import doctor as checks
    from mtbi import recipe as recipes

    found = list(checks.machine())
    if options.recipe:
        recipe = recipes.load(options.recipe, options.overrides)
        here = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0
        found += checks.of_recipe(recipe, options.gpus or max(1, torch.cuda.device_count()), options.gpu_memory or here)
    found += [checks.guarded(place, lambda place=place: checks.store_rights(place)) for place in options.write]  # type: ignore[misc]
    print(as_json([asdict(one) for one in found]) if options.json else checks.render(found))
    return int(any(one.status == checks.FAIL for one in found))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    description = "Multi-task behaviour imitation training for speech LLMs."
    parser = Parser(prog="mtbi", description=description, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"mtbi {installed('mtbi')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        group: argparse._SubParsersAction, name: str, function: Callable[[Options], int | None], *examples: str
    ) -> argparse.ArgumentParser:
        text = function.__doc__
        epilog = "\n  ".join(["examples:", *examples]) if examples else None
        command = group.add_parser(name, help=text, description=text, epilog=epilog)
        command.set_defaults(function=function)
        return command

    def add_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="one JSON document, for scripts")

    def add_overrides(command: argparse.ArgumentParser) -> None:
        fields = "change fields of the recipe"
        command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=fields)

    def add_recipe(command: argparse.ArgumentParser) -> None:
        command.add_argument("--recipe", default="demo", help="a recipe's file, or the name of a shipped one (default: demo)")
        add_overrides(command)

    def add_part(command: argparse.ArgumentParser) -> None:
        command.add_argument("--part", default="", metavar="I/N", help="only this stretch of the manifest, for array jobs")

    def add_run(command: argparse.ArgumentParser) -> None:
        command.add_argument("run", type=Path, help="the run's folder (run_dir of its recipe)")
        command.add_argument("--checkpoint", default="best", help="best (default), latest, or a checkpoint's folder")
        command.add_argument("--device", default="", help="cpu or cuda (default: a GPU if there is one)")

    data = commands.add_parser("data", help="make corpora, alignments and shards").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = add(
        data,
        "import",
        data_import,
        "mtbi data import librispeech /corpora/LibriSpeech/train-clean-360 work/train --text-style sentence",
        "mtbi data import jsonl other/manifest.jsonl work/train --allow-outside",
    )
    command.add_argument("kind", help="folder, librispeech, commonvoice, fsdd or jsonl, or an installed one")
    command.add_argument("source", type=Path, help="the corpus")
    command.add_argument("out", type=Path, help="folder for manifest.jsonl and rejected.jsonl")
    command.add_argument(
        "--text-style", default="none", help="spelling of the transcripts: none, lower, sentence, or an installed one"
    )
    command.add_argument("--allow-outside", action="store_true", help="accept recordings outside the source folder")
    command.add_argument("--split", action="append", default=[], help="keep only this split, such as train; may be repeated")
    command.add_argument("--strip-tags", action="store_true", help="remove tags such as [noise] and <unk> from transcripts")
    command = add(data, "check", data_check)
    command.add_argument("manifest", type=Path)
    command = add(
        data,
        "align",
        data_align,
        "mtbi data align work/train/manifest.jsonl work/train/aligned.jsonl --model facebook/wav2vec2-large-960h-lv60-self",
        "mtbi data align work/train/manifest.jsonl work/train/aligned.jsonl --part $SLURM_ARRAY_TASK_ID/8",
    )
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="the manifest with word times")
    command.add_argument("--model", default="demo", help="demo, or a CTC model of transformers (name or folder)")
    add_part(command)
    command = add(
        data,
        "shard",
        data_shard,
        "mtbi data shard work/train/aligned.jsonl work/train/behaviour s3://bucket/train --recipe whisper-large-v3_qwen3-8b",
        "mtbi data shard work/train/aligned.jsonl work/train/behaviour shards/train --audio opus",
    )
    command.add_argument("manifest", type=Path, help="the aligned manifest")
    command.add_argument("behaviour", type=Path, help="the folder that `mtbi behave` made")
    command.add_argument("out", help="a new folder or s3:// address")
    command.add_argument(
        "--audio", choices=["flac", "opus"], default="flac", help="flac (default) loses nothing; opus is smaller"
    )
    add_recipe(command)
    command = add(data, "encode", data_encode)
    command.add_argument("shards", help="a folder or s3:// address of shards")
    command.add_argument("out", help="a new folder")
    add_recipe(command)
    command = add(
        data,
        "stats",
        data_stats,
        "mtbi data stats work/train/manifest.jsonl --plots plots",
        "mtbi data stats s3://bucket/train --json | jq .hours",
    )
    command.add_argument("place", help="a manifest, or a folder or s3:// address of shards")
    command.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw PNG files there")
    add_json(command)
    command.add_argument("--cache-dir", default="", help="copies of remote shards (default: in the folder for temporary files)")

    command = add(
        commands,
        "behave",
        behave,
        "mtbi behave work/train/aligned.jsonl work/train/behaviour --recipe whisper-large-v3_qwen3-8b",
        "mtbi behave aligned.jsonl answers 'behaviour.library=[my_tasks.yaml]' behaviour.per_utterance=4",
    )
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="folder for the answers; a killed command goes on from what it holds")
    add_part(command)
    add_recipe(command)
    command = add(
        commands,
        "plan",
        plan,
        "mtbi plan whisper-large-v3_qwen3-8b 'data.shards=[s3://bucket/train]'",
        "mtbi plan whisper-large-v3_qwen3-8b --gpus 8 64 --tokens-per-second 9000",
        "mtbi plan demo --json | jq .steps_per_epoch",
    )
    command.add_argument("recipe", help="a recipe's file, or the name of a shipped one")
    add_overrides(command)
    command.add_argument(
        "--gpus", type=at_least(1), nargs="+", default=[], help="memory on jobs of so many GPUs, without any data"
    )
    command.add_argument("--gpu-memory", type=above_zero, default=80, metavar="GB", help="of one GPU (default: 80)")
    command.add_argument("--gpus-per-node", type=at_least(1), default=8, help="(default: 8)")
    speed = "LLM positions a second of one GPU, `tok/s` in the log of a run on one: also predicts time"
    command.add_argument("--tokens-per-second", type=above_zero, default=0, metavar="N", help=speed)
    network = "bus bandwidth between nodes, from launcher/preflight.py (default: 40)"
    command.add_argument("--network", type=above_zero, default=40, metavar="GB/s", help=network)
    command.add_argument("--node-network", type=above_zero, default=300, metavar="GB/s", help="within a node (default: 300)")
    add_json(command)

    command = add(
        commands,
        "evaluate",
        evaluate,
        "mtbi evaluate runs/demo --tasks --cascade demo",
        "mtbi evaluate /scratch/run1 --checkpoint latest --shards dev=s3://bucket/dev closed.jsonl",
        "mtbi evaluate /scratch/run1 --json | jq '.cells[0].accuracy'",
    )
    add_run(command)
    command.add_argument(
        "--shards",
        nargs="+",
        default=[],
        metavar="[NAME=]PLACE",
        help="shards or Speech-IFEval-like .jsonl (default: data.eval_shards)",
    )
    command.add_argument(
        "--dialogues", type=at_least(0), default=2000, help="about how many in each group; 0 = all (default: 2000)"
    )
    command.add_argument("--batch-size", type=at_least(1), default=64)
    command.add_argument("--no-controls", action="store_true", help="leave out silence, no audio and other speech")
    command.add_argument("--no-prompt-first", action="store_true", help="do not ask with the prompt before the speech as well")
    command.add_argument("--cascade", metavar="MODEL", help="also a CTC recogniser (`demo`, or one of transformers) + text LLM")
    command.add_argument("--judge", metavar="URL", help="also marks by an LLM behind an OpenAI-compatible address (…/v1)")
    command.add_argument("--judge-model", default="gpt-4o-mini", metavar="NAME", help="the judge (default: gpt-4o-mini)")
    command.add_argument("--tasks", action="store_true", help="print every task, not only the summary")
    add_json(command)
    command = add(commands, "reproduce", reproduce)
    command.add_argument(
        "out", type=Path, help="folder for data, runs and the report; a killed command goes on from what it holds"
    )
    command.add_argument("--grid", default="digits", help="a grid's file, or the name of a shipped one (default: digits)")
    command.add_argument("--speech", type=Path, help="folder of FSDD recordings (default: espeak-ng speaks)")
    command.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms")
    command.add_argument(
        "--parallel", type=at_least(0), default=0, help="runs at once (default: one a GPU machine, else one a core)"
    )
    command.add_argument("--processes", type=at_least(1), default=1, help="processes of each run, one a GPU (default: 1)")
    command.add_argument("--list", action="store_true", help="print the commands of every run and stop")
    command.add_argument("--report-only", action="store_true", help="write the report of what is finished")
    command = add(
        commands,
        "chat",
        chat,
        'mtbi chat runs/demo --audio digits.wav "say the digits backwards"',
        'echo "<digits.wav> count them" | mtbi chat runs/demo',
    )
    add_run(command)
    command.add_argument("prompt", nargs="*", help="a question; without one, lines are read from standard input")
    command.add_argument(
        "--audio", type=Path, action="append", default=[], help="a recording to ask about (may be given more than once)"
    )
    command.add_argument("--max-new-tokens", type=at_least(1), default=256, help="longest answer (default: 256)")

    command = add(commands, "export", export)
    command.add_argument("run", type=Path, help="the run's folder (run_dir of its recipe)")
    command.add_argument("out", type=Path, help="a new folder")
    command.add_argument("--checkpoint", default="best", help="best (default), latest, or a checkpoint's folder")
    layouts = "trained: the trained weights alone (default); merged: all, for transformers; ultravox: all, for vLLM"
    command.add_argument("--layout", choices=["trained", "merged", "ultravox"], default="trained", help=layouts)

    command = add(commands, "serve", serve)
    add_run(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    command.add_argument("--port", type=int, default=8000)
    aligner = "finds when each word is spoken: demo, or a CTC model of transformers (default: demo with the demo's encoder)"
    command.add_argument("--aligner", default="", metavar="MODEL", help=aligner)
    command.add_argument("--max-new-tokens", type=at_least(1), default=512, help="longest answer (default: 512)")
    command.add_argument("--max-megabytes", type=above_zero, default=25, help="largest request (default: 25)")
    command.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="clients must send the key in it (or in MTBI_API_KEY; default: none)"
    )
    origins = "a web site whose pages may use the API, such as http://localhost:3000; may be repeated; '*': any"
    command.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help=origins)
    command.add_argument("--max-waiting", type=at_least(1), default=64, help="requests at once, others get 429 (default: 64)")

    group = commands.add_parser("recipe", help="look at recipes").add_subparsers(required=True, metavar="COMMAND")
    command = add(
        group, "show", recipe_show, "mtbi recipe show demo train.steps=100", "mtbi recipe show demo --json | jq .train"
    )
    command.add_argument("recipe", nargs="?", default="demo", help="a recipe's file, or the name of a shipped one")
    add_overrides(command)
    add_json(command)
    add(group, "fields", recipe_fields)
    group = commands.add_parser("tasks", help="look at tasks").add_subparsers(required=True, metavar="COMMAND")
    command = add(group, "list", tasks_list)
    command.add_argument("library", nargs="*", default=["digits", "content"], help="names of task libraries, or paths")
    command.add_argument("--wordings", action="store_true", help="print the wordings too (* = held out)")
    add_json(command)
    command = add(
        group,
        "try",
        tasks_try,
        'mtbi tasks try "one two three" --task reverse --wordings',
        "mtbi tasks try \"one two three\" --task '*/french' --recipe demo 'behaviour.library=[my_tasks.yaml]'",
    )
    command.add_argument("sentence", help="what a speaker might say")
    command.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="a task or pattern; may be repeated (default: the recipe's)"
    )
    command.add_argument("--wordings", action="store_true", help="ask in every wording, also held-out ones, not in one")
    add_recipe(command)

    command = add(commands, "demo", demo)
    command.add_argument("--speech", type=Path, help="folder of FSDD recordings (default: espeak-ng speaks)")
    command.add_argument("--prepare-only", action="store_true", help="stop before training")
    command.add_argument("--dialogues", type=at_least(1), default=0, metavar="N", help="of the evaluation (default: 3200)")
    add_overrides(command)
    command = add(
        commands,
        "doctor",
        doctor,
        "mtbi doctor",
        "mtbi doctor whisper-large-v3_qwen3-8b 'data.shards=[s3://bucket/train]' --gpus 64 --gpu-memory 80",
    )
    command.add_argument("recipe", nargs="?", default="", help="a recipe's file, or the name of a shipped one, to check too")
    add_overrides(command)
    command.add_argument("--write", nargs="+", default=[], metavar="ADDRESS", help="also write and read an object below s3://…")
    command.add_argument("--gpus", type=at_least(1), default=0, help="GPUs of the job (default: this machine's)")
    command.add_argument("--gpu-memory", type=above_zero, default=0, metavar="GB", help="of one GPU (default: this machine's)")
    add_json(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    completion.answer(parser)
    try:
        options = parse(parser, arguments)
        return options.function(options) or 0
    except BrokenPipeError:  # `mtbi … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nmtbi: stopped", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"mtbi: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a path without permission, a full disk, a model that is nowhere
        print(f"mtbi: {explain(error)}", file=sys.stderr)
        return 2
