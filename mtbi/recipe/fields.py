"""The fields of a section of the recipe: what each means, and which values it may take."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class FieldRules:
    """What a field means, and which values it may take. Limits hold for each item of a list or mapping too."""

    note: str = ""  #: its line in `mtbi recipe fields`
    choices: tuple[str, ...] = ()  #: the words that a text field may be, or that may stand for a list; empty = any text
    entry_points: str = ""  #: group of entry points in which installed packages add to `choices`
    minimum: float | None = 0  #: smallest number; None = any
    maximum: float | None = None  #: largest number; None = any


def setting(default: Any, note: str, **limits: Any) -> Any:
    """A dataclass field with its rules. A list or mapping given as `default` is copied for each instance."""
    metadata = {"rules": FieldRules(note, **limits)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def fields_of(section: type) -> list[tuple[Any, Any]]:
    """(field, type) of each field of a section, in order."""
    hints = get_type_hints(section)
    return [(entry, hints[entry.name]) for entry in fields(section)]


def rules_of(entry: Any) -> FieldRules:
    """The rules of a dataclass field; one without any of its own has the default ones."""
    return entry.metadata.get("rules", FieldRules())


def type_name(hint: Any) -> str:
    """A field's type as people write it: `int`, `list[str]`, `dict[str, EncoderConfig]`."""
    if isinstance(hint, UnionType):
        return " or ".join(map(type_name, get_args(hint)))
    if get_origin(hint) is None:
        return hint.__name__
    return f"{get_origin(hint).__name__}[{', '.join(map(type_name, get_args(hint)))}]"
