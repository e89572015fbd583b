"""Tasks and the wordings in which they are asked, read from YAML files.

tasks:
  summary:
    description: One sentence that says what it is about.
    train: ["Summarise this in one sentence.", …]     # may be used in speech training
    heldout: ["What is the gist?", …]                 # kept for measuring prompt generalisation
    form: one|two                                     # optional: regular expression of an answer in the right form
    scorer: exact                                     # optional: exact (default), wer, wer_english, cer, bleu or similarity
    max_new_tokens: 64                                # optional: longest answer
    variables: {language: [German, French]}           # optional: fills {language} in every wording
    answers: transcript                               # optional: llm (default), gold or transcript
    unfiltered: [truncated]                           # optional: rules of behaviour.filter that are not for this task
    follow_ups: [["And in a word?", "Shorter."]]      # optional: further prompts after the answer, each in some wordings
    supervised: all                                   # optional: answers to learn from: all (default) or the last
constraints:                                          # optional: appended to a wording, they ask for a form of the answer
  capitals:
    train: ["Answer in capital letters."]
    form: "[^a-z]+"
    tasks: [summary]                                  # optional: tasks that it applies to (default: all of the file)

Other names in braces are fields of the utterance's line in the manifest (`mtbi.answers.questions.fields_in`).
A task under a constraint is a task of its own, `summary/capitals`. It is chosen by name or pattern (`*/capitals`) only, and
has no follow-ups.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields, replace
from fnmatch import filter as matching
from functools import cached_property
from itertools import product
from pathlib import Path

import yaml

from mtbi import plugins
from mtbi.answers import filters
from mtbi.errors import UserError
from mtbi.metrics import SCORERS
from mtbi.text_units import nfc

LIBRARY = Path(__file__).parent / "library"
SOURCES = ("llm", "gold", "transcript")  #: of answers
SUPERVISED = ("all", "last")  #: answers of a dialogue that are learnt


@dataclass(frozen=True)
class Task:
    """One task. Wording number w is `wordings[w]`. Wordings from `training_wordings` on are held out of training."""

    name: str
    description: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    form: str = ""  #: regular expression that matches every answer in the right form, right or wrong; empty = unknown
    scorer: str = "exact"
    max_new_tokens: int = 0  #: 0 = the recipe's `behaviour.max_new_tokens`
    variables: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    answers: str = "llm"  #: `llm`, `gold` = the corpus's right ones, `transcript` = the transcript itself
    unfiltered: tuple[str, ...] = ()  #: rules of `behaviour.filter` that do not apply
    follow_ups: tuple[tuple[str, ...], ...] = ()  #: the wordings of each further prompt, variables filled
    supervised: str = "all"  #: answers of a dialogue with follow-ups that are learnt: `all`, or the `last`

    @cached_property
    def wordings(self) -> tuple[str, ...]:
        """Training wordings, then held-out ones, each variable filled in every way."""
        return (*self.expand(self.train), *self.expand(self.heldout))

    def expand(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """`texts` with every combination of the variables' values."""
        filled = []
        for text in texts:
            used = [name for name in self.variables if f"{{{name}}}" in text]
            for values in product(*(self.variables[name] for name in used)):
                wording = text
                for name, value in zip(used, values, strict=True):
                    wording = wording.replace(f"{{{name}}}", value)
                filled.append(wording)
        return tuple(filled)

    @cached_property
    def training_wordings(self) -> int:
        """The number of wordings that training may use."""
        return len(self.expand(self.train))

    def choices(self, which: str) -> range:
        """The numbers of the `train`, `heldout` or `all` wordings. Raises UserError for another word."""
        first, total = self.training_wordings, len(self.wordings)
        ranges = {"train": range(first), "heldout": range(first, total), "all": range(total)}
        if which not in ranges:
            raise UserError(f"behaviour.wordings: {which!r} is not one of {', '.join(ranges)}")
        return ranges[which]


def locate(name: str) -> Path:
    """The file of a library, by a shipped name, a path, or an installed name. Raises UserError for anything else."""
    shipped = {path.stem: path for path in sorted(LIBRARY.glob("*.yaml"))}
    if name not in shipped and Path(name).is_file():
        return Path(name)
    library = plugins.find(plugins.TASK_LIBRARIES, name, shipped, "behaviour.library: no such file, and the task library")
    return Path(library() if callable(library) else library)


def parse_task(where: str, name: str, entry: object) -> Task:
    """The task of one entry of a library file. Raises UserError, which begins with `where`, for a wrong entry."""
    allowed = [f.name for f in fields(Task) if f.name != "name"]
    if not isinstance(entry, dict):
        raise UserError(f"{where}: task {name!r} must hold the keys {', '.join(allowed)}")
    for key in entry:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            raise UserError(
                f"{where}: task {name!r} has an unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    for part in ("train", "heldout", "unfiltered"):
        texts = entry.get(part, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: task {name!r}: {part} must be a list of texts")
    if not entry.get("train"):
        raise UserError(f"{where}: task {name!r} has no training wording (`train`)")
    if entry.get("scorer", "exact") not in SCORERS:
        raise UserError(f"{where}: task {name!r}: scorer {entry['scorer']!r} is not one of {', '.join(SCORERS)}")
    if entry.get("answers", "llm") not in SOURCES:
        raise UserError(f"{where}: task {name!r}: answers {entry['answers']!r} is not one of {', '.join(SOURCES)}")
    filters.check_names(entry.get("unfiltered", ()), f"{where}: task {name!r}: unfiltered")
    try:
        re.compile(str(entry.get("form", "")))
    except re.error as error:
        raise UserError(f"{where}: task {name!r}: form is not a regular expression: {error}") from error
    limit = entry.get("max_new_tokens", 0)
    if type(limit) is not int or limit < 0:
        raise UserError(f"{where}: task {name!r}: max_new_tokens must be a whole number of tokens, not {limit!r}")
    given = entry.get("variables") or {}
    if not isinstance(given, dict) or not all(isinstance(values, list) and values for values in given.values()):
        raise UserError(f"{where}: task {name!r}: variables must look like {{language: [German, French]}}")
    variables = {str(key): tuple(nfc(str(value)) for value in values) for key, values in given.items()}
    if entry.get("supervised", "all") not in SUPERVISED:
        raise UserError(f"{where}: task {name!r}: supervised {entry['supervised']!r} is not one of {', '.join(SUPERVISED)}")
    settings = {key: entry[key] for key in ("form", "scorer", "max_new_tokens", "answers", "supervised") if key in entry}
    task = Task(
        str(name),
        str(entry.get("description", "")),
        tuple(map(nfc, entry["train"])),
        tuple(map(nfc, entry.get("heldout", ()))),
        variables=variables,
        unfiltered=tuple(entry.get("unfiltered", ())),
        **settings,
    )
    follow_ups = parse_follow_ups(where, task.name, entry.get("follow_ups", []))
    task = replace(task, follow_ups=tuple(task.expand(wordings) for wordings in follow_ups))
    twice = sorted({text for text in task.wordings if task.wordings.count(text) > 1})
    if twice:
        raise UserError(
            f"{where}: task {name!r} has the wording {twice[0]!r} twice; held-out wordings must differ from training ones"
        )
    return task


def parse_follow_ups(where: str, name: str, entry: object) -> list[tuple[str, ...]]:
    """The wordings of each follow-up of a task. A single text is one wording. Raises UserError for anything else."""
    entries = [[each] if isinstance(each, str) else each for each in entry] if isinstance(entry, list) else [None]
    for wordings in entries:
        texts = wordings if isinstance(wordings, list) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(
                f"{where}: task {name!r}: follow_ups must be a list of further prompts, each a text or a list of wordings"
            )
    return [tuple(map(nfc, wordings)) for wordings in entries if wordings]


def load(libraries: list[str]) -> dict[str, Task]:
    """The tasks of one or more libraries by name. Raises UserError where a file is wrong or two tasks share a name."""
    tasks: dict[str, Task] = {}
    for library in libraries:
        path = locate(library)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not isinstance(content.get("tasks"), dict):
            raise UserError(f"{path}: a task library holds `tasks:` with one entry for each task")
        for name, entry in content["tasks"].items():
            if name in tasks:
                raise UserError(f"{path}: task {name!r} is already defined in another library")
            tasks[str(name)] = parse_task(str(path), name, entry)
        tasks |= constrained(str(path), {name: tasks[str(name)] for name in content["tasks"]}, content.get("constraints") or {})
    return tasks


def constrained(where: str, tasks: dict[str, Task], entries: object) -> dict[str, Task]:
    """The tasks of one file under each of its constraints.

    A wording is a task's wording and a constraint's wording. Training uses it if it may use both halves.
    """
    if not isinstance(entries, dict):
        raise UserError(f"{where}: `constraints:` holds one entry for each constraint")
    tasks_under_constraints = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("tasks", []), list):
            raise UserError(f"{where}: constraint {name!r}: tasks must be a list of names")
        names = entry.get("tasks") or list(tasks)
        if unknown := [task for task in names if task not in tasks]:
            raise UserError(f"{where}: constraint {name!r}: no task {unknown[0]!r} in this file")
        constraint = parse_task(where, name, {key: value for key, value in entry.items() if key != "tasks"})
        for task in (tasks[task_name] for task_name in names):
            pairs = list(product(task.train, constraint.train))
            new = [*product(task.heldout, constraint.train), *product((*task.train, *task.heldout), constraint.heldout)]
            tasks_under_constraints[f"{task.name}/{name}"] = replace(
                task,
                name=f"{task.name}/{name}",
                description=f"{task.description} {constraint.description}",
                train=tuple(map(" ".join, pairs)),
                heldout=tuple(map(" ".join, new)),
                form=constraint.form,
                scorer=constraint.scorer,
                follow_ups=(),
                supervised="all",
                answers="llm",  # neither the transcript nor the corpus's right answer follows the constraint
            )
    return tasks_under_constraints


def select(tasks: dict[str, Task], names: list[str]) -> list[Task]:
    """The tasks of these names and patterns. An empty list stands for all tasks without a constraint.

    Raises UserError with the nearest name for one that does not exist.
    """
    if not names:
        return [task for task in tasks.values() if "/" not in task.name]
    chosen = {name: matching(tasks, name) for name in names}
    for name, matches in chosen.items():
        if not matches:
            near = difflib.get_close_matches(name, tasks, 1)
            plain = ", ".join(task for task in tasks if "/" not in task)
            raise UserError(
                f"behaviour.tasks: no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {plain}")
            )
    return [tasks[name] for name in dict.fromkeys(name for matches in chosen.values() for name in matches)]
