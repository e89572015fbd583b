"""Nested dictionaries, as YAML gives them, to sections of the recipe. Wrong keys and values raise UserError with their path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from math import isfinite
from types import UnionType
from typing import Any, get_args, get_origin

from mtbi import plugins
from mtbi.errors import UserError
from mtbi.recipe.fields import FieldRules, fields_of, rules_of


def build(section: type, values: Any, path: str = "") -> Any:
    """An instance of the dataclass `section` from nested dictionaries. `path` is the section's own path in the recipe.

    Raises UserError for an unknown key (with the nearest one) and for a wrong type or value.
    """
    if values is None:  # a section whose lines are all commented out
        values = {}
    if not isinstance(values, dict):
        keys = ", ".join(field.name for field in fields(section))
        raise UserError(f"{path} is a section with keys of its own ({keys}), not {values!r}")
    known = {field.name: (hint, rules_of(field)) for field, hint in fields_of(section)}
    built = {}
    for key, value in values.items():
        key_path = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise UserError(f"unknown key {key_path!r}: {nearest(str(key), known, prefix=f'{path}.' if path else '')}")
        hint, rules = known[key]
        built[key] = convert(hint, value, key_path, rules)
    return section(**built)


def convert(hint: Any, value: Any, path: str, rules: FieldRules) -> Any:
    """A value of the annotated type: a section, a list or mapping, or a plain value."""
    if isinstance(hint, UnionType):  # a list, or a word in its place
        hint = str if isinstance(value, str) else get_args(hint)[0]
    if is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if get_origin(hint) is list:
        (kind,) = get_args(hint)
        if not isinstance(value, list):
            example = f"[{{{fields(kind)[0].name}: …}}]" if is_dataclass(kind) else "[a, b]"
            raise UserError(f"{path} must be a list, for example {example}, not {value!r}")
        return [convert(kind, item, f"{path}[{number}]", rules) for number, item in enumerate(value)]
    if get_origin(hint) is dict:
        _, kind = get_args(hint)
        if not isinstance(value, dict):
            example = f"{{NAME: {{{fields(kind)[0].name}: …}}}}" if is_dataclass(kind) else "{a: 1}"
            raise UserError(f"{path} must be a mapping, for example {example}, not {value!r}")
        return {str(key): convert(kind, item, f"{path}.{key}", rules) for key, item in value.items()}
    return plain_value(hint, value, path, rules)


def plain_value(hint: Any, value: Any, path: str, rules: FieldRules) -> Any:
    """Text, a number, true or false."""
    if hint is Any:
        if not isinstance(value, str | bool | int | float):
            raise UserError(f"{path} must be text, a number, true or false, not {value!r}")
        return value
    if isinstance(value, bool) and {"on", "off"} <= {*rules.choices}:
        value = "on" if value else "off"  # YAML reads a bare on or off as true or false
    if hint is not bool and hint is not str:
        return number(hint, value, path, rules)
    if not isinstance(value, hint):
        example = "true or false" if hint is bool else 'text (write it in quotes, "…")'
        raise UserError(f"{path} must be {example}, not {value!r}")
    if rules.choices and value not in rules.choices:
        if not rules.entry_points:
            raise UserError(f"{path} is {value!r}: {nearest(str(value), rules.choices)}")
        plugins.locate(rules.entry_points, str(value), rules.choices, path)
    return value


def number(hint: type, value: Any, path: str, rules: FieldRules) -> int | float:
    """A number within its limits. YAML reads `1e-3` as text, so numbers may come as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        converted = float(value)
        if not isfinite(converted) or (hint is int and converted != int(converted)):
            raise ValueError
    except ValueError:
        raise UserError(f"{path} must be a {'whole ' if hint is int else ''}number, not {value!r}") from None
    if rules.minimum == 0 and converted < 0:
        raise UserError(f"{path} must not be negative, it is {value!r}")
    if rules.minimum is not None and converted < rules.minimum:
        raise UserError(f"{path} must be at least {rules.minimum:g}, not {value!r}")
    if rules.maximum == 1 and converted > 1:
        raise UserError(f"{path} is a share between 0 and 1, it is {value!r}")
    if rules.maximum is not None and converted > rules.maximum:
        raise UserError(f"{path} must be at most {rules.maximum:g}, not {value!r}")
    return int(converted) if hint is int else converted


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    names = list(known)
    close = get_close_matches(word, names, 1, cutoff=0.5)
    return f"did you mean {prefix}{close[0]}?" if close else f"choose one of {', '.join(names)}."
