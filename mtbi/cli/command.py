"""The whole command line, its exit statuses, and how errors are shown.

A user's mistake is one message on standard error and status 2, without a traceback. With `--json`, standard output holds one
JSON document and nothing else. A subcommand imports what it needs when it runs, so `mtbi --help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mtbi.cli import answers, completion, corpus, recipes, runs, scenes, shards, use
from mtbi.cli.arguments import Parser, add_group, explain, parse
from mtbi.errors import UserError
from mtbi.terminal import quiet_libraries
from mtbi.versions import installed

EPILOG = """\
examples:
  mtbi demo
  mtbi data import librispeech /corpora/LibriSpeech/dev-clean work/dev
  mtbi plan whisper-large-v3_llama-3.1-8b --gpus 8 64
  mtbi chat runs/demo --audio question.wav "What does the speaker want?"

exit status:
  0    success
  1    a check failed (doctor)
  2    a mistake in the arguments or in the input; the message says what to do
  130  interrupted

completion of commands, recipes and their fields by the Tab key: pip install 'mtbi[completion]', then
  eval "$(register-python-argcomplete mtbi)"                            # bash and zsh, in ~/.bashrc or ~/.zshrc
  register-python-argcomplete --shell fish mtbi | source                # fish, in ~/.config/fish/config.fish
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mtbi` with all subcommands, in the order in which the help lists them."""
    parser = Parser(prog="mtbi", description="Multi-task behaviour imitation training for speech LLMs.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"mtbi {installed('mtbi')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = add_group(commands, "data", "make corpora, alignments and shards")
    corpus.add_import(data)
    corpus.add_check(data)
    corpus.add_align(data)
    corpus.add_describe(data)
    shards.add_shard(data)
    shards.add_encode(data)
    shards.add_stats(data)
    scenes.add_convert(data)
    scenes.add_mix(data)
    answers.add_behave(commands)
    recipes.add_plan(commands)
    runs.add_evaluate(commands)
    scenes.add_score(commands)
    runs.add_reproduce(commands)
    use.add_chat(commands)
    use.add_export(commands)
    use.add_serve(commands)
    recipe = add_group(commands, "recipe", "look at recipes")
    recipes.add_show(recipe)
    recipes.add_fields(recipe)
    tasks = add_group(commands, "tasks", "look at tasks")
    answers.add_list(tasks)
    answers.add_try(tasks)
    answers.add_measure(tasks)
    runs.add_items(tasks)
    runs.add_demo(commands)
    runs.add_doctor(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    quiet_libraries()
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
    except OSError as error:  # a path without permission, a full disk, a model that does not exist
        print(f"mtbi: {explain(error)}", file=sys.stderr)
        return 2
