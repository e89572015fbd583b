"""Tasks and the wordings in which they are asked, read from YAML files.

tasks:
  summary:
    description: One sentence that says what it is about.
    train: ["Summarise this in one sentence.", …]     # may be used in speech training
    heldout: ["What is the gist?", …]                 # kept for measuring prompt generalisation
    scorer: exact                                     # optional: exact (default) or wer
    max_new_tokens: 64                                # optional: longest answer
    variables: {language: [German, French]}           # optional: fills {language} in every wording
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path

import yaml

from mtbi.errors import UserError

LIBRARY = Path(__file__).parent / "library"
SCORERS = ("exact", "wer")


@dataclass(frozen=True)
class Task:
    """One task. Wording number w is `wordings[w]`; from `len(train)` on they are held out of training."""

    name: str
    description: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    scorer: str = "exact"
    max_new_tokens: int = 0  #: 0 = the recipe's `behaviour.max_new_tokens`
    variables: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def wordings(self) -> tuple[str, ...]:
        """Training wordings, then held-out ones, each variable filled in every way."""
        return (*self.expand(self.train), *self.expand(self.heldout))

    def expand(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """`texts` with every combination of the variables' values."""
        filled = []
        for text in texts:
            used = [name for name in self.variables if f"{{{name}}}" in text]
            for values in product(*(self.variables[name] for name in used)):
                one = text
                for name, value in zip(used, values, strict=True):
                    one = one.replace(f"{{{name}}}", value)
                filled.append(one)
        return tuple(filled)

    @property
    def training_wordings(self) -> int:
        """How many of the wordings may be used in training."""
        return len(self.expand(self.train))

    def choices(self, which: str) -> range:
        """The numbers of the `train`, `heldout` or `all` wordings. Raises UserError for another word."""
        first, total = self.training_wordings, len(self.wordings)
        ranges = {"train": range(first), "heldout": range(first, total), "all": range(total)}
        if which not in ranges:
            raise UserError(f"behaviour.wordings: {which!r} is not one of {', '.join(ranges)}")
        return ranges[which]


def locate(name: str) -> Path:
    """The file of a library: a shipped name or a path."""
    shipped = LIBRARY / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in LIBRARY.glob("*.yaml")))
        raise UserError(f"behaviour.library: {name!r} is neither a file nor a shipped library ({names})")
    return path


def parse_task(where: str, name: str, entry: object) -> Task:
    """Check one entry of a library file."""
    allowed = [f.name for f in fields(Task) if f.name != "name"]
    if not isinstance(entry, dict):
        raise UserError(f"{where}: task {name!r} must hold the keys {', '.join(allowed)}")
    for key in entry:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            raise UserError(
                f"{where}: task {name!r} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    for part in ("train", "heldout"):
        texts = entry.get(part, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: task {name!r}: {part} must be a list of texts")
    if not entry.get("train"):
        raise UserError(f"{where}: task {name!r} has no training wording (`train`)")
    if entry.get("scorer", "exact") not in SCORERS:
        raise UserError(f"{where}: task {name!r}: scorer {entry['scorer']!r} is not one of {', '.join(SCORERS)}")
    limit = entry.get("max_new_tokens", 0)
    if type(limit) is not int or limit < 0:
        raise UserError(f"{where}: task {name!r}: max_new_tokens must be a whole number of tokens, not {limit!r}")
    given = entry.get("variables") or {}
    if not isinstance(given, dict) or not all(isinstance(values, list) and values for values in given.values()):
        raise UserError(f"{where}: task {name!r}: variables must look like {{language: [German, French]}}")
    variables = {str(key): tuple(map(str, values)) for key, values in given.items()}
    settings = {key: entry[key] for key in ("scorer", "max_new_tokens") if key in entry}
    task = Task(
        str(name),
        str(entry.get("description", "")),
        tuple(entry["train"]),
        tuple(entry.get("heldout", ())),
        variables=variables,
        **settings,
    )
    twice = sorted({text for text in task.wordings if task.wordings.count(text) > 1})
    if twice:
        raise UserError(
            f"{where}: task {name!r} has the wording {twice[0]!r} twice; held-out wordings must differ from training ones"
        )
    return task


def load(libraries: list[str]) -> dict[str, Task]:
    """The tasks of one or more libraries by name. Raises UserError where a file is wrong or two tasks share a name."""
    tasks: dict[str, Task] = {}
    for library in libraries:
        path = locate(library)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as YAML: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
            raise UserError(f"{path}: a task library holds `tasks:` with one entry for each task")
        for name, entry in content["tasks"].items():
            if name in tasks:
                raise UserError(f"{path}: task {name!r} is already defined in another library")
            tasks[str(name)] = parse_task(str(path), name, entry)
    return tasks


def select(tasks: dict[str, Task], names: list[str]) -> list[Task]:
    """The named tasks (all for an empty list). Raises UserError with the nearest name for one that does not exist."""
    for name in names:
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, 1)
            raise UserError(
                f"behaviour.tasks: no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else f" in {', '.join(tasks)}")
            )
    return [tasks[name] for name in names] if names else list(tasks.values())
