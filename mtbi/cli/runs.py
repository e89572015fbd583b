"""`mtbi evaluate`, `reproduce`, `demo` and `doctor`: measure trained runs, run whole benchmarks, check a machine."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mtbi.cli.arguments import Group, Options, above_zero, add_command, add_json, add_overrides, add_run, at_least, print_json
from mtbi.errors import UserError

if TYPE_CHECKING:
    from mtbi.benchmark.grid.grid import Grid, Job

SPEECH = "folder of FSDD recordings (default: espeak-ng speaks)"


def add_evaluate(commands: Group) -> None:
    """`mtbi evaluate`."""
    command = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "mtbi evaluate runs/demo --tasks --recogniser demo",
        "mtbi evaluate runs/real --recogniser openai/whisper-base --reuse",
        "mtbi evaluate /scratch/run1 --checkpoint latest --shards dev=s3://bucket/dev closed.jsonl",
        "mtbi evaluate /scratch/run1 --json | jq '.cells[0].accuracy'",
    )
    add_run(command)
    shards = "shards or Speech-IFEval-like .jsonl (default: data.eval_shards)"
    command.add_argument("--shards", nargs="+", default=[], metavar="[NAME=]ADDRESS", help=shards)
    dialogues = "about how many in each group; 0 = all (default: 2000)"
    command.add_argument("--dialogues", type=at_least(0), default=2000, help=dialogues)
    batch_size = "dialogues at once; a killed evaluation loses one batch (default: 64 on a GPU, else 16)"
    command.add_argument("--batch-size", type=at_least(0), default=0, metavar="N", help=batch_size)
    command.add_argument("--no-controls", action="store_true", help="leave out silence, no audio and other speech")
    prompt_first = "do not also ask with the prompt before the speech"
    command.add_argument("--no-prompt-first", action="store_true", help=prompt_first)
    recogniser = "also measure a recogniser followed by the text LLM: a Whisper or CTC model, or demo"
    command.add_argument("--recogniser", "--cascade", default="", metavar="MODEL", help=recogniser)
    longest = "longest answer to an item of a .jsonl file (default: 256)"
    command.add_argument("--max-new-tokens", type=at_least(1), default=256, metavar="N", help=longest)
    reuse = "keep the answers of this checkpoint's last report, and ask only what it lacks"
    command.add_argument("--reuse", action="store_true", help=reuse)
    command.add_argument("--judge", metavar="URL", help="also have an LLM at an OpenAI-compatible address (…/v1) grade answers")
    command.add_argument("--judge-model", default="gpt-4o-mini", metavar="NAME", help="the judge (default: gpt-4o-mini)")
    command.add_argument("--tasks", action="store_true", help="print every task, not only the summary")
    add_json(command)


def run_evaluate(options: Options) -> None:
    """Measure a trained run on held-out speech."""
    from mtbi.benchmark import run as benchmark
    from mtbi.benchmark import scores
    from mtbi.benchmark.judge import Judge
    from mtbi.use.open_run import open_run

    settings = benchmark.Settings(
        places=dict(named_address(text) for text in options.shards),
        dialogues=options.dialogues,
        batch_size=options.batch_size,
        controls=() if options.no_controls else benchmark.CONTROLS,
        prompt_first=not options.no_prompt_first,
        max_new_tokens=options.max_new_tokens,
        recogniser=options.recogniser,
        reuse=options.reuse,
        judge=Judge(options.judge, options.judge_model) if options.judge else None,
    )
    report = benchmark.evaluate(open_run(options.run, options.checkpoint, options.device), settings)
    if options.json:
        shown = report.cells if options.tasks else report.summary
        print_json({"folder": str(report.folder), "cells": [scores.to_json(cell) for cell in shown]})
        return
    print(f"{scores.render(report.cells)}\n\n{scores.notes(report.cells)}" if options.tasks else report)
    print(f"\n{report.folder}: report.json, table.md, notes.md, answers.jsonl")


def named_address(text: str) -> tuple[str, str]:
    """`NAME=ADDRESS`, or `ADDRESS` with a name made from it."""
    from mtbi.benchmark.run import group_name

    name, equals, address = text.partition("=")
    return (name, address) if equals else (group_name(text), text)


def add_items(group: Group) -> None:
    """`mtbi tasks items`."""
    command = add_command(group, "items", run_items, "mtbi tasks items work/dev/manifest.jsonl work/dev/instructions.jsonl")
    command.add_argument("manifest", type=Path)
    command.add_argument("out", type=Path, help="a .jsonl file for `mtbi evaluate --shards`")


def run_items(options: Options) -> None:
    """Write items that ask for a form of the answer which a program checks, as Speech-IFEval does."""
    from mtbi.benchmark.instruction_items import write_items
    from mtbi.corpus import manifest

    count = write_items(manifest.read_manifest(options.manifest), options.manifest.parent, options.out)
    print(f"{options.out}: {count} items; measure them with `mtbi evaluate RUN --shards {options.out}`")


def add_reproduce(commands: Group) -> None:
    """`mtbi reproduce`."""
    command = add_command(commands, "reproduce", run_reproduce)
    out = "folder for data, runs and the report; a killed command continues from it"
    command.add_argument("out", type=Path, help=out)
    command.add_argument("--grid", default="digits", help="a grid's file, or the name of a shipped one (default: digits)")
    command.add_argument("--speech", type=Path, help=SPEECH)
    command.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="only these arms")
    parallel = "runs at once (default: one on a machine with a GPU, else one a core)"
    command.add_argument("--parallel", type=at_least(0), default=0, help=parallel)
    command.add_argument("--processes", type=at_least(1), default=1, help="processes of each run, one a GPU (default: 1)")
    command.add_argument("--list", action="store_true", help="print the commands of every run and stop")
    command.add_argument("--report-only", action="store_true", help="write the report of what is finished")


def run_reproduce(options: Options) -> None:
    """Train and measure every arm of a benchmark with several seeds, and write one report."""
    from mtbi.benchmark.grid import grid as grids

    grid = grids.load(options.grid)
    chosen = [job for job in grids.jobs(grid) if not options.arms or job.arm in options.arms]
    if not chosen:
        raise UserError(f"--arms: choose of {', '.join(grid.arms)}")
    if options.list:
        for job in chosen:
            print("\n".join(shlex.join(command) for command in grids.commands(grid, job, options.out, options.processes)))
    else:
        train_and_report(grid, chosen, options)


def train_and_report(grid: Grid, chosen: list[Job], options: Options) -> None:
    """Run the chosen jobs unless --report-only, and print the report. Raises UserError where a run failed or none finished."""
    import torch

    from mtbi.benchmark.grid import grid as grids
    from mtbi.benchmark.grid import report

    out = options.out
    if options.report_only and not any(grids.report_folder(grid, job, out) for job in grids.jobs(grid)):
        raise UserError(f"{out}: no run is finished, so there is nothing to report; leave --report-only out")
    failures: list[str] = []
    if not options.report_only:
        if grid.world:
            from mtbi.demo.grid_data import prepare_grid

            prepare_grid(grid.recipe, out, options.speech, grids.data_sets(grid, chosen))
        per_machine = 1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // options.processes)
        failures = grids.run(grid, out, options.parallel or per_machine, options.processes, chosen)
    print(report.write(grid, out))
    if failures:
        raise UserError(f"{len(failures)} runs failed; the same command tries them again:\n" + "\n".join(failures))


def add_demo(commands: Group) -> None:
    """`mtbi demo`."""
    command = add_command(commands, "demo", run_demo)
    command.add_argument("--speech", type=Path, help=SPEECH)
    command.add_argument("--prepare-only", action="store_true", help="stop before training")
    dialogues = "of the evaluation (default: 3200)"
    command.add_argument("--dialogues", type=at_least(1), default=0, metavar="N", help=dialogues)
    add_overrides(command)


def run_demo(options: Options) -> None:
    """Run the miniature world: prepare, train, evaluate, one dialogue."""
    from mtbi.demo.run import DIALOGUES, run

    if options.speech and not options.speech.is_dir():
        raise UserError(
            f"{options.speech}: no such folder; --speech needs the folder of the Free Spoken Digit Dataset's recordings"
        )
    run(options.speech, options.overrides, options.prepare_only, options.dialogues or DIALOGUES)


def add_doctor(commands: Group) -> None:
    """`mtbi doctor`."""
    command = add_command(
        commands,
        "doctor",
        run_doctor,
        "mtbi doctor",
        "mtbi doctor whisper-large-v3_qwen3-8b 'data.shards=[s3://bucket/train]' --gpus 64 --gpu-memory 80",
    )
    command.add_argument("recipe", nargs="?", default="", help="a recipe's file, or the name of a shipped one, to check too")
    add_overrides(command)
    command.add_argument("--write", nargs="+", default=[], metavar="ADDRESS", help="also write and read an object below s3://…")
    command.add_argument("--gpus", type=at_least(1), default=0, help="GPUs of the job (default: this machine's)")
    memory = "memory of one GPU (default: this machine's)"
    command.add_argument("--gpu-memory", type=above_zero, default=0, metavar="GB", help=memory)
    add_json(command)


def run_doctor(options: Options) -> int:
    """Check this machine, and a recipe's models, memory, folders and shards. Ends with status 1 where something fails."""
    import torch

    from mtbi import doctor
    from mtbi import recipe as recipes

    checks = list(doctor.machine())
    if options.recipe:
        recipe = recipes.load(options.recipe, options.overrides)
        here = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0
        checks += doctor.of_recipe(recipe, options.gpus or max(1, torch.cuda.device_count()), options.gpu_memory or here)
    for address in options.write:
        checks.append(doctor.guarded(address, lambda address=address: doctor.store_rights(address)))  # type: ignore[misc]
    if options.json:
        print_json([asdict(check) for check in checks])
    else:
        print(doctor.render(checks))
    return int(any(check.status == doctor.FAIL for check in checks))
