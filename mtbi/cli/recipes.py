"""`mtbi plan` and `mtbi recipe`: what a recipe says, and what its training needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mtbi.cli.arguments import Group, Options, above_zero, add_command, add_json, add_overrides, at_least, print_json
from mtbi.errors import UserError

if TYPE_CHECKING:
    from mtbi.recipe import Recipe


def add_plan(commands: Group) -> None:
    """`mtbi plan`."""
    command = add_command(
        commands,
        "plan",
        run_plan,
        "mtbi plan whisper-large-v3_qwen3-8b 'data.shards=[s3://bucket/train]'",
        "mtbi plan whisper-large-v3_qwen3-8b --gpus 8 64 --tokens-per-second 9000",
        "mtbi plan demo --json | jq .steps_per_epoch",
    )
    command.add_argument("recipe", help="a recipe's file, or the name of a shipped one")
    add_overrides(command)
    gpus = "memory on jobs of so many GPUs, without any data"
    command.add_argument("--gpus", type=at_least(1), nargs="+", default=[], help=gpus)
    command.add_argument("--gpu-memory", type=above_zero, default=80, metavar="GB", help="memory of one GPU (default: 80)")
    command.add_argument("--gpus-per-node", type=at_least(1), default=8, help="(default: 8)")
    speed = "LLM positions a second of one GPU, `tok/s` in the log of a run on one: also predicts time"
    command.add_argument("--tokens-per-second", type=above_zero, default=0, metavar="N", help=speed)
    network = "bus bandwidth between nodes, from launcher/preflight.py (default: 40)"
    command.add_argument("--network", type=above_zero, default=40, metavar="GB/s", help=network)
    command.add_argument("--node-network", type=above_zero, default=300, metavar="GB/s", help="within a node (default: 300)")
    add_json(command)


def run_plan(options: Options) -> None:
    """Print what one epoch of a recipe looks like, or with --gpus how much memory and time it needs, without training."""
    from mtbi import recipe as recipes

    recipe = recipes.load(options.recipe, options.overrides)
    if options.gpus:
        print_needs(recipe, options)
    else:
        print_epoch(recipe, options.json)


def print_needs(recipe: Recipe, options: Options) -> None:
    """Print memory, and with a speed also time, for several sizes of a job."""
    from mtbi.engine import step_time

    speeds = None
    if options.tokens_per_second:
        speeds = step_time.Speeds(options.tokens_per_second, options.network, options.node_network)
    table = step_time.tabulate(recipe, options.gpus, options.gpu_memory, options.gpus_per_node, speeds)
    if options.json:
        print_json(asdict(table))
    else:
        print(step_time.render(table))


def print_epoch(recipe: Recipe, json: bool) -> None:
    """Print what one epoch of the recipe's shards holds, and what its checkpoints will hold.

    Raises UserError, before any model is read, where the recipe names no shards.
    """
    from mtbi.batches import plan_report
    from mtbi.batches.augment import Augmentation
    from mtbi.batches.plan import Plan
    from mtbi.engine import memory, needs
    from mtbi.engine.inputs import open_training_shards
    from mtbi.llm.chat_format import read_chat
    from mtbi.model.frame_counts import FrameGeometry

    if not recipe.data.shards:
        raise UserError(
            "data.shards is empty: name the folders made by `mtbi data shard`, for example data.shards=[shards/train]"
        )
    shards = open_training_shards(recipe.data.shards, recipe, read_chat(recipe))
    needs.check_augmentation(recipe, shards.index)
    plan = Plan(shards.index, recipe, FrameGeometry.from_config(recipe.model))
    augmentation = Augmentation.of(recipe, plan.geometry, shards)
    epoch = plan_report.report(plan, recipe.train.steps)
    checkpoint = memory.checkpoint_of(recipe, memory.sizes_of(recipe))
    if json:
        print_json({**epoch.to_json(), "trained": checkpoint.parts, "checkpoint_bytes": checkpoint.bytes})
    else:
        print(plan_report.render(epoch, plan, recipe.train.steps))
        print(f"checkpoints     {checkpoint}")
        if augmentation:
            print(f"augmentation    {augmentation}")


def add_show(group: Group) -> None:
    """`mtbi recipe show`."""
    command = add_command(
        group, "show", run_show, "mtbi recipe show demo train.steps=100", "mtbi recipe show demo --json | jq .train"
    )
    command.add_argument("recipe", nargs="?", default="demo", help="a recipe's file, or the name of a shipped one")
    add_overrides(command)
    add_json(command)


def run_show(options: Options) -> None:
    """Print a recipe with everything filled in, and where each value comes from."""
    from mtbi import recipe as recipes

    if options.json:
        print_json(recipes.to_dict(recipes.load(options.recipe, options.overrides)))
    else:
        print(recipes.annotated(options.recipe, options.overrides), end="")


def add_fields(group: Group) -> None:
    """`mtbi recipe fields`."""
    add_command(group, "fields", run_fields)


def run_fields(_options: Options) -> None:
    """Print every field of a recipe as Markdown (docs/recipe.md is this text)."""
    from mtbi import recipe as recipes

    print("# Fields of a recipe\n\nPrinted by `mtbi recipe fields` from `mtbi/recipe/sections/`.\n")
    print("| field | type | default | meaning |\n|---|---|---|---|")
    for field in recipes.reference():
        default = f"`{field.default}`" if field.default not in ("", [], {}) else ""
        print(f"| `{field.path}` | {field.kind} | {default} | {field.note} |")
