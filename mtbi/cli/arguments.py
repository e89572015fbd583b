"""The parts that all commands share: the parser, types of options, common options, and messages for system errors."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtbi.errors import UserError

Options = argparse.Namespace
if TYPE_CHECKING:
    from mtbi.corpus.manifest import ManifestSlice

    Group = argparse._SubParsersAction["Parser"]
else:
    Group = argparse._SubParsersAction

REMEDIES: dict[type[OSError], str] = {
    FileExistsError: "a folder is needed there, choose another name or move the file away",
    NotADirectoryError: "a file stands where a folder is needed, choose another name or move it away",
    IsADirectoryError: "a file is needed there, choose another name",
    FileNotFoundError: "check the path",
    PermissionError: "choose another path, or change the rights",
}


class Parser(argparse.ArgumentParser):
    """Keeps the lines of examples, raises UserError for a wrong command line, and makes some help texts only to print them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})
        self._late_helps: list[tuple[argparse.Action, Callable[[], str]]] = []

    def set_help(self, action: argparse.Action, text: Callable[[], str]) -> None:
        """Give an argument a help text whose names come from a table that takes time to import."""
        self._late_helps.append((action, text))

    def format_help(self) -> str:
        """The help of the command."""
        for action, text in self._late_helps:
            action.help = text()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """The same form as all other messages."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Options:
    """The options of a command line. Raises UserError for a wrong one."""
    options, loose = parser.parse_known_args(arguments)
    if loose:  # after an option argparse takes no further `key=value` and no further words of a prompt
        target = next((name for name in ("overrides", "prompt") if name in options), None)
        if target is None or any(word.startswith("-") for word in loose):
            parser.error(f"unrecognized arguments: {' '.join(loose)}")
        setattr(options, target, [*getattr(options, target), *loose])
    return options


def add_group(commands: Group, name: str, text: str) -> Group:
    """A group of subcommands, such as `mtbi data …`."""
    return commands.add_parser(name, help=text).add_subparsers(required=True, metavar="COMMAND")


def add_command(group: Group, name: str, function: Callable[[Options], int | None], *examples: str) -> Parser:
    """A command that calls `function`, whose docstring is its help."""
    text = function.__doc__
    epilog = "\n  ".join(["examples:", *examples]) if examples else None
    command = group.add_parser(name, help=text, description=text, epilog=epilog)
    command.set_defaults(function=function)
    return command


def add_json(command: Parser) -> None:
    """`--json`."""
    command.add_argument("--json", action="store_true", help="one JSON document, for scripts")


def print_json(record: Any) -> None:
    """Print the one document of a command with `--json`."""
    print(json.dumps(record, indent=1, ensure_ascii=False))


def add_overrides(command: Parser) -> None:
    """Words `key=value`."""
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="change fields of the recipe")


def add_recipe(command: Parser) -> None:
    """`--recipe` and words `key=value`."""
    command.add_argument("--recipe", default="demo", help="a recipe's file, or the name of a shipped one (default: demo)")
    add_overrides(command)


def add_slice(command: Parser, whole: str = "the manifest") -> None:
    """`--part`."""
    command.add_argument("--part", default="", metavar="I/N", help=f"only this slice of {whole}, for array jobs")


def chosen_slice(options: Options) -> ManifestSlice | None:
    """The slice of `--part`; None without it. Raises UserError for another form."""
    from mtbi.corpus.manifest import ManifestSlice

    return ManifestSlice.parse(options.part) if options.part else None


def add_run(command: Parser) -> None:
    """A trained run, one of its checkpoints, and a device."""
    command.add_argument("run", type=Path, help="the run's folder (run_dir of its recipe)")
    add_checkpoint(command)
    command.add_argument("--device", default="", help="cpu or cuda (default: a GPU if there is one)")


def add_checkpoint(command: Parser) -> None:
    """`--checkpoint`."""
    command.add_argument("--checkpoint", default="best", help="best (default), latest, or a checkpoint's folder")


def above_zero(text: str) -> float:
    """The type of an option that is an amount."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def at_least_zero(text: str) -> float:
    """The type of an option that is an amount or 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, not {text!r}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a count."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal():
            hint = ", and key=value stands before it" if "=" in text else ""
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}{hint}")
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    return read


def explain(error: OSError) -> str:
    """The path, the operating system's reason, and what to do."""
    path = error.filename2 or error.filename
    if not (path and error.strerror):
        return str(error)
    remedy = REMEDIES.get(type(error), "check the path, and the space on its disk")
    return f"{path}: {error.strerror[0].lower()}{error.strerror[1:]}; {remedy}"
