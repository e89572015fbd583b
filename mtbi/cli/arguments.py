"""What the command line is made of: a parser that raises UserError, types of options, and words for the system's errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mtbi.errors import UserError

REMEDIES: dict[type[OSError], str] = {
    FileExistsError: "a folder is needed there, choose another name or move the file away",
    NotADirectoryError: "a file stands where a folder is needed, choose another name or move it away",
    IsADirectoryError: "a file is needed there, choose another name",
    FileNotFoundError: "check the path",
    PermissionError: "choose another place, or change the rights",
}


class Parser(argparse.ArgumentParser):
    """Keeps the lines of examples, and raises UserError for a wrong command line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """One message like all others."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line. Raises UserError for a wrong one."""
    options, loose = parser.parse_known_args(arguments)
    if loose:  # argparse does not take `key=value` or a prompt up again after an option
        wanted = next((name for name in ("overrides", "prompt") if name in options), None)
        if wanted is None or any(word.startswith("-") for word in loose):
            parser.error(f"unrecognized arguments: {' '.join(loose)}")
        setattr(options, wanted, [*getattr(options, wanted), *loose])
    return options


def above_zero(text: str) -> float:
    """The type of an option that is an amount."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a number of things."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal():
            hint = ", and key=value stands before it" if "=" in text else ""
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}{hint}")
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return value

    return read


def explain(error: OSError) -> str:
    """What the operating system refused, where, and what to do."""
    place = error.filename2 or error.filename
    if not (place and error.strerror):
        return str(error)
    remedy = REMEDIES.get(type(error), "check the path, and the space on its disk")
    return f"{place}: {error.strerror[0].lower()}{error.strerror[1:]}; {remedy}"
