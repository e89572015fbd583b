"""Completion by the Tab key: commands, recipes, their fields and values.

The shell runs `mtbi` with `_ARGCOMPLETE` in its environment. Only then is argcomplete imported, if it is installed.
"""

from __future__ import annotations

import os
from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def answer(parser: ArgumentParser) -> None:
    """Print completions and end the process, if a shell asks for them."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    with suppress(ImportError):
        from argcomplete import CompletionFinder

        class Finder(CompletionFinder):
            """Also completes `key=value` after an option (see `arguments.parse`)."""

            def collect_completions(self, active_parsers: list[Any], parsed_args: Any, cword_prefix: str) -> list[str]:
                words = super().collect_completions(active_parsers, parsed_args, cword_prefix)
                if not words and any(action.dest == "overrides" for action in active_parsers[-1]._actions):
                    words = [field for field in fields(cword_prefix) if field.startswith(cword_prefix)]
                return words

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


def yaml_files(folder: Path, prefix: str) -> list[str]:
    """Names of the YAML files that are shipped in a folder, and the user's own YAML files."""
    from argcomplete.completers import FilesCompleter

    return [*(path.stem for path in folder.glob("*.yaml")), *FilesCompleter(("yaml", "yml"))(prefix)]


def recipes(prefix: str, **_: Any) -> list[str]:
    """Completions of a recipe."""
    from mtbi.recipe import SHIPPED

    return yaml_files(SHIPPED, prefix)


def libraries(prefix: str, **_: Any) -> list[str]:
    """Completions of a task library."""
    from mtbi.answers.task_library import LIBRARY

    return yaml_files(LIBRARY, prefix)


def fields(prefix: str, **_: Any) -> list[str]:
    """`key=` of every field of a recipe; after `key=`, the values that the field may have."""
    from mtbi.recipe import CHOICES, reference

    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in CHOICES.get(key, ())]
    return [f"{field.path}=" for field in reference()]


#: By the name of the argument.
COMPLETERS = {"recipe": recipes, "overrides": fields, "library": libraries}
