"""Submits a run to Slurm: `slurm/train.sh` with its options and arguments filled in."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TEMPLATE = Path(__file__).parents[1] / "slurm" / "train.sh"
#: Options of sbatch that are passed on unchanged. The help lists the first three.
PASSED_ON = ("partition", "account", "qos", "constraint", "exclude", "reservation", "cpus-per-task", "mem")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m launcher", description="Train on a Slurm cluster.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    submit = commands.add_parser("submit", help="submit a run to Slurm", description="Submit a run to Slurm.")
    submit.add_argument("recipe", help="a recipe's file, or the name of a shipped one")
    submit.add_argument("overrides", nargs="*", metavar="key=value", help="change fields of the recipe")
    submit.add_argument("--nodes", type=int, default=1)
    submit.add_argument(
        "--gpus-per-node", type=int, default=8, help="one process each (default: 8); 0 = one process, on the CPU"
    )
    submit.add_argument(
        "--time", default="24:00:00", help="time limit of one start; the job requeues itself (default: 24:00:00)"
    )
    submit.add_argument(
        "--zero", default="ds_configs/zero3.json", help="DeepSpeed configuration (default: ds_configs/zero3.json)"
    )
    submit.add_argument("--venv", default=".venv", help="virtual environment (default: .venv)")
    submit.add_argument("--name", default="", help="name of the job (default: the recipe's)")
    for option in PASSED_ON:
        submit.add_argument(
            f"--{option}", default="", help=argparse.SUPPRESS if option not in PASSED_ON[:3] else "passed on to sbatch"
        )
    submit.add_argument("--dry-run", action="store_true", help="print the script and stop")
    return parser


def render(options: argparse.Namespace, name: str) -> str:
    """The complete script. It can be submitted again without arguments."""
    wanted = {
        "job-name": options.name or name,
        "nodes": options.nodes,
        "ntasks-per-node": max(1, options.gpus_per_node),
        "gpus-per-node": options.gpus_per_node or None,
        "time": options.time,
        **{option: getattr(options, option.replace("-", "_")) or None for option in PASSED_ON},
    }
    header = [f"#SBATCH --{key}={value}" for key, value in wanted.items() if value is not None]
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not ((match := re.match(r"#SBATCH --([\w-]+)", line)) and match[1] in wanted)]
    last = max(number for number, line in enumerate(kept) if line.startswith("#SBATCH"))
    arguments = shlex.join(["--recipe", options.recipe, *options.overrides])
    settings = [
        f"export MTBI_ZERO={shlex.quote(options.zero)} MTBI_VENV={shlex.quote(options.venv)} MTBI_WHOLE_SCRIPT=1",
        f"set -- {arguments}",
    ]
    return "\n".join([*kept[: last + 1], *header, *settings, *kept[last + 1 :]]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    from mtbi import recipe as recipes
    from mtbi.cli.arguments import parse
    from mtbi.errors import UserError

    options = parse(build_parser(), arguments)
    try:
        recipe = recipes.load(options.recipe, options.overrides)  # a mistake is found now, not after hours in the queue
    except UserError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return 2
    script = render(options, recipe.name)
    if options.dry_run:
        print(script, end="")
        return 0
    try:
        done = subprocess.run(["sbatch"], input=script, text=True, check=False)
    except FileNotFoundError:
        print(
            "launcher: sbatch is not installed here; run this on a login node of the cluster, or add --dry-run", file=sys.stderr
        )
        return 2
    return done.returncode
