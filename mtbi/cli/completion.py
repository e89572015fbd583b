"""The Tab key: argcomplete, where it is installed, asks this module for recipes, their fields and values.

argcomplete runs `mtbi` with `_ARGCOMPLETE` in its environment; nothing is imported otherwise.
"""

from __future__ import annotations

import os
from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def answer(parser: ArgumentParser) -> None:
    """Answer the shell and end the process, if it is a shell that asks."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    with suppress(ImportError):
        from argcomplete import CompletionFinder

        class Finder(CompletionFinder):
            """Also completes `key=value` after an option, where argparse takes no further words (see `arguments.parse`)."""

            def collect_completions(self, active_parsers: list[Any], parsed_args: Any, cword_prefix: str) -> list[str]:
                found = super().collect_completions(active_parsers, parsed_args, cword_prefix)
                if not found and any(action.dest == "overrides" for action in active_parsers[-1]._actions):
                    found = [field for field in fields(cword_prefix) if field.startswith(cword_prefix)]
                return found

        for action in actions(parser):
            if action.dest in COMPLETERS:
                action.completer = COMPLETERS[action.dest]  # type: ignore[attr-defined]
        Finder()(parser)


def actions(parser: ArgumentParser) -> Iterator[Action]:
    """Every argument of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)


def named(folder: Path, prefix: str) -> list[str]:
    """What is shipped in a folder of YAML files, by name, and the user's own files."""
    from argcomplete.completers import FilesCompleter

    return [*(path.stem for path in folder.glob("*.yaml")), *FilesCompleter(("yaml", "yml"))(prefix)]


def recipes(prefix: str, **_: Any) -> list[str]:
    """Recipes."""
    from mtbi.recipe import SHIPPED

    return named(SHIPPED, prefix)


def libraries(prefix: str, **_: Any) -> list[str]:
    """Task libraries."""
    from mtbi.answers.task_library import LIBRARY

    return named(LIBRARY, prefix)


def fields(prefix: str, **_: Any) -> list[str]:
    """`key=` of every field of a recipe, and the values of those that are chosen from a few."""
    from mtbi.recipe import CHOICES, reference

    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in CHOICES.get(key, ())]
    return [f"{field.path}=" for field in reference()]


COMPLETERS = {"recipe": recipes, "overrides": fields, "library": libraries}
