"""Keys of the recipe that have a new name. The old ones are accepted for one version."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from mtbi.errors import UserError

#: Old path: new path.
RENAMED = {"plan.window_samples": "plan.window_utterances"}
log = logging.getLogger(__name__)


def with_new_names(values: dict[str, Any], note: bool = False) -> dict[str, Any]:
    """A recipe's nested dictionaries with the new names of keys. With `note`, each old name is logged once in a process.

    Raises UserError where both names of a key are given.
    """
    for old, new in RENAMED.items():
        *parents, key = old.split(".")
        section = section_at(values, parents)
        if not isinstance(section, dict) or key not in section:
            continue
        *new_parents, new_key = new.split(".")
        beside = section_at(values, new_parents)
        if isinstance(beside, dict) and new_key in beside:
            raise UserError(f"{old} is the old name of {new}, and both are given: remove {old}")
        values = changed(changed(values, parents, key), new_parents, new_key, section[key])
        if note:
            log_once(old, new)
    return values


def section_at(values: Any, path: list[str]) -> Any:
    """The section at a path; None where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def changed(values: dict[str, Any], path: list[str], key: str, *value: Any) -> dict[str, Any]:
    """A copy in which `key` of the section at `path` has the value, or without a value is absent."""
    if path:
        return {**values, path[0]: changed(values.get(path[0]) or {}, path[1:], key, *value)}
    rest = {name: item for name, item in values.items() if name != key}
    return {**rest, key: value[0]} if value else rest


@cache
def log_once(old: str, new: str) -> None:
    """Log that a key has a new name."""
    log.warning("%s is now called %s; the next version no longer accepts the old name", old, new)
