"""The `mtbi` command. Each subcommand is a function that imports what it uses, so that `mtbi --help` is quick.

A user's mistake is one message on standard error and status 2, without a traceback.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mtbi.errors import UserError

Options = argparse.Namespace


def data_import(options: Options) -> None:
    """Make a checked manifest of a speech corpus."""
    from mtbi.data.importers import import_corpus

    print(import_corpus(options.kind, options.source, options.out, options.text_style, allow_outside=options.allow_outside))


def data_check(options: Options) -> None:
    """Decode every recording of a manifest and list what cannot be used."""
    from mtbi.data import corpus

    utterances, rejected = corpus.scan_manifest(options.manifest)
    good, unfit = corpus.check(utterances, options.manifest.parent)
    for record in [*rejected, *unfit]:
        print(f"{record['id']}: {record['reason']}")
    print(f"{len(good)} good, {len(rejected) + len(unfit)} rejected")
    if rejected or unfit:
        raise UserError(
            f"{options.manifest}: {len(rejected) + len(unfit)} records cannot be used; `mtbi data import jsonl` leaves them out"
        )


def data_align(options: Options) -> None:
    """Add the time of every word, by CTC forced alignment."""
    from mtbi.data import align, corpus

    part = corpus.Part.parse(options.part) if options.part else None
    aligned, without = align.align_manifest(options.manifest, options.out, align.open_aligner(options.model), part)
    print(f"{options.out}: {aligned} utterances aligned, {without} kept without word times")


def data_shard(options: Options) -> None:
    """Pack audio, word times and answers into MDS shards with an index."""
    from mtbi import recipe as recipes
    from mtbi.data import corpus, shards
    from mtbi.tasks.behaviour import BehaviourStore
    from mtbi.tasks.chat import read_chat

    recipe = recipes.load(options.recipe, options.overrides)
    utterances = corpus.read_manifest(options.manifest)
    store = BehaviourStore(options.behaviour)
    written = shards.write(utterances, options.manifest.parent, store, read_chat(recipe), options.out, options.audio)
    print(f"{options.out}: {written} of {len(utterances)} utterances")


def data_encode(options: Options) -> None:
    """Store a frozen encoder's output in place of the sound."""
    import torch

    from mtbi import recipe as recipes
    from mtbi.data import features
    from mtbi.data.shards import Shards
    from mtbi.model.encoder import build_encoder

    recipe = recipes.load(options.recipe, options.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = build_encoder(recipe.model.encoder, torch.float32, device, recipe.model.trust_remote_code).eval()
    shards = Shards(options.shards, recipe.data.cache_dir or f"{recipe.run_dir}/cache")
    written = features.write(
        shards, lambda waves, lengths: encoder(waves.to(device), lengths.to(device)), features.encoder_name(recipe), options.out
    )
    print(f"{options.out}: the encoder's output for {written} utterances")


def data_stats(options: Options) -> None:
    """Hours, speakers, words and tasks of a manifest or of a shard folder."""
    from mtbi.data import corpus

    place = str(options.place)
    if place.endswith((".jsonl", ".json")):
        utterances = corpus.read_manifest(Path(place))
        aligned = sum(utterance.words is not None for utterance in utterances)
        print(f"utterances  {len(utterances)}, {aligned} of them aligned")
        print(f"speech      {sum(utterance.duration_s for utterance in utterances) / 3600:.2f} h")
        print(f"speakers    {len({utterance.speaker for utterance in utterances})}")
        print(f"words       {sum(len(utterance.text.split()) for utterance in utterances)}")
        return
    from mtbi.data import shards

    index = shards.Shards(place, options.cache_dir).index
    print(f"utterances  {len(index.utterances)}")
    print(f"speech      {index.utterances['samples'].sum(dtype='u8') / 16000 / 3600:.2f} h")
    print(f"dialogues   {len(index.branches)}, {int(index.branches['answer_tokens'].sum(dtype='u8'))} answer tokens")
    for number, task in enumerate(index.tasks):
        print(f"  {task:20s} {int((index.branches['task'] == number).sum())}")


def behave(options: Options) -> None:
    """Ask the text LLM every chosen task about each transcript."""
    from mtbi import recipe as recipes
    from mtbi.data import corpus
    from mtbi.tasks import behaviour
    from mtbi.tasks.chat import read_chat
    from mtbi.tasks.teacher import build_teacher

    recipe = recipes.load(options.recipe, options.overrides)
    utterances, chat, out = corpus.read_manifest(options.manifest), read_chat(recipe), options.out
    if options.part:
        part = corpus.Part.parse(options.part)
        utterances, out = part.take(utterances), out / str(part)
    teacher = build_teacher(recipe.model, recipe.behaviour, recipe.precision)
    behaviour.generate(utterances, recipe.behaviour, teacher, chat, out, seed=recipe.seed)
    print(f"{out}: answers about {len(utterances)} utterances")


def plan(options: Options) -> None:
    """Print what one epoch of a recipe looks like, or with --gpus how much memory and time it needs, without training."""
    from mtbi import recipe as recipes
    from mtbi.data.plan import Plan, Position
    from mtbi.data.shards import Shards
    from mtbi.model.geometry import FrameGeometry

    recipe = recipes.load(options.recipe, options.overrides)
    if options.gpus:
        from mtbi.engine import pace

        speeds = None
        if options.tokens_per_second:
            speeds = pace.Speeds(options.tokens_per_second, options.network, options.node_network)
        print(pace.render(recipe, options.gpus, options.gpu_memory, options.gpus_per_node, speeds))
        return
    if not recipe.data.shards:
        raise UserError(
            "data.shards is empty: name the folders made by `mtbi data shard`, for example data.shards=[shards/train]"
        )
    shards = Shards(recipe.data.shards, recipe.data.cache_dir or f"{recipe.run_dir}/cache")
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
    print(f"steps an epoch  {steps}")
    print(f"utterances      {utterances} of {len(shards.index.utterances)}")
    if steps and (out.too_long or out.too_big or out.unanswered):
        print(f"left out        {out.too_long} too long, {out.too_big} too big for a row, {out.unanswered} without an answer")
    print(f"slots used      {used / max(steps, 1):.1%} of {recipe.plan.rows_per_step} rows of {recipe.plan.row_tokens} tokens")
    print(f"epochs          {recipe.train.steps / max(steps, 1):.2f} in {recipe.train.steps} steps")


def evaluate(options: Options) -> None:
    """Measure a trained run on held-out speech."""
    from mtbi.benchmark import cells
    from mtbi.benchmark import run as benchmark
    from mtbi.benchmark.judge import Judge
    from mtbi.data.align import open_aligner
    from mtbi.trained import open_run

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
    print(cells.render(report.cells) if options.tasks else report)
    print(f"\n{report.folder}: report.json, table.md, answers.jsonl")


def reproduce(options: Options) -> None:
    """Train and measure every arm of a benchmark with several seeds, and write one report."""
    import torch

    from mtbi.benchmark import grid as grids
    from mtbi.benchmark import report

    grid, out = grids.load(options.grid), options.out
    chosen = [job for job in grids.jobs(grid) if not options.arms or job.arm in options.arms]
    if not chosen:
        raise UserError(f"--arms: choose of {', '.join(grid.arms)}")
    if options.list:
        for job in chosen:
            print("\n".join(shlex.join(command) for command in grids.commands(grid, job, out, options.processes)))
        return
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
    from mtbi.chat import Conversation, talk
    from mtbi.trained import open_run

    conversation = Conversation(open_run(options.run, options.checkpoint, options.device), options.max_new_tokens)
    talk(conversation, options.audio, " ".join(options.prompt))


def serve(options: Options) -> None:
    """Serve a trained run: the OpenAI chat API with speech, and a page to talk to it."""
    try:
        import uvicorn

        from mtbi.serve.server import Limits, make_app
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'mtbi[serve]'") from error
    from mtbi.trained import open_run

    run = open_run(options.run, options.checkpoint, options.device)
    limits = Limits(megabytes=options.max_megabytes, waiting=options.max_waiting, new_tokens=options.max_new_tokens)
    print(
        f"{run.recipe.name} ({run.checkpoint.name}) at http://{options.host}:{options.port}/  API: …/v1/chat/completions",
        flush=True,
    )
    uvicorn.run(make_app(run, limits), host=options.host, port=options.port, log_level="warning")


def recipe_show(options: Options) -> None:
    """Print a recipe with everything filled in, and where each value comes from."""
    from mtbi import recipe as recipes

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
    from mtbi.tasks import registry

    for name, task in registry.load(options.library).items():
        print(f"{name}: {task.description} ({len(task.train)} training wordings, {len(task.heldout)} held out)")
        if options.wordings:
            print(
                "".join(f"    {wording}\n" for wording in task.train) + "".join(f"  * {wording}\n" for wording in task.heldout),
                end="",
            )


def demo(options: Options) -> None:
    """Run the miniature world: prepare, train, evaluate, one dialogue."""
    from mtbi.demo.run import run

    if options.speech and not options.speech.is_dir():
        raise UserError(
            f"{options.speech}: no such folder; --speech wants the folder of the Free Spoken Digit Dataset's recordings"
        )
    run(options.speech, options.overrides, prepare_only=options.prepare_only)


def doctor(options: Options) -> int:
    """Check this machine, and a recipe's models, memory, folders and shards. Ends with status 1 where something fails."""
    import json
    from dataclasses import asdict

    import torch

    from mtbi import doctor as checks
    from mtbi import recipe as recipes

    found = list(checks.machine())
    if options.recipe:
        recipe = recipes.load(options.recipe, options.overrides)
        here = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0
        found += checks.of_recipe(recipe, options.gpus or max(1, torch.cuda.device_count()), options.gpu_memory or here)
    found += [checks.guarded(place, lambda place=place: checks.store_rights(place)) for place in options.write]  # type: ignore[misc]
    print(json.dumps([asdict(one) for one in found], indent=1) if options.json else checks.render(found))
    return int(any(one.status == checks.FAIL for one in found))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="mtbi", description="Multi-task behaviour imitation training for speech LLMs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(group: argparse._SubParsersAction, name: str, function: Callable[[Options], int | None]) -> argparse.ArgumentParser:
        text = function.__doc__
        command = group.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        return command

    def add_recipe(command: argparse.ArgumentParser) -> None:
        command.add_argument("--recipe", default="demo", help="a recipe's file, or the name of a shipped one (default: demo)")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="change fields of the recipe")

    def add_part(command: argparse.ArgumentParser) -> None:
        command.add_argument("--part", default="", metavar="I/N", help="only this stretch of the manifest, for array jobs")

    def add_run(command: argparse.ArgumentParser) -> None:
        command.add_argument("run", type=Path, help="the run's folder (run_dir of its recipe)")
        command.add_argument("--checkpoint", default="best", help="best (default), latest, or a checkpoint's folder")
        command.add_argument("--device", default="", help="cpu or cuda (default: a GPU if there is one)")

    data = commands.add_parser("data", help="make corpora, alignments and shards").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = add(data, "import", data_import)
    command.add_argument("kind", help="folder, librispeech, commonvoice, fsdd or jsonl")
    command.add_argument("source", type=Path, help="the corpus")
    command.add_argument("out", type=Path, help="folder for manifest.jsonl and rejected.jsonl")
    command.add_argument(
        "--text-style", default="none", help="spelling of the transcripts: none, lower, sentence, or an installed one"
    )
    command.add_argument("--allow-outside", action="store_true", help="accept recordings outside the source folder")
    command = add(data, "check", data_check)
    command.add_argument("manifest", type=Path)
    command = add(data, "align", data_align)
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="the manifest with word times")
    command.add_argument("--model", default="demo", help="demo, or a CTC model of transformers (name or folder)")
    add_part(command)
    command = add(data, "shard", data_shard)
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
    command = add(data, "stats", data_stats)
    command.add_argument("place", help="a manifest, or a folder or s3:// address of shards")
    command.add_argument("--cache-dir", default="", help="copies of remote shards (default: in the folder for temporary files)")

    command = add(commands, "behave", behave)
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="folder for the answers; a killed command goes on from what it holds")
    add_part(command)
    add_recipe(command)
    command = add(commands, "plan", plan)
    command.add_argument("recipe", help="a recipe's file, or the name of a shipped one")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="change fields of the recipe")
    command.add_argument("--gpus", type=int, nargs="+", default=[], help="memory on jobs of so many GPUs, without any data")
    command.add_argument("--gpu-memory", type=float, default=80, metavar="GB", help="of one GPU (default: 80)")
    command.add_argument("--gpus-per-node", type=int, default=8, help="(default: 8)")
    speed = "LLM positions a second of one GPU, `tok/s` in the log of a run on one: also predicts time"
    command.add_argument("--tokens-per-second", type=float, default=0, metavar="N", help=speed)
    network = "bus bandwidth between nodes, from launcher/preflight.py (default: 40)"
    command.add_argument("--network", type=float, default=40, metavar="GB/s", help=network)
    command.add_argument("--node-network", type=float, default=300, metavar="GB/s", help="within a node (default: 300)")

    command = add(commands, "evaluate", evaluate)
    add_run(command)
    command.add_argument(
        "--shards",
        nargs="+",
        default=[],
        metavar="[NAME=]PLACE",
        help="shards or Speech-IFEval-like .jsonl (default: data.eval_shards)",
    )
    command.add_argument("--dialogues", type=int, default=2000, help="about how many in each group; 0 = all (default: 2000)")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--no-controls", action="store_true", help="leave out silence, no audio and other speech")
    command.add_argument("--no-prompt-first", action="store_true", help="do not ask with the prompt before the speech as well")
    command.add_argument("--cascade", metavar="MODEL", help="also a CTC recogniser (`demo`, or one of transformers) + text LLM")
    command.add_argument("--judge", metavar="URL", help="also marks by an LLM behind an OpenAI-compatible address (…/v1)")
    command.add_argument("--judge-model", default="gpt-4o-mini", metavar="NAME", help="the judge (default: gpt-4o-mini)")
    command.add_argument("--tasks", action="store_true", help="print every task, not only the summary")
    command = add(commands, "reproduce", reproduce)
    command.add_argument(
        "out", type=Path, help="folder for data, runs and the report; a killed command goes on from what it holds"
    )
    command.add_argument("--grid", default="digits", help="a grid's file, or the name of a shipped one (default: digits)")
    command.add_argument("--speech", type=Path, help="folder of FSDD recordings (default: espeak-ng speaks)")
    command.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms")
    command.add_argument("--parallel", type=int, default=0, help="runs at once (default: one a GPU machine, else one a core)")
    command.add_argument("--processes", type=int, default=1, help="processes of each run, one a GPU (default: 1)")
    command.add_argument("--list", action="store_true", help="print the commands of every run and stop")
    command.add_argument("--report-only", action="store_true", help="write the report of what is finished")
    command = add(commands, "chat", chat)
    add_run(command)
    command.add_argument("prompt", nargs="*", help="a question; without one, lines are read from standard input")
    command.add_argument(
        "--audio", type=Path, action="append", default=[], help="a recording to ask about (may be given more than once)"
    )
    command.add_argument("--max-new-tokens", type=int, default=256)

    command = add(commands, "serve", serve)
    add_run(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    command.add_argument("--port", type=int, default=8000)
    command.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    command.add_argument("--max-megabytes", type=float, default=25, help="largest request (default: 25)")
    command.add_argument("--max-waiting", type=int, default=8, help="requests at once, others get 429 (default: 8)")

    group = commands.add_parser("recipe", help="look at recipes").add_subparsers(required=True, metavar="COMMAND")
    command = add(group, "show", recipe_show)
    command.add_argument("recipe", nargs="?", default="demo")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    add(group, "fields", recipe_fields)
    group = commands.add_parser("tasks", help="look at tasks").add_subparsers(required=True, metavar="COMMAND")
    command = add(group, "list", tasks_list)
    command.add_argument("library", nargs="*", default=["digits", "content"], help="task files: names of shipped ones or paths")
    command.add_argument("--wordings", action="store_true", help="print the wordings too (* = held out)")

    command = add(commands, "demo", demo)
    command.add_argument("--speech", type=Path, help="folder of FSDD recordings (default: espeak-ng speaks)")
    command.add_argument("--prepare-only", action="store_true", help="stop before training")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="change fields of the recipe")
    command = add(commands, "doctor", doctor)
    command.add_argument("recipe", nargs="?", default="", help="a recipe's file, or the name of a shipped one, to check too")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="change fields of the recipe")
    command.add_argument("--write", nargs="+", default=[], metavar="ADDRESS", help="also write and read an object below s3://…")
    command.add_argument("--gpus", type=int, default=0, help="GPUs of the job (default: this machine's)")
    command.add_argument("--gpu-memory", type=float, default=0, metavar="GB", help="of one GPU (default: this machine's)")
    command.add_argument("--json", action="store_true", help="for scripts")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    options, loose = parser.parse_known_args(arguments)
    if loose:  # argparse does not take `key=value` or a prompt up again after an option
        wanted = getattr(options, "overrides", getattr(options, "prompt", None))
        if wanted is None or any(word.startswith("-") for word in loose):
            parser.error(f"unrecognized arguments: {' '.join(loose)}")
        wanted += loose
    try:
        return options.function(options) or 0
    except BrokenPipeError:  # `mtbi … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nmtbi: stopped", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:  # OSError: a path without permission, a full disk, a model that is nowhere
        print(f"mtbi: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
