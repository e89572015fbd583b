"""Shards: MDS files with audio, word times and answers, and beside them an index of every length that the plan needs.

The index is three memory-mapped tables: `utterances.npy`, `branches.npy` (one row for each stored dialogue) and
`words.npy`, some dozens of bytes an utterance. Shards are read by random access; no shared memory is used, so a killed
run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tqdm import tqdm

from mtbi import object_store
from mtbi.answers.store import AnswerStore, StoredAnswer
from mtbi.audio import codec
from mtbi.corpus.check import refuse_other_duration
from mtbi.corpus.manifest import Utterance
from mtbi.errors import DamagedError, UnavailableError, UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat
from mtbi.shards import index_sums

INDEX_NAME = "mtbi_index.json"
VERSION = 2
UTTERANCE = np.dtype([("samples", "u4"), ("branches", "u2"), ("words", "u2"), ("first_branch", "u8"), ("first_word", "u8")])
LENGTHS = ("task", "wording", "lead_tokens", "prompt_tokens", "answer_tokens")
BRANCH = np.dtype([*((name, "u2") for name in LENGTHS), ("heldout", "?"), ("truncated", "?")])
WORD = np.dtype([("start", "u4"), ("end", "u4"), ("tokens", "u2")])  # samples, samples, LLM tokens
EVICTED_ATTEMPTS = 5  # fetches of one shard that other readers may drop before the cache counts as too small
READ_ATTEMPTS = 3  # reads of one utterance that the file system may refuse (a stale handle, a passing error) before it counts
READ_PAUSE_SECONDS = 1.0  # between them, growing
SHARED_FACTS = ("top_k", "prompt_first", "encoded")  # of all places that are read together, beside the LLM and its dialogues
LATER_FACTS = {"llm_size": ""}  # which the indexes of former versions lack
TABLES = {"utterances": UTTERANCE, "branches": BRANCH, "words": WORD}
COLUMNS = {"id": "str", "text": "str", "speaker": "str", "audio": "bytes", "answers": "json", "tensors": "bytes"}


@dataclass
class Index:
    """What the plan needs of a corpus; the tables are memory-mapped."""

    fingerprint: str  #: of the LLM's vocabulary and of how its dialogues are built (`mtbi.llm.identity`)
    llm: str
    prefix_ids: list[int]
    end_id: int
    top_k: int
    prompt_first: bool  #: prompts stand before the speech
    encoded: str  #: the encoder whose output is stored in place of the sound (`mtbi data encode`); empty = the sound itself
    feature_width: int  #: of that output; 0 without
    tasks: list[str]  #: `branches["task"]` counts in this list
    shard_sizes: list[int]  #: utterances in each shard
    utterances: np.ndarray
    branches: np.ndarray
    words: np.ndarray
    llm_size: str = ""  #: of the LLM that answered (`mtbi.llm.identity`); empty = not known

    def facts(self) -> dict[str, Any]:
        """All but the tables."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in TABLES}


@dataclass
class Sample:
    """One utterance as stored."""

    id: str
    text: str
    speaker: str
    waveform: np.ndarray  #: (samples,) float32 at 16 kHz; no samples where features are stored
    word_times: np.ndarray  #: (words, 2) samples; empty where the utterance is not aligned
    word_ids: list[np.ndarray]  #: LLM token ids of each word; without spaces, of the shortest stretch that is whole tokens
    behaviours: list[StoredAnswer]
    features: np.ndarray | None = None  #: (frames, width) float16, the encoder's output, where it is stored


def pack(utterance: Utterance, behaviours: list[StoredAnswer], wave: np.ndarray, chat: ChatFormat, kind: str) -> dict[str, Any]:
    """The columns of one utterance."""
    word_ids, word_times = chat.timed_ids(utterance.words or [])
    tensors = {
        "word_times": np.array(word_times, np.float64).reshape(-1, 2) * codec.SAMPLE_RATE,
        "word_ends": np.cumsum([len(ids) for ids in word_ids], dtype=np.int64),
        "word_ids": np.array([i for ids in word_ids for i in ids], np.int32),
        "lead_ends": np.cumsum([len(b.before_speech_ids) for b in behaviours], dtype=np.int64),
        "lead_ids": np.array([i for b in behaviours for i in b.before_speech_ids], np.int32),
        "prompt_ends": np.cumsum([len(b.after_speech_ids) for b in behaviours], dtype=np.int64),
        "prompt_ids": np.array([i for b in behaviours for i in b.after_speech_ids], np.int32),
        "answer_ends": np.cumsum([len(b.answer_ids) for b in behaviours], dtype=np.int64),
        "answer_ids": np.array([i for b in behaviours for i in b.answer_ids], np.int32),
        "topk_ids": np.concatenate([b.topk_ids for b in behaviours]).astype(np.int32),
        "topk_logprobs": np.concatenate([b.topk_logprobs for b in behaviours]).astype(np.float16),
    }
    tensors["word_times"] = np.clip(np.round(tensors["word_times"]), 0, len(wave)).astype(np.uint32)
    texts = ("task", "wording", "heldout", "prompt", "answer", "truncated", "gold")
    return {
        "id": utterance.id,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "audio": codec.encode(wave, kind),
        "answers": [{name: getattr(behaviour, name) for name in texts} for behaviour in behaviours],
        "tensors": save_tensors(tensors),
    }


def split(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Cut `values` at `ends`, the last of which is its length."""
    return np.split(values, ends[:-1]) if len(ends) else []


def unpack(columns: dict[str, Any]) -> Sample:
    """The inverse of `pack`."""
    t = load_tensors(columns["tensors"])
    parts = zip(
        columns["answers"],
        split(t["lead_ids"], t["lead_ends"]),
        split(t["prompt_ids"], t["prompt_ends"]),
        split(t["answer_ids"], t["answer_ends"]),
        split(t["topk_ids"], t["answer_ends"]),
        split(t["topk_logprobs"], t["answer_ends"]),
        strict=True,
    )
    behaviours = [
        StoredAnswer(
            **texts,
            before_speech_ids=lead.tolist(),
            after_speech_ids=prompt.tolist(),
            answer_ids=answer.tolist(),
            topk_ids=ids,
            topk_logprobs=logprobs,
        )
        for texts, lead, prompt, answer, ids, logprobs in parts
    ]
    word_ids = split(t["word_ids"], t["word_ends"])
    features = t.get("features")
    wave = codec.decode(columns["audio"]) if features is None else np.zeros(0, np.float32)
    return Sample(columns["id"], columns["text"], columns["speaker"], wave, t["word_times"], word_ids, behaviours, features)


class IndexWriter:
    """Collects the rows of the three tables."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple]] = {name: [] for name in TABLES}
        self.tasks: dict[str, int] = {}

    def add(self, sample: Sample) -> None:
        """One more utterance, in the order of the shards."""
        branches, words = self.rows["branches"], self.rows["words"]
        counts = (len(sample.behaviours), len(sample.word_ids))
        self.rows["utterances"].append((len(sample.waveform), *counts, len(branches), len(words)))
        for b in sample.behaviours:
            task = self.tasks.setdefault(b.task, len(self.tasks))
            lengths = len(b.before_speech_ids), len(b.after_speech_ids), len(b.answer_ids)
            branches.append((task, b.wording, *lengths, b.heldout, b.truncated))
        words += [(start, end, len(ids)) for (start, end), ids in zip(sample.word_times, sample.word_ids, strict=True)]

    def save(self, folder: Path, facts: dict[str, Any]) -> None:
        """Write the tables, then the JSON file."""
        for name, dtype in TABLES.items():
            np.save(folder / f"{name}.npy", np.array(self.rows[name], dtype), allow_pickle=False)
        write_index(folder, {**facts, "tasks": list(self.tasks)})


def write_index(folder: Path, facts: dict[str, Any]) -> None:
    """The JSON file that makes the shards of a folder complete; `facts` are all of an Index but shard sizes and tables."""
    described = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    sizes = [shard["samples"] for shard in described["shards"]]
    record = {"version": VERSION, **facts, "shard_sizes": sizes, "utterances": sum(sizes)}
    record[index_sums.KEY] = index_sums.sums_of(folder, TABLES, record)
    (folder / INDEX_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def remove(folder: Path) -> None:
    """Delete a folder that a killed run may have left."""
    shutil.rmtree(folder, ignore_errors=True)


def write(
    utterances: Iterable[Utterance],
    folder: Path,
    behaviours: AnswerStore,
    chat: ChatFormat,
    out: str,
    audio_kind: str = "flac",
    shard_bytes: int = 1 << 26,
    allow_other_teacher: bool = False,
) -> int:
    """Make shards in `out` (a folder or `s3://…`) of every utterance that has answers; returns how many there are.

    `folder` is the manifest's. Raises UserError where the answers are another LLM's, nothing is to be written, or `out`
    holds shards already.
    """
    for note in behaviours.notes:
        if reason := identity.difference(note, chat, allow_other_teacher):
            raise UserError(
                f"{behaviours.folder}: answers of {reason} ({note['llm']}) than the recipe's ({chat.tokenizer.name_or_path}); "
                "run `mtbi behave` with this recipe."
            )
    if object_store.is_remote(out):
        with tempfile.TemporaryDirectory(prefix="mtbi-shards-") as scratch:
            refuse_used(out, Path(scratch))
            local = Path(scratch) / "shards"
            count = write_local(utterances, folder, behaviours, chat, local, Path(out).name, audio_kind, shard_bytes)
            names = sorted(path.name for path in local.iterdir() if path.name != INDEX_NAME)
            object_store.upload(local, [*names, INDEX_NAME], out)
        return count
    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"{out}: not empty; shards go into a new folder. Choose another one, or delete it.")
    # Made under another name and renamed when complete, so that a killed run leaves no half of it behind under the right one.
    partial = Path(f"{out.rstrip('/')}.partial")
    remove(partial)
    count = write_local(utterances, folder, behaviours, chat, partial, Path(out).parent.name, audio_kind, shard_bytes)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    partial.replace(out)
    return count


def refuse_used(out: str, scratch: Path) -> None:
    """Raises UserError where a remote place holds shards: copies of them in caches would be mixed with the new ones."""
    try:
        object_store.fetch(f"{out.rstrip('/')}/{INDEX_NAME}", scratch / INDEX_NAME, retries=2)
    except object_store.NotFoundError:
        return
    raise UserError(f"{out}: holds shards already; choose another place, or delete them there and in the caches.")


def write_local(
    utterances: Iterable[Utterance],
    folder: Path,
    behaviours: AnswerStore,
    chat: ChatFormat,
    local: Path,
    label: str,
    audio_kind: str,
    shard_bytes: int,
) -> int:
    """Shards and index in a local folder; `label` stands beside the progress bar."""
    from streaming import MDSWriter

    index = IndexWriter()
    with MDSWriter(out=str(local), columns=COLUMNS, hashes=["xxh64"], size_limit=shard_bytes) as writer:
        for utterance in tqdm(utterances, desc=f"{label}: shards", unit="utterance", disable=None):
            if found := behaviours.get(utterance.id, utterance.text):
                path = Path(folder) / utterance.audio
                try:
                    wave = codec.read(path)
                    refuse_other_duration(utterance, len(wave) / codec.SAMPLE_RATE)
                except UserError as error:
                    raise UserError(
                        f"{path} (utterance {utterance.id}): {error}. Sort such files out with `mtbi data import jsonl`."
                    ) from error
                columns = pack(utterance, found, wave, chat, audio_kind)
                writer.write(columns)
                index.add(unpack(columns))
    if not index.rows["utterances"]:
        raise UserError(
            f"{behaviours.folder}: no answer is about an utterance of the manifest; run `mtbi behave` on this manifest."
        )
    facts = {
        **identity.facts_of(chat),
        "llm": behaviours.note["llm"],
        "llm_size": behaviours.note.get("llm_size", ""),
        "top_k": behaviours.note["top_k"],
        "prompt_first": behaviours.note.get("prompt_first", False),
        "encoded": "",
        "feature_width": 0,
    }
    index.save(local, facts)
    return len(index.rows["utterances"])


def touch(path: Path) -> None:
    """Mark a file as used now, by a clock that never says the same twice (the kernel's own stamps are milliseconds apart)."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def refused(path: Path, error: OSError) -> UserError:
    """What it means that the file system does not give a file that is there."""
    if isinstance(error, PermissionError):
        return UserError(f"{path}: may not be read ({error.strerror}); check its rights and those of its folders.")
    return UnavailableError(f"{path}: cannot be read now ({error.strerror or error}); check the file system that holds it.")


class Folder:
    """The shards of one place, fetched on demand into a cache."""

    def __init__(self, place: str, cache_dir: str, cache_limit_bytes: int, retries: int) -> None:
        self.place, self.retries, self.cache_limit_bytes = place.rstrip("/"), retries, cache_limit_bytes
        self.remote = object_store.is_remote(place)
        self.local = Path(cache_dir) / place.replace("://", "/").strip("/") if self.remote else Path(place)
        self.checked: set[int] = set()
        self.index = self._read_index()
        self.ends = np.cumsum(self.index.shard_sizes)
        self.readers = self._read_shard_list()
        # One lock a shard: while one is fetched, the others are read and fetched too.
        self.locks = [threading.Lock() for _ in self.readers]
        self.evicting = threading.Lock()

    def _file(self, name: str) -> Path:
        path = self.local / name
        if self.remote and not path.exists():
            object_store.fetch(f"{self.place}/{name}", path, self.retries)
        return path

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self._file(name)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.place}: no shards there ({name} is missing). Make them with `mtbi data shard`.") from None
        except OSError as error:
            raise refused(path, error) from error
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); copy it again or make the shards again.") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}: damaged (not a JSON object); copy it again or make the shards again.")
        return record

    def _read_index(self) -> Index:
        record = self._read_json(INDEX_NAME)
        if record.get("version") != VERSION:
            found = record.get("version")
            raise UserError(f"{self.place}: written by another version of mtbi ({found}); make the shards again.")
        tables = {name: self._read_table(name, dtype) for name, dtype in TABLES.items()}
        written, record = record, LATER_FACTS | record
        names = {one.name for one in fields(Index)} - set(TABLES)
        if missing := sorted(names - set(record)):
            raise UserError(f"{self.place}: {INDEX_NAME} has no {', '.join(missing)}; make the shards again.")
        if wrong := [name for name in names if not is_fact(name, record[name])]:
            raise UserError(f"{self.place}: {INDEX_NAME}: {wrong[0]} cannot be {record[wrong[0]]!r}; make the shards again.")
        facts: dict[str, Any] = {name: record[name] for name in names} | tables
        index = Index(**facts)
        last = index.utterances[-1:]
        fits = len(index.utterances) == sum(index.shard_sizes) > 0 and all(
            int(last[f"first_{one}"][0]) + int(last[many][0]) == len(tables[many])
            for one, many in (("branch", "branches"), ("word", "words"))
        )
        if not fits:
            raise UserError(f"{self.place}: the index does not fit the shards; make the shards again.")
        try:
            wrong = index_sums.damaged(self.local, TABLES, written)
        except OSError as error:
            raise refused(self.local, error) from error
        if wrong:
            name = INDEX_NAME if wrong[0] == index_sums.FACTS else f"{wrong[0]}.npy"
            raise UserError(
                f"{self.local / name}: damaged (its checksum is not the one in {INDEX_NAME}); copy it again or make the shards "
                "again."
            )
        return index

    def _read_table(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self._file(f"{name}.npy")
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
        except PermissionError as error:
            raise refused(path, error) from error
        except Exception as error:  # of a damaged header numpy raises whatever its parsers do
            raise UserError(f"{path}: cannot be read ({error}); make the shards again.") from error
        if table.dtype != dtype:
            raise UserError(f"{path}: not the table of an index; make the shards again.")
        return table

    def _read_shard_list(self) -> list[Any]:
        from streaming.base.format import reader_from_json

        described = self._read_json("index.json").get("shards")
        if not isinstance(described, list):
            raise UserError(f"{self.place}: index.json is not that of MDS shards; make the shards again.")
        if wrong := next(filter(None, map(wrong_with, described)), None):
            raise UserError(f"{self.place}: index.json is refused: {wrong}; make the shards again.")
        readers: list[Any] = [reader_from_json(str(self.local), "", shard) for shard in described]
        if [reader.samples for reader in readers] != self.index.shard_sizes:
            raise UserError(f"{self.place}: index.json and {INDEX_NAME} disagree; make the shards again.")
        return readers

    def _ready(self, shard: int) -> Any:
        """The reader of a shard whose file is here and whose hash is right."""
        from streaming.base.hashing import get_hash

        reader = self.readers[shard]
        path = self.local / reader.raw_data.basename
        with self.locks[shard]:
            if shard in self.checked and path.exists():
                if self.cache_limit_bytes and self.remote:
                    touch(path)  # used now: what was used longest ago is dropped first
                return reader
            for attempt in (1, 2):
                if not self._file(path.name).exists() and not self.remote:
                    raise self._missing(path)
                # Another reader of this cache may have dropped it just now: `columns` asks again.
                if get_hash("xxh64", path.read_bytes()) == reader.raw_data.hashes["xxh64"]:
                    break
                if attempt == 2 or not self.remote:
                    raise DamagedError(
                        f"{path}: damaged (its checksum is not the one in index.json); copy it again or make the shards again."
                    )
                path.unlink(missing_ok=True)  # fetched once more from the remote
            self.checked.add(shard)
            self._evict(path)
            return reader

    def _missing(self, path: Path) -> UserError:
        """What it means that a local shard is not there: it is lost, or the whole folder is away."""
        if (self.local / INDEX_NAME).exists():
            return DamagedError(f"{path}: this shard is missing; copy it again or make the shards again.")
        return UnavailableError(f"{self.local}: the folder of shards is gone since the start; is its file system mounted?")

    def _evict(self, keep: Path) -> None:
        """Drop the shards used longest ago until the cache is below its limit."""
        if not self.remote or not self.cache_limit_bytes:
            return
        with self.evicting:
            touch(keep)
            files = []
            for path in self.local.glob("shard.*.mds"):
                with contextlib.suppress(FileNotFoundError):  # dropped by another process just now
                    facts = path.stat()
                    files.append((facts.st_mtime_ns, facts.st_size, path))
            size = sum(bytes_ for _, bytes_, _ in files)
            for _, bytes_, path in sorted(files):
                if size <= self.cache_limit_bytes:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    size -= bytes_

    def columns(self, number: int) -> dict[str, Any]:
        """What is stored of an utterance.

        Raises DamagedError where it is lost or damaged, UnavailableError where its place does not answer, and UserError where
        that refuses access or the cache is too small.
        """
        shard = int(np.searchsorted(self.ends, number, side="right"))
        place = number - (int(self.ends[shard - 1]) if shard else 0)
        dropped = refusals = 0
        while True:
            try:
                return self._ready(shard).get_item(place)
            except FileNotFoundError as error:  # dropped from the cache by another reader in between
                dropped += 1
                if dropped == EVICTED_ATTEMPTS and self.remote:
                    raise UserError(
                        f"{self.place}: shard {shard} is dropped from {self.local} as fast as it is fetched; "
                        "raise data.cache_limit_gb."
                    ) from error
                if dropped == EVICTED_ATTEMPTS:
                    raise self._missing(self.local / self.readers[shard].raw_data.basename) from error
            except OSError as error:
                refusals += 1
                if isinstance(error, PermissionError) or refusals == READ_ATTEMPTS:
                    raise refused(self.local / self.readers[shard].raw_data.basename, error) from error
                time.sleep(READ_PAUSE_SECONDS * refusals)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise DamagedError(f"{self.place}: shard {shard} cannot be read ({error}); make the shards again.") from error


def is_fact(name: str, value: Any) -> bool:
    """Whether a value from an index file has the type of the fact `name` of Index; numbers are counts and token ids."""

    def is_kind(value: Any, kind: str) -> bool:
        if kind == "int":
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
        return isinstance(value, {"str": str, "bool": bool}[kind])

    kind = Index.__annotations__[name]
    inner = kind.removeprefix("list[").removesuffix("]")
    return is_kind(value, kind) if inner == kind else isinstance(value, list) and all(is_kind(one, inner) for one in value)


def wrong_with(described: Any) -> str | None:
    """What is not as `mtbi data shard` writes it in the description of one shard; None where all is well.

    Nothing else gets to the MDS reader: neither its pickled columns nor names that leave the folder.
    """
    names = sorted(COLUMNS)
    fixed = {
        "column_names": names,
        "column_encodings": [COLUMNS[name] for name in names],
        "column_sizes": [None] * len(names),
        "compression": None,
        "format": "mds",
        "version": 2,
        "zip_data": None,
    }
    if not isinstance(described, dict):
        return f"a shard is described by an object, not by {described!r}"
    wanted = {*fixed, "hashes", "raw_data", "samples", "size_limit"}
    if set(described) != wanted:
        return f"the keys {sorted(set(described) ^ wanted)} of a shard are missing or unknown"
    if other := [f"{key}={described.get(key)!r}" for key, value in fixed.items() if described.get(key) != value]:
        return ", ".join(other)
    raw, size = described.get("raw_data"), described.get("size_limit")
    if (
        not isinstance(raw, dict)
        or set(raw) != {"basename", "bytes", "hashes"}
        or not isinstance(raw["hashes"], dict)
        or not isinstance(raw["hashes"].get("xxh64"), str)
    ):
        return f"no xxh64 checksum in {raw!r}"
    if not re.fullmatch(r"shard\.\d{5,}\.mds", str(raw.get("basename"))):
        return f"the shard name {raw.get('basename')!r}"
    counts = (described.get("samples"), raw.get("bytes"), 1 if size is None else size)
    if not all(isinstance(one, int) and 0 <= one < 2**63 for one in counts) or described.get("hashes") != ["xxh64"]:
        return f"samples, bytes, size_limit {counts} or hashes {described.get('hashes')!r}"
    return None


def concatenate(indexes: list[Index], places: list[str], several_teachers: bool = False) -> Index:
    """One index over several folders. Raises UserError where they were made for different LLMs."""
    first = indexes[0]
    if len(indexes) == 1:
        return first
    for place, index in zip(places, indexes, strict=True):
        made = index.facts(), first.facts()
        if identity.other_dialogues(*made) or any(getattr(index, fact) != getattr(first, fact) for fact in SHARED_FACTS):
            raise UserError(f"{place} and {places[0]} were made for different LLMs or settings; make one of them again.")
        if not several_teachers and identity.other_llm(*made):
            raise UserError(
                f"{place} and {places[0]} hold answers of LLMs of different sizes ({index.llm_size or index.llm}; "
                f"{first.llm_size or first.llm}); make one of them again, or set behaviour.allow_other_teacher=true if that is "
                "meant."
            )
    tasks = list(dict.fromkeys(task for index in indexes for task in index.tasks))
    tables: dict[str, list[np.ndarray]] = {name: [] for name in TABLES}
    branches = words = 0
    for index in indexes:
        utterances, rows = index.utterances.copy(), index.branches.copy()
        utterances["first_branch"] += branches
        utterances["first_word"] += words
        rows["task"] = np.array([tasks.index(task) for task in index.tasks], "u2")[rows["task"]]
        branches, words = branches + len(rows), words + len(index.words)
        for name, table in zip(TABLES, (utterances, rows, index.words), strict=True):
            tables[name].append(table)
    sizes = [size for index in indexes for size in index.shard_sizes]
    joined = {name: np.concatenate(parts) for name, parts in tables.items()}
    return replace(first, tasks=tasks, shard_sizes=sizes, **joined)


class Shards:
    """One or several places as one list of utterances, by random access from any number of threads and processes.

    Raises UserError where a place holds no shards, cannot be reached, or is damaged.
    """

    def __init__(
        self,
        places: str | list[str],
        cache_dir: str = "",
        cache_limit_gb: float = 0.0,
        retries: int = 5,
        several_teachers: bool = False,
    ) -> None:
        """With `several_teachers` the places may hold answers of LLMs of different sizes."""
        names = [places] if isinstance(places, str) else places
        cache = cache_dir or str(Path(tempfile.gettempdir()) / f"mtbi-cache-{os.getuid()}")
        self.folders = [Folder(name, cache, int(cache_limit_gb * 1e9), retries) for name in names]
        self.index = concatenate([folder.index for folder in self.folders], names, several_teachers)
        self.ends = np.cumsum([len(folder.index.utterances) for folder in self.folders])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def columns(self, number: int) -> dict[str, Any]:
        """What is stored of utterance `number`, counted over all places."""
        folder = int(np.searchsorted(self.ends, number, side="right"))
        return self.folders[folder].columns(number - (int(self.ends[folder - 1]) if folder else 0))

    def __getitem__(self, number: int) -> Sample:
        """Utterance `number`, counted over all places. Raises as `Folder.columns` does."""
        columns = self.columns(number)
        try:
            return unpack(columns)
        except (UserError, SafetensorError, ValueError, TypeError, KeyError, IndexError) as error:
            name = columns.get("id")
            raise DamagedError(f"utterance {name!r} cannot be decoded ({error}); make the shards again.") from error
