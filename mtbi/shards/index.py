"""The index of shards: every length that the plan needs, in tables that are read without the shards.

The index has three memory-mapped tables: `utterances.npy`, `branches.npy` (one row for each stored dialogue) and `words.npy`.
They take a few dozen bytes an utterance. `mtbi_index.json` holds the facts that all utterances share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mtbi.answers.store import StoredAnswer
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.shards import index_sums
from mtbi.shards.record import StoredUtterance, has_teacher

INDEX_NAME = "mtbi_index.json"
VERSIONS = (2, 3, 4)  # 3 where utterances have text around their sound, 4 where dialogues have several turns
UTTERANCE = np.dtype([("samples", "u4"), ("branches", "u2"), ("words", "u2"), ("first_branch", "u8"), ("first_word", "u8")])
#: The same with the number of tokens around the sound. Only indexes that need it have the column.
SURROUNDED = np.dtype([*UTTERANCE.descr, ("around", "u2")])
LENGTHS = ("task", "wording", "lead_tokens", "prompt_tokens", "answer_tokens")
BRANCH = np.dtype([*((name, "u2") for name in LENGTHS), ("heldout", "?"), ("truncated", "?")])
#: The same with the number of further turns. Their answers count as answer tokens, or as prompt tokens where not supervised.
CONVERSATION = np.dtype([*BRANCH.descr, ("further", "u2")])
WORD = np.dtype([("start", "u4"), ("end", "u4"), ("tokens", "u2")])  # samples, samples, LLM tokens
#: The layouts that each table may have.
TABLES = {"utterances": (UTTERANCE, SURROUNDED), "branches": (BRANCH, CONVERSATION), "words": (WORD,)}
SHARED_FACTS = ("prompt_first", "encoded")  # must be equal in all folders that are read together
NOT_STORED = {*TABLES, "origins"}  # fields of Index that are not in the JSON file


@dataclass(frozen=True)
class Origin:
    """A folder of shards that an index covers."""

    address: str
    shards: int  #: number of shards
    without_teacher: bool  #: some answers have no stored probabilities of the text LLM


@dataclass
class Index:
    """The lengths that the plan needs, and what all utterances share. The tables are memory-mapped."""

    fingerprint: str  #: of the LLM's vocabulary and of how its dialogues are built (`mtbi.llm.identity`)
    llm: str
    prefix_ids: list[int]
    end_id: int
    top_k: int  #: the largest number of teacher probabilities that an answer token has
    prompt_first: bool  #: prompts stand before the speech
    encoded: str  #: the encoder whose output is stored in place of the sound (`mtbi data encode`); empty = the sound itself
    feature_width: int  #: of that output; 0 without
    tasks: list[str]  #: `branches["task"]` is an index into this list
    shard_sizes: list[int]  #: utterances in each shard
    utterances: np.ndarray  #: (utterances,) UTTERANCE
    branches: np.ndarray  #: (stored dialogues,) BRANCH
    words: np.ndarray  #: (words,) WORD
    llm_size: str = ""  #: of the LLM that answered (`mtbi.llm.identity`); empty = not known
    new_tokens: list[str] = field(default_factory=list)  #: tokens added to the LLM's vocabulary (`mtbi.llm.vocabulary`)
    without_teacher: bool = False  #: some answers have no stored probabilities of the text LLM
    untimed_ids: bool = False  #: transcripts without word times are stored as LLM tokens too
    origins: list[Origin] = field(default_factory=list)  #: the folders, in the order of the shards; empty = not known

    @property
    def spoken_words(self) -> np.ndarray:
        """`(utterances with sound,)` the number of aligned words of each."""
        return self.utterances["words"][self.utterances["samples"] > 0]

    @property
    def has_sound(self) -> bool:
        """Whether any utterance has sound. The others are text alone."""
        return bool(self.utterances["samples"].any())

    @cached_property
    def source_ends(self) -> np.ndarray:
        """`(sources,)` one past the last utterance of each folder, in the order of `origins`."""
        shards = np.cumsum([origin.shards for origin in self.origins], dtype=np.int64)
        return np.cumsum([0, *self.shard_sizes])[shards]

    @property
    def source_names(self) -> list[str]:
        """A name of each folder, in the order of `origins`: the end of its address that no other has."""
        parts = [origin.address.replace("://", "/").strip("/").split("/") for origin in self.origins]
        ends = [["/".join(part[-length:]) for part in parts] for length in range(1, max(map(len, parts), default=0) + 1)]
        return next((names for names in ends if len(set(names)) == len(names)), [origin.address for origin in self.origins])

    def source_of(self, utterance: int) -> int:
        """The number of the folder that holds an utterance; 0 where the folders are not known."""
        return int(np.searchsorted(self.source_ends, utterance, side="right")) if self.origins else 0

    def difference(self, number: int, utterance: StoredUtterance) -> str | None:
        """What of a stored utterance differs from its rows, such as `samples`, `answers` or `words`; None if all agree."""
        samples, branches, words, first_branch, first_word = self.utterances[number].tolist()[: len(UTTERANCE.names or ())]
        if len(utterance.heard) != around_tokens(self.utterances[number]):
            return "texts around the sound"
        if utterance.features is None and len(utterance.waveform) != samples:
            return "samples"
        stored = in_layout(self.branches[first_branch : first_branch + branches], CONVERSATION).tolist()
        if [(self.tasks[task], *row) for task, *row in stored] != [(a.task, *branch_row(a)) for a in utterance.behaviours]:
            return "answers"
        return None if self.words[first_word : first_word + words].tolist() == word_rows(utterance) else "words"

    def facts(self) -> dict[str, Any]:
        """What `mtbi_index.json` holds."""
        return {column.name: getattr(self, column.name) for column in fields(self) if column.name not in NOT_STORED}


def in_layout(table: np.ndarray, layout: np.dtype) -> np.ndarray:
    """A copy of a table in another layout. Columns that it lacks are 0."""
    copy = np.zeros(len(table), layout)
    for column in set(layout.names or ()) & set(table.dtype.names or ()):
        copy[column] = table[column]
    return copy


def around_tokens(rows: np.ndarray) -> Any:
    """The tokens around the sound of UTTERANCE entries `(utterances,)`; 0 where the index has none."""
    return rows["around"].astype(np.int64) if "around" in (rows.dtype.names or ()) else np.zeros(rows.shape, np.int64)


def further_turns(branches: np.ndarray) -> int:
    """The turns after the first in BRANCH entries `(dialogues,)`; 0 where the index has none."""
    return int(branches["further"].sum(dtype="u8")) if "further" in (branches.dtype.names or ()) else 0


#: Facts that the indexes of earlier versions lack, with their values.
LATER_FACTS = {"llm_size": "", "without_teacher": False, "new_tokens": [], "untimed_ids": False}
FACT_TYPES = {column.name: str(column.type) for column in fields(Index) if column.name not in NOT_STORED}


def branch_row(answer: StoredAnswer) -> tuple[int, int, int, int, bool, bool, int]:
    """The row of a stored dialogue in the table `branches`, without its task."""
    turns = answer.turns
    learnt = sum(len(turn.answer_ids) for turn in turns if turn.supervised)
    others = sum(len(turn.prompt_ids) + len(turn.answer_ids) for turn in turns) - learnt
    truncated = any(turn.truncated for turn in turns)
    return (answer.wording, len(answer.before_speech_ids), others, learnt, answer.heldout, truncated, len(answer.further))


def word_rows(utterance: StoredUtterance) -> list[tuple[int, int, int]]:
    """The rows of an utterance in the table `words`."""
    times = zip(utterance.word_times.tolist(), utterance.word_ids, strict=True)
    return [(start, end, len(ids)) for (start, end), ids in times]


class IndexWriter:
    """Collects the rows of the three tables."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple]] = {name: [] for name in TABLES}
        self.tasks: dict[str, int] = {}
        self.top_k, self.without_teacher = 0, False

    def add(self, utterance: StoredUtterance) -> None:
        """Add an utterance, in the order of the shards."""
        branches, words = self.rows["branches"], self.rows["words"]
        counts = (len(utterance.behaviours), len(utterance.word_ids))
        starts = (len(branches), len(words))
        self.rows["utterances"].append((len(utterance.waveform), *counts, *starts, len(utterance.heard)))
        for answer in utterance.behaviours:
            task = self.tasks.setdefault(answer.task, len(self.tasks))
            branches.append((task, *branch_row(answer)))
            for turn in answer.turns:
                self.top_k = max(self.top_k, turn.topk_ids.shape[1])
                self.without_teacher |= turn.supervised and not has_teacher(turn)
        words += word_rows(utterance)

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the tables, then the JSON file. `facts` are those that the utterances do not say."""
        tables = {name: np.array(self.rows[name], layouts[-1]) for name, layouts in TABLES.items()}
        if not tables["utterances"]["around"].any():
            tables["utterances"] = in_layout(tables["utterances"], UTTERANCE)
        if not tables["branches"]["further"].any():
            tables["branches"] = in_layout(tables["branches"], BRANCH)
        for name, table in tables.items():
            np.save(folder / f"{name}.npy", table, allow_pickle=False)
        counted = {"tasks": list(self.tasks), "top_k": self.top_k, "without_teacher": self.without_teacher, "untimed_ids": True}
        write_index(folder, {**facts, **counted})


def write_index(folder: Path, facts: dict[str, Any]) -> None:
    """Write the JSON file, which makes a folder of shards complete. `facts` are `Index.facts`, with any shard sizes."""
    described = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    sizes = [shard["samples"] for shard in described["shards"]]
    columns = [np.load(folder / f"{name}.npy", mmap_mode="r").dtype.names or () for name in ("utterances", "branches")]
    version = VERSIONS[2 if "further" in columns[1] else int("around" in columns[0])]
    record = {"version": version, **facts, "shard_sizes": sizes, "utterances": sum(sizes)}
    record[index_sums.KEY] = index_sums.sums_of(folder, TABLES, record)
    (folder / INDEX_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def save_rows(index: Index, first: int, stop: int, folder: Path, facts: dict[str, Any]) -> None:
    """Write an index of the utterances `first` to `stop` of another index. `facts` are as in `write_index`."""
    utterances = index.utterances[first:stop].copy()
    tables = {"utterances": utterances}
    for table, start in (("branches", "first_branch"), ("words", "first_word")):
        rows = getattr(index, table)
        edges = [int(index.utterances[start][edge]) if edge < len(index.utterances) else len(rows) for edge in (first, stop)]
        tables[table] = rows[edges[0] : edges[1]]
        utterances[start] -= np.uint64(edges[0])
    for name, rows in tables.items():
        np.save(folder / f"{name}.npy", rows, allow_pickle=False)
    write_index(folder, facts)


def make_index(address: str, record: dict[str, Any], tables: Mapping[str, np.ndarray]) -> Index:
    """The index of one folder, from its JSON file and its tables. Raises UserError where they do not fit."""
    facts = LATER_FACTS | record
    if missing := sorted(set(FACT_TYPES) - set(facts)):
        raise UserError(f"{address}: {INDEX_NAME} has no {', '.join(missing)}; make the shards again.")
    if wrong := [name for name in FACT_TYPES if not has_type(facts[name], FACT_TYPES[name])]:
        raise UserError(f"{address}: {INDEX_NAME}: {wrong[0]} cannot be {facts[wrong[0]]!r}; make the shards again.")
    columns: dict[str, Any] = {name: facts[name] for name in FACT_TYPES} | dict(tables)
    index = Index(**columns)
    last = index.utterances[-1:]
    fits = len(index.utterances) == sum(index.shard_sizes) > 0 and all(
        int(last[first][0]) + int(last[count][0]) == len(tables[count])
        for first, count in (("first_branch", "branches"), ("first_word", "words"))
    )
    if not fits:
        raise UserError(f"{address}: the index does not fit the shards; make the shards again.")
    index.without_teacher |= not index.top_k
    index.origins = [Origin(address, len(index.shard_sizes), index.without_teacher)]
    return index


def has_type(value: Any, annotation: str) -> bool:
    """Whether a value from an index file fits the annotation of a field. Numbers are counts and token ids."""
    inner = annotation.removeprefix("list[").removesuffix("]")
    if inner != annotation:
        return isinstance(value, list) and all(has_type(item, inner) for item in value)
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return isinstance(value, {"str": str, "bool": bool}[annotation])


def in_memory(name: str, layout: np.dtype, rows: int) -> np.ndarray:
    """Space for a joined table."""
    return np.empty(rows, layout)


def concatenate(
    indexes: list[Index],
    addresses: list[str],
    several_teachers: bool = False,
    space: Callable[[str, np.dtype, int], np.ndarray] = in_memory,
) -> Index:
    """One index over several folders. Raises UserError where they were made for different LLMs.

    With `several_teachers` the LLMs that answered may differ in size. `space` makes the joined tables.
    """
    if len(indexes) == 1:
        return indexes[0]
    first = next((index for index in indexes if index.has_sound), indexes[0])  # text alone fits shards of any encoder
    for address, index in zip(addresses, indexes, strict=True):
        fitted = index if index.has_sound else replace(index, encoded=first.encoded)
        check_same_llm(fitted, address, first, first.origins[0].address, several_teachers)
    tasks = list(dict.fromkeys(task for index in indexes for task in index.tasks))
    layout = SURROUNDED if any(index.utterances.dtype == SURROUNDED for index in indexes) else UTTERANCE
    dialogues = CONVERSATION if any(index.branches.dtype == CONVERSATION for index in indexes) else BRANCH
    tables = {
        name: space(name, kind, sum(len(getattr(index, name)) for index in indexes))
        for name, kind in (("utterances", layout), ("branches", dialogues), ("words", WORD))
    }
    used = dict.fromkeys(TABLES, 0)
    for index in indexes:
        utterances, branches = in_layout(index.utterances, layout), in_layout(index.branches, dialogues)
        utterances["first_branch"] += used["branches"]
        utterances["first_word"] += used["words"]
        branches["task"] = np.array([tasks.index(task) for task in index.tasks], "u2")[branches["task"]]
        for name, table in zip(TABLES, (utterances, branches, index.words), strict=True):
            tables[name][used[name] : used[name] + len(table)] = table
            used[name] += len(table)
    joined: dict[str, Any] = tables
    return replace(
        first,
        tasks=tasks,
        top_k=max(index.top_k for index in indexes),
        new_tokens=max((index.new_tokens for index in indexes), key=len),
        without_teacher=any(index.without_teacher for index in indexes),
        untimed_ids=all(index.untimed_ids for index in indexes),
        origins=[origin for index in indexes for origin in index.origins],
        shard_sizes=[size for index in indexes for size in index.shard_sizes],
        **joined,
    )


def check_same_llm(index: Index, address: str, first: Index, first_address: str, several_teachers: bool) -> None:
    """Raises UserError where two folders cannot be read together."""
    facts = index.facts(), first.facts()
    if identity.other_dialogues(*facts) or any(getattr(index, fact) != getattr(first, fact) for fact in SHARED_FACTS):
        raise UserError(f"{address} and {first_address} were made for different LLMs or settings; make one of them again.")
    if not several_teachers and identity.other_llm(*facts):
        raise UserError(
            f"{address} and {first_address} hold answers of LLMs of different sizes ({index.llm_size or index.llm}; "
            f"{first.llm_size or first.llm}); make one of them again, or set behaviour.allow_other_teacher=true if that is "
            "meant."
        )
